"""What a model does with a long text: memory, speed, surprise, forks, and the cost beside full attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssmn.plots.look import LIGHT, Look, figure_of, legend_below, room_above, running_median, short_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def memory_and_speed(reading: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Resident memory and speed against how much text has been read; both should be flat lines."""
    blue, orange, *_ = look.colours
    points = reading["points"]
    megabytes = [point["bytes"] / 1e6 for point in points]
    with figure_of(look, 5.6 if look.narrow else 5.2, (2, 1), sharex=True) as (figure, axes):
        memory, speed = axes[:, 0]
        resident = [point["resident_bytes"] / 2**20 for point in points]
        memory.plot(megabytes, resident, color=blue, label="this process")
        room_above(memory, 0.9)
        kept = [resident[0] + reading["cache_bytes_per_token"] * point["tokens"] / 2**20 for point in points]
        memory.plot(megabytes, kept, color=orange, linestyle="--", label="if it kept every key and value")
        memory.set_ylabel("resident memory\n(MiB)")
        memory.set_title("Memory while reading")
        memory.legend(loc="lower right", fontsize="small")
        rates = [point["tokens_per_second"] for point in points]
        speed.plot(megabytes, rates, color=blue, linewidth=0.9, alpha=0.55, label="each stretch")
        speed.plot(megabytes, running_median(rates, max(3, len(rates) // 10)), color=blue, label="running median")
        room_above(speed)
        speed.set_ylabel("speed\n(tokens per second)")
        speed.set_xlabel("text read (MB)")
        speed.set_title("Speed while reading")
        speed.legend(loc="lower right", fontsize="small", ncols=2)
        speed.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


CONDITIONS = {
    "on": "memory on",
    "reset": "emptied at the start, then on",
    "frozen": "frozen as it was at the start",
    "off": "empty and frozen (window only)",
}
"""The four ways in which `surprise` reads the same passage, in drawing order."""


def surprise(passage: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Surprise along one passage with the memory on, emptied, frozen and off: along the text, and on average."""
    styles = dict(zip(CONDITIONS, zip(look.colours, ("-", "--", "-.", ":"), strict=True), strict=True))
    panels = (2, 1) if look.narrow else (1, 2)
    ratios: dict[str, Any] = {"height_ratios": [1.5, 1]} if look.narrow else {"width_ratios": [1.75, 1]}
    with figure_of(look, 6.4 if look.narrow else 4.3, panels, gridspec_kw=ratios) as (figure, axes):
        along, mean = axes.flat
        for name, label in CONDITIONS.items():
            colour, style = styles[name]
            along.plot(passage["kilobytes"], passage["bits_per_byte"][name], color=colour, linestyle=style, label=label)
        along.set_xlabel("passage read (kB)")
        along.set_ylabel("surprise (bits per byte)")
        along.set_title("The same passage, read in four ways")
        legend_below(figure, along, 1 if look.narrow else 2)
        names = list(CONDITIONS)[::-1]
        means = [passage["mean"][name] for name in names]
        mean.barh(range(len(names)), means, color=[styles[name][0] for name in names], height=0.62)
        for index, value in enumerate(means):
            mean.text(value * 0.97, index, f"{value:.3f}", ha="right", va="center", color=look.paper, weight="bold")
        mean.set_yticks(range(len(names)), names)
        mean.grid(axis="y", visible=False)
        mean.set_xlabel("bits per byte")
        mean.set_title("Average over the passage")
    return figure


def second_reading(readings: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Surprise of first and second readings against the length of the passage, and what the second one gains."""
    blue, orange, green, purple = look.colours
    rows = readings["rows"]
    lengths = [row["length"] for row in rows]
    panels = (2, 1) if look.narrow else (1, 2)
    with figure_of(look, 7.0 if look.narrow else 4.4, panels) as (figure, axes):
        levels, gains = axes.flat
        series = (
            ("first", "first reading", orange, "--", "s"),
            ("second", "second reading", blue, "-", "o"),
            ("second_off", "second reading, memory off", purple, ":", "D"),
            ("second_output", "second reading, with the output memory", green, "-.", "^"),
        )
        for name, label, colour, style, marker in series:
            values = [row[name] for row in rows]
            levels.plot(lengths, values, color=colour, linestyle=style, marker=marker, markersize=5, label=label)
        levels.set_ylabel("surprise (bits per byte)")
        levels.set_title("Reading a passage twice")
        gains.axhline(0, color=look.muted, linewidth=1)
        for way, colour, style, marker in (
            ("", blue, "-", "o"),
            ("_off", purple, ":", "D"),
            ("_output", green, "-.", "^"),
        ):
            gain, spread = ([100 * row[f"gain{way}{kind}"] for row in rows] for kind in ("", "_standard_error"))
            gains.errorbar(
                lengths, gain, yerr=spread, color=colour, linestyle=style, marker=marker, markersize=5, capsize=3
            )
        gains.set_ylabel("less surprise than at first (%)")
        gains.set_title("What the second reading gains")
        for panel in (levels, gains):
            panel.set_xscale("log", base=2)
            panel.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
            panel.set_xlabel("length of the passage (tokens)")
        legend_below(figure, levels, 1 if look.narrow else 2)
    return figure


def fork(story: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Running surprise over a passage for a saved state, its reloaded copy, and a fork that has read the passage."""
    blue, orange, green, _ = look.colours
    kilobytes = story["kilobytes"]
    with figure_of(look, 4.4 if look.narrow else 4.0) as (figure, axes):
        panel = axes[0, 0]
        panel.plot(
            kilobytes, story["original"], color=orange, linewidth=4.5, alpha=0.45, label="the state that was saved"
        )
        panel.plot(kilobytes, story["reloaded"], color=orange, linestyle="--", label="the same, from the file")
        panel.plot(kilobytes, story["left"], color=blue, label="fork that has read this passage before")
        panel.plot(kilobytes, story["right"], color=green, linestyle="-.", label="fork that has read another one")
        panel.set_xlabel("passage read (kB)")
        panel.set_ylabel("surprise so far\n(bits per byte)")
        panel.set_title("One state, saved, reloaded and forked")
        legend_below(figure, panel, 1 if look.narrow else 2)
    return figure


def seed_table(results: Mapping[str, Any], look: Look = LIGHT) -> Figure:
    """Time, kept bytes and multiply-adds of full attention and of the sparse stream, on log axes."""
    blue, orange, *_ = look.colours
    rows = results["rows"]
    names = [f"n = {row['length']:,}" for row in rows]
    groups = (
        ("Time (ms)", lambda r: r["milliseconds"]["full_attention"], lambda r: r["milliseconds"]["sparse_stream"]),
        (
            "Kept between steps (MiB)",
            lambda r: r["costs"]["full_cache_bytes"] / 2**20,
            lambda r: (r["costs"]["window_bytes"] + r["costs"]["memory_bytes"]) / 2**20,
        ),
        (
            "Multiply-adds (billions)",
            lambda r: r["costs"]["full_multiply_adds"] / 1e9,
            lambda r: (r["costs"]["window_multiply_adds"] + r["costs"]["memory_multiply_adds"]) / 1e9,
        ),
    )
    panels = (3, 1) if look.narrow else (1, 3)
    with figure_of(look, 7.6 if look.narrow else 3.7, panels) as (figure, axes):
        for panel, (title, full, stream) in zip(axes.flat, groups, strict=True):
            for offset, values, colour, hatch, label in (
                (-0.2, [full(row) for row in rows], orange, "//", "full attention"),
                (0.2, [stream(row) for row in rows], blue, "", "sparse stream"),
            ):
                bars = panel.bar(
                    [index + offset for index in range(len(rows))], values, 0.38,
                    color=colour, hatch=hatch, edgecolor=look.paper, linewidth=0, label=label,
                )  # fmt: skip
                panel.bar_label(bars, [short_number(value) for value in values], padding=2, fontsize="small")
            panel.set_yscale("log")
            everything = [value(row) for value in (full, stream) for row in rows]
            low, high = math.floor(math.log10(min(everything)) - 0.3), math.ceil(math.log10(max(everything)) + 0.3)
            panel.set_ylim(10.0**low, 10.0**high)
            panel.set_yticks([10.0**n for n in range(low, high + 1)])
            panel.minorticks_off()
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            panel.set_xticks(range(len(rows)), names)
            panel.grid(axis="x", visible=False)
            panel.set_title(title)
        legend_below(figure, axes.flat[0], 2)
    return figure
