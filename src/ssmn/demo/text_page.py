"""What the page of the text demonstration says of its numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from ssmn import plots
from ssmn.demo.report import Page, Section, percent


def _lead(numbers: Mapping[str, Any]) -> str:
    window = numbers["model"]["config"]["window_size"]
    return (
        f"A small model reads a long text once, line by line. It sees the last {window} tokens through a window; "
        "everything older lives in one synaptic memory that rewrites itself while it reads. This page is what was "
        "measured on this machine, good or bad."
    )


def _highlights(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    reading, mean = numbers["reading"], numbers["passage"]["mean"]
    again, last = numbers["twice"]["rows"][0], numbers["table"]["rows"][-1]
    growth = reading["resident_bytes_growth"] / 2**20
    return [
        (f"{growth:+.1f} MiB", f"resident memory over {reading['bytes'] / 1e6:.1f} MB of text"),
        (f"{reading['tokens'] / reading['seconds']:,.0f}/s", "tokens read, to the end"),
        (percent(mean["on"] / mean["frozen"] - 1), "surprise on new text, memory learning against frozen"),
        (percent(-again["gain"]), f"surprise when {again['length']} tokens are read again"),
        (f"{last['speedup']:.1f} ×", f"the speed of full attention at n = {last['length']:,}"),
    ]


def _facts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, machine = numbers["model"]["config"], numbers["machine"]
    return [
        (
            "Model",
            f"{numbers['model']['parameters']:,} parameters, width {config['hidden_dim']}, layers "
            f"{', '.join(config['layer_types'])}, window {config['window_size']}, {config['vocab_size']:,} tokens; "
            f"trained by `ssmn train demo` (see `make demo-model`)",
        ),
        (
            "Text",
            "whole held-out novels, Bible books, manuals and program code in turn; the model was trained on others",
        ),
        (
            "Machine",
            f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; threads: "
            f"{numbers['model']['threads']} for the small model, {machine['threads']} for the table",
        ),
    ]


def _reading_outcome(r: Mapping[str, Any]) -> str:
    growth = r["resident_bytes_growth"] / 2**20
    kept = r["cache_bytes_per_token"] * r["tokens"] / 2**20
    return (
        f"{r['bytes'] / 1e6:.2f} MB, {r['tokens']:,} tokens, were read in {r['seconds']:.0f} s. From the second tenth "
        f"of the text to the last, resident memory changed by {growth:+.1f} MiB; the stream's whole state is "
        f"{r['state_bytes'] / 1024:.0f} KiB. Five layers of full attention of this width would have kept {kept:,.0f} "
        f"MiB of keys and values by the end. The last tenth ran at {r['last_to_second_tenth']:.2f} times the speed of "
        f"the second."
    )


def _passage_outcome(p: Mapping[str, Any]) -> str:
    mean = p["mean"]
    verb = "catches up" if mean["reset"] - mean["on"] < 0.05 else "stays behind"
    return (
        f"Over {p['bytes'] / 1e3:.0f} kB: {mean['on']:.3f} bits per byte with the memory on, {mean['frozen']:.3f} if "
        f"it may not learn from here on, {mean['off']:.3f} if it is empty and may not learn. The emptied memory "
        f"{verb}: {mean['reset']:.3f} on average. The model was trained to rely on its memory, so taking it away costs "
        f"more than a model without one would lose."
    )


def _twice_outcome(t: Mapping[str, Any]) -> str:
    shortest, longest = t["rows"][0], t["rows"][-1]
    known = [row["length"] for row in t["rows"] if row["gain"] >= 0.05]
    until = f"up to {known[-1]:,} tokens the gain is 5 % or more" if known else "no length gains as much as 5 %"
    return (
        f"A passage of {shortest['length']} tokens is {100 * shortest['gain']:.0f} % less surprising the second time, "
        f"one of {longest['length']:,} tokens {round(100 * longest['gain'], 1) + 0.0:.1f} %; {until}. What is older "
        f"has been overwritten by what came after it. With the memory off the gain is at most "
        f"{100 * max(0.0, *(row['gain_off'] for row in t['rows'])):.1f} %. The output memory, which is off unless "
        f"it is asked for, keeps more: {100 * shortest['gain_output']:.0f} and {100 * longest['gain_output']:.0f} %."
    )


def _story_outcome(s: Mapping[str, Any]) -> str:
    same = s["reloaded_identical"] and s["future_identical"]
    reload = "bit for bit the same, and so is all that follows" if same else "NOT the same"
    parent = "was left untouched" if s["parent_unchanged"] else "was CHANGED"
    return (
        f"At position {s['position']:,} the state was saved ({s['file_bytes'] / 1024:.0f} KiB in "
        f"{s['save_milliseconds']:.0f} ms) and reloaded ({s['load_milliseconds']:.0f} ms): {reload}. The parent of the "
        f"forks {parent}. At the end of the passage the fork that knew it stands at {s['left'][-1]:.2f} bits per byte, "
        f"the one that had read another passage at {s['right'][-1]:.2f}."
    )


def _table_outcome(t: Mapping[str, Any]) -> str:
    parts = []
    for row in t["rows"]:
        full, stream = row["milliseconds"]["full_attention"], row["milliseconds"]["sparse_stream"]
        ratio = f"{full / stream:.1f} times faster" if full >= stream else f"{stream / full:.1f} times slower"
        parts.append(f"n = {row['length']:,}: full attention {full:,.0f} ms, sparse stream {stream:,.0f} ms, {ratio}")
    return f"{'; '.join(parts)}. Backend: {t['backend']}."


def _counts_table(table: Mapping[str, Any]) -> str:
    groups = []
    for row in table["rows"]:
        counts, costs = row["counts"], row["costs"]
        state = (costs["window_bytes"] + costs["memory_bytes"]) / 2**20
        rows = (
            ("pairs of a layer, the seed's count (n², n·w)", counts["seed_full"], counts["seed_window"]),
            ("pairs of a layer, exact (causal)", counts["exact_full"], counts["exact_window"]),
            ("multiply-adds of attention (5 and 4 layers)", costs["full_multiply_adds"], costs["window_multiply_adds"]),
            ("multiply-adds of the memory (1 layer)", 0, costs["memory_multiply_adds"]),
            ("global cache, bytes", costs["full_cache_bytes"], costs["global_cache_bytes"]),
        )
        body = "".join(f"<tr><td>{name}<td>{full:,}<td>{stream:,}</tr>" for name, full, stream in rows)
        groups.append(
            f"<tbody><tr><th>n = {row['length']:,}<th>full attention<th>sparse stream</tr>{body}"
            f"<tr><td>bounded state (window and memory)<td>–<td>{state:.1f} MiB</tr></tbody>"
        )
    return f"""<div class="scroll"><table>{"".join(groups)}</table></div>
<p class="small">Timed are the token mixers of five layers alone (no projections, norms or feed-forwards): 4 heads × 64,
float32, one forward pass over one sequence, window {table["window"]}; torch's scaled_dot_product_attention (causal)
five times against window_attention four times and synaptic_memory once, taking turns in one process; medians.</p>"""


def _written(story: Mapping[str, Any]) -> str:
    forks = "".join(
        f"<div><h3>{title}</h3><pre>{html.escape(story['prompt'])}<b>{html.escape(story['written'][name])}</b></pre></div>"
        for name, title in (("left", "The fork that knew the passage"), ("right", "The fork that knew another"))
    )
    return f"""<details><summary>What both forks write next (same first line, same seed)</summary>
<div class="pair">{forks}</div></details>"""


PAGE = Page(
    "A stream and its memory",
    _lead,
    _highlights,
    (
        Section(
            "memory-and-speed",
            "One long text: memory and speed",
            plots.memory_and_speed,
            "reading",
            "Two flat lines. The dashed one is what keeping every key and value would add.",
            _reading_outcome,
        ),
        Section(
            "surprise",
            "Surprise with the memory, and without",
            plots.surprise,
            "passage",
            "Lower is better. All four lines rise and fall with the text; the distance between them is the memory's "
            "work.",
            _passage_outcome,
        ),
        Section(
            "second-reading",
            "Reading a second time",
            plots.second_reading,
            "twice",
            "Where the line on the right comes down to zero, the passage is longer than the memory holds.",
            _twice_outcome,
        ),
        Section(
            "state",
            "A state is a value: save, reload, fork, go on",
            plots.fork,
            "story",
            "The dashed line lies on the pale one: a reloaded state goes on as if nothing had happened. The solid blue "
            "line starts lower, since that fork has read the passage before.",
            _story_outcome,
            _written,
        ),
        Section(
            "seed-table",
            "Against full attention on this machine",
            plots.seed_table,
            "table",
            "Each step of an axis is a factor of ten. Full attention grows with the square of n in time and with n in "
            "memory; the sparse stream grows with n in time and not at all in memory.",
            _table_outcome,
            _counts_table,
        ),
    ),
    _facts,
)
