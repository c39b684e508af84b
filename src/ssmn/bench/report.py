"""Records as tables: plain cells, which the command line prints and `markdown` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssmn.bench.compare import compare, floor_ratios
from ssmn.bench.figures import Figure, advantages, figures_of


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of text; the first `texts` columns say what a row is of, the others are its figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    texts: int = 2


GAP = 3
"""Characters between two columns."""


def fitting(table: Table, width: int) -> list[Table]:
    """The table in as few parts as are at most `width` wide, and about alike; each says what its rows are of."""
    least = _least_widths(table, width)
    fewest = len(_groups(least, table.texts, width))
    narrowest = next(w for w in range(1, width + 1) if len(_groups(least, table.texts, w)) == fewest)
    groups = _groups(least, table.texts, narrowest)
    parts = []
    for index, group in enumerate(groups):
        head, rows = [table.head[i] for i in group], [[row[i] for i in group] for row in table.rows]
        caption = table.caption if index == len(groups) - 1 else ""
        parts.append(Table(table.title if index == 0 else "", head, rows, caption, table.texts))
    return parts


def _groups(widths: Sequence[int], texts: int, width: int) -> list[list[int]]:
    """Columns side by side, the first `texts` in every group: as many as fit, and at least one figure."""
    groups = [list(range(texts))]
    for column in range(texts, len(widths)):
        taken = sum(widths[i] + GAP for i in [*groups[-1], column])
        if len(groups[-1]) > texts and taken > width:
            groups.append(list(range(texts)))
        groups[-1].append(column)
    return groups


def column_widths(table: Table, width: int) -> list[int]:
    """Characters for each column of a table that fits `width`; heads are broken only where they must be."""
    widths = _least_widths(table, width)
    for column, name in enumerate(table.head):
        spare = width - sum(taken + GAP for taken in widths)
        widths[column] += max(0, min(len(name) - widths[column], spare))
    return widths


def _least_widths(table: Table, width: int) -> list[int]:
    """The longest cell or word of the head; what a row is of may be broken, if it takes more than half of `width`."""
    cells = [[*name.split(), *(row[i] for row in table.rows)] for i, name in enumerate(table.head)]
    longest = [max(map(len, column), default=0) for column in cells]
    return [max(1, min(most, width // 2) if i < table.texts else most) for i, most in enumerate(longest)]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """One table for every panel of a record's figures."""
    figures = figures_of(record)
    ahead = advantages(figures)
    return [_panel(panel, group, ahead) for panel, group in _panels(figures).items()]


def _panels(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.panel, []).append(figure)
    return found


def _panel(panel: str, figures: Sequence[Figure], ahead: Mapping[tuple[str, int, str], float]) -> Table:
    details = list(dict.fromkeys(name for figure in figures for name in figure.details))
    rivals = any((panel, figure.length, figure.who) in ahead for figure in figures)
    repeated = any(figure.runs > 1 for figure in figures)
    head = ["n", "", figures[0].unit, *(["quartiles", "runs"] if repeated else []), *details]
    rows = []
    for figure in figures:
        row = [f"{figure.length:,}", figure.who, number(figure.median)]
        if repeated:
            row += [f"{number(figure.low)} to {number(figure.high)}", str(figure.runs)]
        row += [_detail(name, figure.details.get(name)) for name in details]
        if rivals:
            ratio = ahead.get((panel, figure.length, figure.who))
            row.append("" if ratio is None else number(ratio))
        rows.append(row)
    if not rivals:
        return Table(panel, head, rows)
    against = " or ".join(dict.fromkeys(figure.against for figure in figures if figure.against))
    return Table(panel, [*head, "factor"], rows, f"factor: how many times better {against} is")


def _detail(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if name.startswith("share") else number(value)


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def floors(record: Mapping[str, Any]) -> str:
    """The machine, the threads and the floors in one sentence."""
    machine = record["machine"]
    rates = [f"{name} {rate['median']:,.0f} {rate['unit']}" for name, rate in record.get("floors", {}).items()]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    kernels = record.get("kernels") or "none"
    commit = f"commit {machine['commit']}" if machine["commit"] else "an installed copy"
    parts = [f"{machine['processor']}, {threads}", *rates, f"kernels {kernels}", f"torch {machine['torch']}", commit]
    return ", ".join([*parts, record["date"][:10]]) + "."


def changes(base: Mapping[str, Any], now: Mapping[str, Any]) -> Table:
    """Every figure of both records: the ratio, and what is worse or better beyond the noise."""
    marks = {"same": "", "better": "better", "worse": "WORSE"}
    rows = [
        [f"{c.now.panel}, n = {c.now.length:,}", c.now.who, number(c.base.median), number(c.now.median), c.now.unit,
         f"{c.ratio:.3f}", marks[c.verdict]]
        for c in compare(base, now)
    ]  # fmt: skip
    rows += [[f"floor: {name}", "the machine", "", "", "", f"{ratio:.3f}", ""]
             for name, ratio in floor_ratios(base, now).items()]  # fmt: skip
    return Table(f"against {base['date'][:19]}, commit {base['machine'].get('commit')}",
                 ["figure", "", "base", "now", "unit", "now ÷ base", ""], rows)  # fmt: skip


def markdown(record: Mapping[str, Any], command: str, extra: Sequence[Table] = ()) -> str:
    """The tables for a document, with the command that made them and the machine that it ran on."""
    parts = [f"`{command}`", floors(record)]
    parts += [markdown_table(table) for table in [*tables(record), *extra]]
    parts += [f"Left out: {note}." for note in record["results"].get("notes", [])]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """One table for a document, its title and caption above it."""
    line = ["---"] * table.texts + ["---:"] * (len(table.head) - table.texts)
    rows = ["| " + " | ".join(row) + " |" for row in (table.head, line, *table.rows)]
    title = f"**{table.title}**" + (f" ({table.caption})" if table.caption else "")
    return title + "\n\n" + "\n".join(rows)
