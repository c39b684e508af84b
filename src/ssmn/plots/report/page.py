"""The page of a report: one HTML file with everything in it."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ssmn.files import atomic_write
from ssmn.plots import interactive
from ssmn.plots.look import CAPTIONS, Look
from ssmn.plots.report.parting import Parting
from ssmn.plots.report.reading import Head, Holdings, Part, Reading

_MAPS_BYTES = 1_500_000
"""Room in the file for heat maps of memories; where they would take more, cells are joined."""


@dataclass(frozen=True)
class About:
    """What a report says of where its numbers come from."""

    title: str
    """Such as the name of the text."""
    model: str
    """The model in a sentence."""
    command: str
    """What was typed."""


def write_report(
    path: str | os.PathLike[str],
    about: About,
    held: Holdings,
    reading: Reading | None = None,
    parting: Parting | None = None,
) -> Path:
    """Writes the report of a state, or of a text that was read.

    Args:
        path: The HTML file; replaced whole or not at all.
        about: Where the numbers come from.
        held: What the state holds; of a reading, its `holdings`.
        reading: What the model did with a text; None = a state alone.
        parting: How the stream and a fork that read another text drifted apart, if there was one.

    Returns:
        The path.

    Raises:
        FileError: The file cannot be written.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.plots.report import About, holdings, write_report
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> _, state = ssmn.TextSSMN(config)(torch.randint(16, (1, 4)))
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(f"{folder}/report.html", About("A state", "a model", "none"), holdings(state))
        ...     path.read_text().startswith("<!DOCTYPE html>")
        True
    """
    figures: dict[str, list[dict[str, Any]]] = {}
    sections = [] if reading is None else [_text(reading), _along(reading, figures)]
    sections += [_memory(held, figures)] if held.heads or held.windows else []
    sections += [_others(held.parts, figures)] if held.parts else []
    if reading is not None:
        sections += [_attention(reading, figures), _forgetting(reading, figures)]
        sections += [] if parting is None else [_parting(parting, figures)]
        sections += [_tokens(reading)]
    body = "\n".join(
        f'<section id="{name}">\n<h2><span>{number}</span>{title}</h2>\n{inside}\n</section>'
        for number, (name, title, inside) in enumerate(sections, start=1)
    )
    page = _page(about, held, reading, body, figures)
    atomic_write(Path(path), page.encode())
    return Path(path)


def _page(about: About, held: Holdings, reading: Reading | None, body: str, figures: Mapping[str, Any]) -> str:
    cards = "".join(
        f"<li><strong>{html.escape(value)}</strong>{html.escape(what)}</li>" for value, what in _cards(held, reading)
    )
    themes = {"light": interactive.theme(Look()), "dark": interactive.theme(Look(dark=True))}
    data = {"figures": figures, "themes": themes}
    if reading is not None:
        data["reading"] = _data(reading)
    blocks = "\n".join(
        f'<script type="application/json" id="{name}">{_json(value)}</script>' for name, value in data.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>SSMN: {html.escape(about.title)}</title>
<link rel="icon" href="data:,">
<style>{_asset("report.css")}</style>
</head>
<body>
<header>
<p class="kicker">Sparse-Stream Memory Network</p>
<h1>{html.escape(about.title)}</h1>
<p class="lead">{html.escape(_lead(held, reading))}</p>
<ul class="cards">{cards}</ul>
</header>
<main>
<noscript><p>The drawings and the answers of the text need JavaScript, which is turned off here.</p></noscript>
{body}
</main>
<footer><dl>
<dt>Model</dt><dd>{html.escape(about.model)}</dd>
<dt>Made by</dt><dd><code>{html.escape(about.command)}</code></dd>
<dt>Drawn by</dt><dd>plotly.js (MIT licence), which is part of this file; nothing is fetched from anywhere</dd>
</dl></footer>
{blocks}
<script>{interactive.plotly_js()}</script>
<script>{_asset("report.js")}</script>
</body>
</html>
"""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""The page may use what is in it, and nothing else."""


def _asset(name: str) -> str:
    return (resources.files("ssmn.plots") / "assets" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    # A text may hold "</script>" or "<!--"; neither may end or hide the block.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _lead(held: Holdings, reading: Reading | None) -> str:
    if reading is None:
        return (
            f"A stream that has read {held.position:,} steps, as it was saved: what its layers hold, how full "
            f"they are, and how much of their windows is in use."
        )
    shown = "" if len(reading.pieces) == reading.tokens else f" Its last {len(reading.pieces):,} tokens are shown."
    return (
        f"A model has read {reading.tokens:,} tokens from position {reading.start:,} on.{shown} Point at a token to "
        f"see which earlier ones its memory answered with."
    )


def _cards(held: Holdings, reading: Reading | None) -> Iterable[tuple[str, str]]:
    heads = held.heads
    if reading is None:
        yield f"{held.position:,}", "steps read so far"
        yield _size(held.nbytes), "the whole state, at any position"
    else:
        yield f"{reading.tokens:,}", "tokens read"
        if math.isfinite(reading.bits_per_byte):
            yield f"{reading.bits_per_byte:.2f}", "bits per byte, mean surprise"
        yield f"{100 * reading.written.mean():.0f} %", "of steps and heads written"
    if heads:
        wide = max(head.memory.shape[0] for head in heads)
        yield f"{_span([head.effective_rank for head in heads])} of {wide}", "directions of a memory in use"
        yield _span([head.energy for head in heads]), "energy of a memory, ‖S‖²"
    if reading is not None and heads:
        yield _span([head.half_life_probed for head in heads]), "steps to half, as forgotten in this text"
    elif held.windows:
        yield f"{100 * np.mean([fill for fill, _ in held.windows.values()]):.0f} %", "of the windows filled"


def _text(reading: Reading) -> tuple[str, str, str]:
    trace, shown = reading.trace, len(reading.pieces)
    spans = []
    for piece in reading.pieces:
        kind = ' class="part"' if not piece else ' class="end"' if not piece.strip("\n") else ""
        spans.append(f"<span{kind}>{html.escape(piece, quote=False)}</span>")
    earlier = (
        f" Of the {reading.tokens:,} tokens the last {shown:,} are here; a source further back is shown with the words "
        f"around it."
        if shown < reading.tokens
        else ""
    )
    pick = ""
    if len(trace.layers) > 1:
        choices = "".join(f'<option value="{n}">layer {layer}</option>' for n, layer in enumerate(trace.layers))
        pick = f'<label>memory of <select id="layer">{choices}</select></label>'
    skipped = '<span><b class="skipped">not written</b></span>' if (trace.written == 0).any() else ""
    marks = "".join(
        f'<label><input type="radio" name="mark" value="{name}"{" checked" if name == "importance" else ""}>'
        f"<span>{name.capitalize()}</span></label>"
        for name in ("importance", "surprise", "none")
    )
    inside = f"""<p class="about">Each token is marked by how firmly it was written into the memory, or by how much it
surprised the model. Point at a token, tap it, or walk with the arrow keys: what its read of the memory drew on lights
up.{earlier}</p>
<div class="controls">
<fieldset><legend>Mark tokens by</legend>{marks}</fieldset>
{pick}
<div class="scale"><span></span><i></i><span></span></div>
<div class="keys"><span><b class="plus">drawn on</b></span><span><b class="minus">taken away</b></span>{skipped}</div>
</div>
<div class="reader">
<div id="text" role="group" aria-label="The text, token by token">{"".join(spans)}</div>
<aside id="sources" aria-live="polite" aria-label="What the chosen token read"></aside>
</div>
<p class="look"><b>What to look for.</b> A percentage is how much of the length of the read would be missing without
that one write; parts of a read may point against each other, so they need not sum to 100. Far sources are the memory's
own work: no window reaches them.</p>"""
    return "the-text", "The text and what each token read", inside


def _data(reading: Reading) -> dict[str, Any]:
    """What the page needs to answer questions about the text; lists by layer, then by token."""
    trace = reading.trace
    positions, weights = trace.positions.numpy(), trace.weights.double().numpy()
    shares = weights / np.maximum(trace.reads.double().numpy(), 1e-12)[..., None]
    sources = []
    for layer in range(len(trace.layers)):
        found = positions[:, layer] >= 0
        rows = zip(positions[:, layer], shares[:, layer], found, strict=True)
        kept = [(where[ok].tolist(), interactive.rounded(share[ok])) for where, share, ok in rows]
        sources.append({"positions": [where for where, _ in kept], "weights": [share for _, share in kept]})
    by_layer = {
        name: [interactive.rounded(row) for row in getattr(trace, name).double().numpy().T]
        for name in ("importance", "written", "carried", "dropped")
    }
    return {
        "first": reading.first,
        "start": reading.start,
        "end": reading.start + reading.tokens,
        "surprise": interactive.rounded(reading.surprise),
        **by_layer,
        "sources": sources,
        "snippets": {str(position): parts for position, parts in reading.snippets.items()},
        "open": _telling(reading, positions[:, 0], shares[:, 0]),
    }


def _telling(reading: Reading, positions: np.ndarray, shares: np.ndarray) -> int:
    """Number of the word whose read leans most on one out of the windows' reach; the last token's if none does."""
    reach = max((size for _, size in reading.holdings.windows.values()), default=0)
    place = positions - reading.first
    words = np.array([any(map(str.isalnum, piece)) for piece in reading.pieces])
    far = (place >= 0) & (np.arange(len(place))[:, None] - place >= reach)
    far &= words[:, None] & words[np.maximum(place, 0)]
    strength = np.where(far, np.abs(shares), 0.0).max(1)
    return int(strength.argmax()) if strength.any() else len(place) - 1


def _along(reading: Reading, figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    values: dict[str, Sequence[float]] = {"surprise (bits)": reading.surprise.tolist()}  # type: ignore[dict-item]
    for number, layer in enumerate(reading.trace.layers):
        values[f"importance, layer {layer}"] = reading.trace.importance[:, number].tolist()
    values |= {f"energy, {name}" if len(reading.energies) > 1 else "energy ‖S‖²": row.tolist()
               for name, row in list(reading.energies.items())[:4]}  # fmt: skip
    figures["along"] = [{"drawing": interactive.along_text(reading.pieces, values, first=reading.first)}]
    return "along", "Along the text", _plot("along", "along_text") + _look("along_text")


def _memory(held: Holdings, figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    heads = list(held.heads)
    windows = "".join(
        f"<tr><td>layer {layer}<td>{size:,}<td>{100 * fill:.0f} %</tr>" for layer, (fill, size) in held.windows.items()
    )
    table = _heads_table(heads)
    if windows:
        header = "<tr><th>window<th>tokens it sees<th>filled</tr>"
        table += f'<div class="scroll"><table class="small">{header}{windows}</table></div>'
    if not heads:
        return "windows", "What the windows hold", f"<p>The model has no synaptic memory.</p>{table}"
    side = _side(len(heads))
    spectra = {head.name: head.spectrum.tolist() for head in heads}
    figures["memory"], figures["spectrum"] = [], []
    for head in heads:
        joined, cell = _joined(head.memory, side)
        entry = "entry of S" if cell == 1 else f"largest of {cell} × {cell} entries of S"
        figures["memory"].append({"name": head.name, "drawing": interactive.memory_map(joined, entry=entry)})
        nearby = spectra if len(heads) <= 8 else {head.name: spectra[head.name]}
        figures["spectrum"].append({"name": head.name, "drawing": interactive.spectra(nearby, chosen=head.name)})
    cell = _joined(heads[0].memory, side)[1]
    joined_note = f" A cell of the map is the largest of {cell} × {cell} entries." if cell > 1 else ""
    inside = f"""<p class="about">The memory is a matrix S: a key picks from its rows, a value comes out of its
columns.{joined_note}</p>
{_select("memory spectrum", [head.name for head in heads])}
<div class="pair">
<div>{_plot("memory", "memory_maps")}{_look("memory_maps")}</div>
<div>{_plot("spectrum", "spectra")}{_look("spectra")}</div>
</div>
{table}"""
    return "memory", "What the memory holds", inside


def _others(parts: Sequence[Part], figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    side, rows = _side(len(parts)), []
    figures["others"] = []
    for part in parts:
        joined, cell = _joined(part.values, side)
        entry = "entry" if cell == 1 else f"largest of {cell} × {cell} entries"
        drawing = interactive.memory_map(joined, entry=entry, axes=part.axes)
        figures["others"].append({"name": part.name, "drawing": drawing})
        known = math.isfinite(part.effective_rank)
        rank = f"{part.effective_rank:.1f} of {min(part.values.shape)}" if known else "–"
        size = f"{part.values.shape[0]:,} × {part.values.shape[1]:,}"
        energy = f"{part.energy:,.0f}" if part.energy >= 1000 else f"{part.energy:.3g}"
        cells = (part.name, size, energy, rank)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>")
    header = "<tr><th>memory<th>size<th>energy, Σ x²<th>effective rank</tr>"
    inside = f"""<p class="about">Layers of other kinds remember in other ways; this is the part of each that lasts
longest.</p>
{_select("others", [part.name for part in parts])}
{_plot("others", "other_maps")}{_look("other_maps")}
<div class="scroll"><table class="wordy">{header}{"".join(rows)}</table></div>"""
    return "others", "What the other layers hold", inside


def _heads_table(heads: Sequence[Head]) -> str:
    if not heads:
        return ""
    read = any(math.isfinite(head.write_rate) for head in heads)
    names = ["memory", "energy ‖S‖²", "effective rank", "saturation"]
    names += ["half-life by decay", "half-life in all", "written", "mean importance"] if read else []
    rows = []
    for head in heads:
        cells = [
            head.name,
            f"{head.energy:,.0f}" if head.energy >= 1000 else f"{head.energy:.3g}",
            f"{head.effective_rank:.1f} of {len(head.memory)}",
        ]
        cells += [f"{100 * head.saturation:.0f} %"]
        if read:
            cells += [_steps(head.half_life), _steps(head.half_life_probed)]
            cells += [f"{100 * head.write_rate:.0f} %", f"{head.importance:.3f}"]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>")
    header = "".join(f"<th>{name}" for name in names)
    return f'<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>'


def _attention(reading: Reading, figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    count = len(next(iter(reading.memory_maps.values())))
    pieces, first = reading.pieces[-count:], reading.first + len(reading.pieces) - count
    columns = []
    for kind, maps in (("memory", reading.memory_maps), ("window", _nearest(reading))):
        figures[f"{kind}-map"] = [
            {
                "name": f"{kind} of layer {layer}",
                "drawing": interactive.attention_map(weights, pieces, first=first),
            }
            for layer, weights in maps.items()
        ]
        if maps:
            names = [figure["name"] for figure in figures[f"{kind}-map"]]
            columns.append(f"<div>{_select(f'{kind}-map', names)}{_plot(f'{kind}-map', 'attention_maps')}</div>")
    inside = f"""<p class="about">The last {len(pieces):,} tokens: each row is a token that reads, each column one
that it read. First the memory, as the attention that it amounts to (the length of what each write gives to the read,
all heads together); then the window's attention, mean over its heads.</p>
<div class="pair">{"".join(columns)}</div>
{_look("attention_maps")}"""
    return "attention", "The memory's attention beside the window's", inside


def _nearest(reading: Reading, most: int = 12) -> dict[int, np.ndarray]:
    """The windows of the layers nearest to a memory, so that a deep model's report stays small."""
    order = sorted(reading.window_maps, key=lambda layer: min(abs(layer - memory) for memory in reading.memory_maps))
    return {layer: reading.window_maps[layer] for layer in sorted(order[:most])}


def _forgetting(reading: Reading, figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    names, drawings = list(reading.forgetting), []
    for name, curves in reading.forgetting.items():
        values = {setting: (steps.tolist(), left.tolist()) for setting, (steps, left) in curves.items()}
        drawings.append({"name": name, "drawing": interactive.forgetting_curves(values)})
    figures["forgetting"] = drawings
    inside = f"""<p class="about">What is left of an arbitrary content of the memory after so many more steps of the
shown text, decay and erasure together: as it was read, and as it would be under other settings of η (how firmly to
write) and λ (how fast to forget).</p>
{_select("forgetting", names)}
{_plot("forgetting", "forgetting_curves")}
{_look("forgetting_curves")}"""
    return "forgetting", "How long it lasts", inside


def _parting(parting: Parting, figures: dict[str, list[dict[str, Any]]]) -> tuple[str, str, str]:
    distances = {name: row.tolist() for name, row in parting.distances.items()}
    drawing = interactive.memory_distance(parting.positions.tolist(), distances, parting.fork)
    figures["distance"] = [{"drawing": drawing}]
    inside = f"""<p class="about">A fork of the stream read another text. Between equal memories the distance
‖S − S'‖ / (‖S‖ + ‖S'‖) is 0, between two that have nothing in common about 0.7, between opposite ones 1.</p>
{_plot("distance", "memory_distance")}
{_look("memory_distance")}"""
    return "parting", "Two streams after a fork", inside


def _tokens(reading: Reading) -> tuple[str, str, str]:
    rows = "".join(
        f"<tr><td><code>{html.escape(token.text)}</code><td>{token.count:,}<td>{token.importance:.3f}</tr>"
        for token in reading.important[:15]
    )
    inside = f"""<p class="about">Mean over all places where they were read; tokens that were read three times or more
come first.</p>
<div class="scroll"><table class="small"><tr><th>token<th>read<th>mean importance</tr>{rows}</table></div>"""
    return "tokens", "Tokens of most importance", inside


def _plot(figure: str, caption: str) -> str:
    return f'<div class="plot" data-figure="{figure}" role="img" aria-label="{html.escape(CAPTIONS[caption])}"></div>'


def _look(caption: str) -> str:
    return f'<p class="look"><b>What to look for.</b> {html.escape(CAPTIONS[caption])}</p>'


def _select(figures: str, names: Sequence[str]) -> str:
    if len(names) < 2:
        return f'<div class="pick"><b>{html.escape(names[0])}</b></div>'
    choices = "".join(f'<option value="{number}">{html.escape(name)}</option>' for number, name in enumerate(names))
    return f'<div class="pick"><select data-for="{figures}" aria-label="Which one to draw">{choices}</select></div>'


def _side(heads: int) -> int:
    """Cells along the side of a map, so that all maps together keep their room (16/3 bytes a cell, in base64)."""
    return max(16, math.isqrt(int(_MAPS_BYTES * 3 / 16 / heads)))


def _joined(memory: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """A memory of at most side × side cells, each the entry of largest size in its square, and the square's side."""
    cell = -(-max(memory.shape) // side)
    if cell == 1:
        return memory, 1
    rows, columns = (-(-size // cell) for size in memory.shape)
    padded = np.zeros((rows * cell, columns * cell), memory.dtype)
    padded[: memory.shape[0], : memory.shape[1]] = memory
    squares = padded.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(rows, columns, -1)
    largest = np.abs(squares).argmax(-1)[..., None]
    return np.take_along_axis(squares, largest, -1)[..., 0], cell


def _steps(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f} steps" if value >= 10 else f"{value:.1f} steps"


def _span(values: Sequence[float]) -> str:
    """The range of some numbers, short."""
    low, high = (("∞" if math.isinf(value) else f"{value:,.0f}") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1024:,.0f} KiB" if nbytes < 1 << 20 else f"{nbytes / (1 << 20):,.1f} MiB"
