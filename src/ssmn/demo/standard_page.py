"""What the page of the Standard model's demonstration says of its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssmn import plots
from ssmn.demo.report import Page, Section, percent


def _lead(numbers: Mapping[str, Any]) -> str:
    return (
        f"{numbers['watch']['rows']:,} readings of a real machine, each seen once and in order: watched for anomalies, "
        "predicted by a model that nobody has trained, disturbed on purpose. Then systems that are replaced while they "
        "are followed. Nothing on this page learns by back-propagation. It is what was measured on this machine, good "
        "or bad."
    )


def _highlights(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    watched, followed, switched = numbers["watch"], numbers["follow"], numbers["switch"]
    windows = len(watched["windows"])
    recovery, steps = followed["recovery"]["learning"], switched["steps_to_know"]["ssmn_rls"]["switched"]
    return [
        (
            f"{watched['windows_found']} of {windows}",
            f"labelled anomalies found; {watched['flags_outside']} flags elsewhere",
        ),
        (f"{watched['rows_per_second']:,.0f}/s", "rows watched, one by one, in plain Python"),
        (percent(_against_last(followed)), "error of the next reading after the first week, against the last value"),
        (_rows(recovery), "until a level shift is overcome"),
        (_rows(steps, "step"), "until a system that was replaced is known again"),
    ]


def _against_last(followed: Mapping[str, Any]) -> float:
    """Change of the error from the first week's end on, disturbances included."""
    sums = {"learning": 0.0, "last": 0.0}
    for stretch in _after_first_week(followed):
        for name in sums:
            sums[name] += stretch["rows"] * stretch[name]
    return sums["learning"] / sums["last"] - 1


def _after_first_week(followed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [stretch for stretch in followed["stretches"] if stretch["start"] >= followed["learned"]]


def _rows(count: int | None, word: str = "row") -> str:
    if count is None:
        return "never"
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _watch_outcome(w: Mapping[str, Any]) -> str:
    windows, growth = len(w["windows"]), w["resident_bytes_growth"] / 2**20
    same = w["pieces_identical"] and w["reloaded_identical"]
    return (
        f"The detector flagged a row in {w['windows_found']} of {windows} labelled windows, and {w['flags_outside']} "
        f"rows outside of them, at its default threshold of {w['threshold']:g}; early in a stream almost everything is "
        f"new. The stream is one of the 58 that the detector's settings were chosen on. "
        f"{w['rows_per_second']:,.0f} rows per second one by one. Its state has {w['detector_bytes'] / 1000:.1f} kB at "
        f"the end and {w['detector_bytes_early'] / 1000:.1f} kB after the first hundredth; from the second tenth to "
        f"the last, resident memory changed by {growth:+.1f} MiB. Read in pieces of 1,000 rows, or saved half way and "
        f"reloaded, it gives {'the same scores bit for bit' if same else 'OTHER scores'}."
    )


def _follow_outcome(f: Mapping[str, Any]) -> str:
    first, change, shift = f["stretches"][0], _against_last(f), f["recovery"]
    better = "better" if change < 0 else "worse"
    frozen = "never" if shift["frozen"] is None else f"after {_rows(shift['frozen'])}"
    ours = "never" if shift["learning"] is None else f"after {_rows(shift['learning'])}"
    kept = " from the first row to the last" if f["state_bytes_constant"] else ", and did NOT stay that small"
    return (
        f"In the first hour the fresh model is wrong by {first['learning']:.2f} and the last value by "
        f"{first['last']:.2f}: it knows nothing yet. After the first week it is {100 * abs(change):.0f} % {better} "
        f"than the last value, disturbances included. After the shift of {f['shift_size']:.0f} its error is as usual "
        f"again {ours} (mean of an hour, within a quarter), that of the frozen model {frozen}. "
        f"{f['rows'] / f['seconds']:,.0f} rows per second with learning; the state has {f['state_bytes']:,} "
        f"bytes{kept}."
    )


def _switch_outcome(s: Mapping[str, Any]) -> str:
    ours, book, delta = (s["steps_to_know"][name] for name in ("ssmn_rls", "textbook", "ssmn_delta"))
    level = s["settled"]
    return (
        f"Below {s['known_below']:g} of the signal's variance, {s['systems']} systems on average: SSMN with the rls "
        f"read-out {_when(ours['fresh'])} from the start and {_when(ours['switched'])} after the switch; recursive "
        f"least squares {_when(book['fresh'])} and {_when(book['switched'])}; SSMN with the delta read-out, which "
        f"costs far less a step, {_when(delta['fresh'])} and {_when(delta['switched'])}. In the end the error is "
        f"{level['ssmn_rls']:.4f}, {level['textbook']:.4f} and {level['ssmn_delta']:.4f}; {s['noise']:g} of it is "
        f"noise. The rls read-out is recursive least squares computed in another way: the textbook is what it should "
        f"meet, and cannot beat here."
    )


def _when(steps: int | None) -> str:
    return "not within the steps shown" if steps is None else f"in {_rows(steps, 'step')}"


def _story_outcome(s: Mapping[str, Any]) -> str:
    same = s["reloaded_identical"] and s["future_identical"]
    reload = "bit for bit the same, and so is all that follows" if same else "NOT the same"
    parent = "was left untouched" if s["parent_unchanged"] else "was CHANGED"
    return (
        f"After {s['position']:,} readings the state was saved ({s['file_bytes']:,} bytes in "
        f"{s['save_milliseconds']:.0f} ms) and reloaded ({s['load_milliseconds']:.0f} ms): {reload}. The parent of the "
        f"fork {parent}. From an hour after the shift on, those who saw it are wrong by {s['error_shifted']:.2f} on "
        f"average, the fork that did not by {s['error_unshifted']:.2f}."
    )


def _stretches_table(followed: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><td>{stretch['name']}<td>{stretch['rows']:,}<td>{stretch['learning']:.2f}<td>{stretch['frozen']:.2f}"
        f"<td>{stretch['last']:.2f}</tr>"
        for stretch in followed["stretches"]
    )
    return f"""<div class="scroll"><table><tbody><tr><th>mean absolute error<th>rows<th>learning<th>frozen<th>last value
</tr>{body}</tbody></table></div>
<p class="small">Each reading is predicted from those before it; after lost ones, from the last that came. The frozen
model learned a week and then no more (neither read-out nor memory; its normalisation goes on). Ridge and forgetting of
both were chosen on these readings, for each what served it best of those tried. Running normalisation at a rate of
{followed["config"]["norm_rate"]:g}; read-out by recursive least squares, forgetting
{followed["config"]["readout_forget"]:g} a step.</p>"""


def _settings_note(switched: Mapping[str, Any]) -> str:
    def said(settings: Mapping[str, Any]) -> str:
        named = {key.removeprefix("readout_"): value for key, value in settings.items() if key != "readout"}
        return ", ".join(f"{key} {value:g}" for key, value in named.items())

    of = {name: said(settings) for name, settings in switched["settings"].items()}
    return f"""<p class="small">x' = A x + B u + noise in four dimensions; x and u are told, x' is to be predicted.
Settings were chosen on other systems, each way from a grid of its own: rls read-out {of["ssmn_rls"]}; recursive least
squares {of["textbook"]} (the same grid); delta read-out {of["ssmn_delta"]}. Read-outs see the inputs alone.</p>"""


def _facts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    followed, machine = numbers["follow"], numbers["machine"]
    config = followed["config"]
    return [
        (
            "Model",
            f"{followed['parameters']:,} random parameters that never change, width {config['hidden_dim']}, layers "
            f"{', '.join(config['layer_types'])}, window {config['window_size']}; its output layer is zero, so that "
            "all it says is what its read-out has learned",
        ),
        (
            "Readings",
            "temperature of a large industrial machine, every 5 minutes, with four labelled windows: "
            "`machine_temperature_system_failure` of the Numenta Anomaly Benchmark (MIT licence)",
        ),
        (
            "Machine",
            f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; "
            f"threads: {numbers['threads']}",
        ),
    ]


PAGE = Page(
    "A sensor, watched and followed",
    _lead,
    _highlights,
    (
        Section(
            "anomalies",
            "A real sensor: what is new in it",
            plots.watched,
            "watch",
            "Dots inside the shaded windows, which people who knew the machine labelled: a planned shutdown and a "
            "failure are among them. No flag looks ahead: each score is given before the next row is seen.",
            _watch_outcome,
        ),
        Section(
            "prediction",
            "The next reading, learned while it runs",
            plots.followed,
            "follow",
            "In the middle, the blue line comes to lie below the green one: the model has learned more than to repeat "
            "the last value. Below, how long it needs after the shift.",
            _follow_outcome,
            _stretches_table,
        ),
        Section(
            "switch",
            "A system is replaced by another",
            plots.switched,
            "switch",
            "The blue line on the pale one: the read-out learns as quickly as the textbook's recursive least squares, "
            "from the first step on and again after the switch.",
            _switch_outcome,
            _settings_note,
        ),
        Section(
            "state",
            "A state is a value: save, reload, fork, go on",
            plots.futures,
            "story",
            "The dashed line lies on the pale one: a reloaded state goes on as if nothing had happened. The blue line "
            "is a fork of the same state, to which the shift never comes.",
            _story_outcome,
        ),
    ),
    _facts,
)
