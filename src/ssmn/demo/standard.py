"""The demonstration of the Standard model: a real sensor, watched, predicted and disturbed, and systems that switch.

Each function measures one thing and returns plain values; `run` calls them in order. The drawings are
in `ssmn.plots`, the page in `ssmn.demo.standard_page`.
"""

from __future__ import annotations

import itertools
import json
import lzma
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.bench.quality.series.system_identification import least_squares
from ssmn.config import Plasticity, SSMNConfig
from ssmn.demo.measuring import ASSETS, Progress, is_same, saved_and_reloaded, silent, torch_threads
from ssmn.errors import FileError
from ssmn.models import SSMN
from ssmn.probes import machine, resident_bytes
from ssmn.series import Detector, Row, rows_from
from ssmn.state import StreamState
from ssmn.stream import Stream
from ssmn.training.tasks import Batch, LinearSystem

Floats = NDArray[np.float64]

FROZEN = Plasticity(frozen=True)
FEWEST_ROWS = 2_000
PIECE = 256
"""Rows that the model is given at a time; its outputs are those of single steps."""
DAY = 288
"""Readings in a day."""
SHIFT = 40.0
"""How much higher every reading is from the level shift on."""
LOST = 1 / 3
"""Share of the readings that get lost where some do."""
BEFORE_SHIFT = 60
"""Rows from the state that is saved to the level shift."""
RECOVERED = 1.25
"""An error is as before the shift if the next hour's is at most this many times the usual one."""
SYSTEMS = 64
STEPS = 512
SHOWN = 128
"""Steps since a system began that are looked at."""
SETTLED = 0.05
"""Error, as a share of the signal's variance, below which a system counts as known."""
FORGETTING, RIDGES, STEP_SIZES = (0.02, 0.05, 0.1, 0.15), (0.003, 0.03), (0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Sensor:
    """The shipped readings, which stay packed on disk, and what people who knew the machine labelled in them."""

    path: Path
    rows: int
    """Readings that are used."""
    windows: tuple[tuple[np.datetime64, np.datetime64], ...]
    """First and last moment of each labelled anomaly among them."""

    @classmethod
    def shipped(cls, limit: int | None = None) -> Sensor:
        """What comes with the library.

        Args:
            limit: Uses this many readings at most.

        Raises:
            FileError: The files are missing from this installation, or `limit` is too small.
        """
        folder = Path(str(ASSETS))
        path, record = folder / "machine-temperature.csv.xz", folder / "machine-temperature.json"
        if not path.exists() or not record.exists():
            raise FileError(f"demo: {folder} lacks the shipped readings; install the package again, whole.")
        if limit is not None and limit < FEWEST_ROWS:
            raise FileError(f"demo: {limit:,} rows are too few to show anything; wanted at least {FEWEST_ROWS:,}.")
        about = json.loads(record.read_text(encoding="utf-8"))
        whole = cls(path, min(about["rows"], limit or about["rows"]), ())
        *_, last = whole.read()
        assert last.time is not None
        windows = [(np.datetime64(first), np.datetime64(end)) for first, end in about["windows"]]
        return cls(path, whole.rows, tuple((first, end) for first, end in windows if end <= last.time))

    def read(self) -> Iterator[Row]:
        """The readings one after the other, unpacked as they are read."""
        with lzma.open(self.path) as file:
            yield from itertools.islice(rows_from(file), self.rows)

    def values(self) -> Floats:
        """All readings at once."""
        return np.array([row.values[0] for row in self.read()])


def watch(sensor: Sensor, progress: Progress = silent) -> dict[str, Any]:
    """Gives the detector the readings one by one, with their times, and compares its flags with the labels.

    Returns:
        What is to be drawn (of each half hour the row with the highest score), flags and windows found, speed, bytes
        of the detector, growth of the process's memory, and whether reading in pieces gives the same.
    """
    detector = Detector()
    step = max(1, sensor.rows // 100)
    times, values = np.empty(sensor.rows, "datetime64[ns]"), np.empty(sensor.rows)
    scores, flags = np.empty(sensor.rows), np.zeros(sensor.rows, bool)
    resident, early_bytes, seconds = [], 0, 0.0
    for number, row in enumerate(sensor.read()):
        times[number], values[number] = row.time, row.values[0]
        start = time.perf_counter()
        found = detector.step(row.values, row.time)
        seconds += time.perf_counter() - start
        scores[number], flags[number] = found.score, found.flag
        if number == step:
            early_bytes = detector.nbytes
        if number % step == 0:
            resident.append(resident_bytes())
            progress("watch", number, sensor.rows, f"{flags.sum()} flagged")
    progress("watch", sensor.rows, sensor.rows, f"{flags.sum()} flagged, {sensor.rows / seconds:,.0f} rows/s")

    half, pieces = sensor.rows // 2, [Detector(), Detector()]
    in_pieces = np.concatenate(
        [pieces[0].push(values[at : at + 1_000], times[at : at + 1_000]).scores for at in range(0, len(values), 1_000)]
    )
    pieces[1].push(values[:half], times[:half])
    with tempfile.TemporaryDirectory() as folder:
        pieces[1].save(Path(folder) / "detector.safetensors")
        reloaded = Detector.load(Path(folder) / "detector.safetensors")
    after_reload = reloaded.push(values[half:], times[half:]).scores

    inside = [(times >= first) & (times <= last) for first, last in sensor.windows]
    labelled = np.any(inside, axis=0) if inside else np.zeros(sensor.rows, bool)
    # A flag is the one row of its half hour that must not get lost; it lies above all scores.
    ends = [*range(0, sensor.rows, 6), sensor.rows]
    shown = [a + int(np.argmax(scores[a:b] + flags[a:b])) for a, b in itertools.pairwise(ends)]
    tenth = max(1, len(resident) // 10)
    return {
        "rows": sensor.rows,
        "times": [str(moment) for moment in times[shown].astype("datetime64[s]")],
        "values": values[shown].round(2).tolist(),
        "scores": scores[shown].round(4).tolist(),
        "flags": np.flatnonzero(flags[shown]).tolist(),
        "threshold": detector.config.threshold,
        "windows": [[str(moment) for moment in window] for window in sensor.windows],
        "windows_found": sum(bool(flags[rows].any()) for rows in inside),
        "flags_outside": int((flags & ~labelled).sum()),
        "rows_per_second": sensor.rows / seconds,
        "detector_bytes": detector.nbytes,
        "detector_bytes_early": early_bytes,
        "resident_bytes_growth": float(np.median(resident[-tenth:]) - np.median(resident[tenth : 2 * tenth])),
        "pieces_identical": bool(np.array_equal(in_pieces, scores)),
        "reloaded_identical": bool(np.array_equal(after_reload, scores[half:])),
    }


@dataclass(frozen=True)
class Disturbed:
    """The readings with what was done to them.

    Attributes:
        values: [N], NaN where a reading was lost.
        raw: [N], as they were.
        gap: First row of the gap, and the first after it.
        lossy: The same of the days in which a third is lost.
        shift: First row of the level shift, which stays.
        learned: Row from which one of the models may not learn any more.
    """

    values: Floats
    raw: Floats
    gap: tuple[int, int]
    lossy: tuple[int, int]
    shift: int
    learned: int

    @classmethod
    def of(cls, raw: Floats) -> Disturbed:
        """At places that go by the number of rows alone."""
        rows, values = len(raw), raw.copy()
        gap, lossy, shift = int(0.26 * rows), int(0.62 * rows), int(0.44 * rows)
        after_gap, after_lossy = gap + min(DAY, rows // 40), lossy + min(2 * DAY, rows // 20)
        values[shift:] += SHIFT
        values[gap:after_gap] = np.nan
        lost = np.random.default_rng(0).random(after_lossy - lossy) < LOST
        values[lossy:after_lossy][lost] = np.nan
        return cls(values, raw, (gap, after_gap), (lossy, after_lossy), shift, min(7 * DAY, rows // 8))


def fresh_model(**settings: Any) -> SSMN:
    """A model that nobody has trained; its own output is zero, so that all it says is what its read-out has learned."""
    config = SSMNConfig(hidden_dim=16, num_layers=2, num_heads=2, window_size=8, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SSMN(config).eval()
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    return model


def predictor(forget: float = 0.005, ridge: float = 0.001) -> SSMN:
    """The model that `follow` gives the readings to."""
    return fresh_model(
        input_dim=1, output_dim=1, missing="mask", normalise="running", norm_rate=0.003,
        readout="rls", readout_features="both", readout_forget=forget, readout_ridge=ridge,
    )  # fmt: skip


def follow(sensor: Sensor, progress: Progress = silent) -> tuple[dict[str, Any], SSMN, StreamState, Disturbed]:
    """Predicts each reading from those before it, and learns from it; gaps and a level shift are put in.

    Returns:
        (The measurement: absolute errors of the model, of one that may not learn after a week, and of the last
        value, running and by stretch, and the rows until each has recovered from the shift; the model; its state
        `BEFORE_SHIFT` rows before the shift; the disturbed readings.)
    """
    given, model = Disturbed.of(sensor.values()), predictor()
    x = torch.from_numpy(given.values).float()
    rows, saved_at = len(x), given.shift - BEFORE_SHIFT
    learning = Stream(model)
    sizes, seconds, said, saved = [], 0.0, [], learning.state
    for start, end in _pieces((0, saved_at, rows)):
        if start == saved_at:
            saved = learning.state
        begun = time.perf_counter()
        said.append(_predict(learning, x[start:end]))
        seconds += time.perf_counter() - begun
        sizes.append(learning.state.nbytes)
        progress("follow", end, 2 * rows, f"{end / seconds:,.0f} rows/s, learning")
    # What is frozen does better when it has forgotten nothing and trusts little: of the settings tried, its best.
    frozen, said_frozen = Stream(predictor(forget=0.0, ridge=10.0)), []
    for start, end in _pieces((0, given.learned, rows)):
        said_frozen.append(_predict(frozen, x[start:end], FROZEN if start >= given.learned else None))
        progress("follow", rows + end, 2 * rows, "frozen after a week")

    present = np.flatnonzero(np.isfinite(given.values))
    now, before = present[1:], present[:-1]
    truth = given.values[now]
    told = {
        "learning": torch.cat(said).double().numpy()[before],
        "frozen": torch.cat(said_frozen).double().numpy()[before],
        "last": given.values[before],
    }
    errors = {name: np.abs(values - truth) for name, values in told.items()}
    zoom = slice(*np.searchsorted(now, (given.shift - 30, given.shift + 91)))
    points = np.unique(np.linspace(min(DAY, len(now)), len(now), 400).astype(int))
    means = {name: _running_mean(values, points, DAY) for name, values in errors.items()}
    return (
        {
            "rows": rows,
            "seconds": seconds,
            "parameters": model.num_parameters(),
            "config": model.config.to_dict(),
            "state_bytes": learning.state.nbytes,
            "state_bytes_constant": len(set(sizes)) == 1,
            "gap": list(given.gap),
            "lossy": list(given.lossy),
            "shift": given.shift,
            "shift_size": SHIFT,
            "learned": given.learned,
            "stretches": _stretches(given, now, errors),
            "recovery": {name: _recovery(given, now, values) for name, values in errors.items()},
            "points": now[points - 1].tolist(),
            "mean_error": means,
            "series_rows": list(range(0, rows, 12)),
            "series": [None if np.isnan(value) else round(float(value), 2) for value in given.values[::12]],
            "zoom": {
                "rows": (now[zoom] - given.shift).tolist(),
                "truth": truth[zoom].tolist(),
                **{name: values[zoom].tolist() for name, values in told.items()},
            },
        },
        model,
        saved,
        given,
    )


def _pieces(edges: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for first, last in itertools.pairwise(edges):
        yield from ((start, min(start + PIECE, last)) for start in range(first, last, PIECE))


def _predict(stream: Stream, x: Tensor, plasticity: Plasticity | None = None) -> Tensor:
    """What the stream says after each of the readings [T]: [T]. Each is the truth of what it said before."""
    told = x.view(1, -1, 1)
    return stream.push(told, target=told, plasticity=plasticity)[0, :, 0]


def _running_mean(values: Floats, ends: NDArray[np.int64], width: int) -> list[float]:
    total = np.concatenate(([0.0], np.cumsum(values)))
    starts = np.maximum(ends - width, 0)
    return ((total[ends] - total[starts]) / (ends - starts)).tolist()


def _stretches(given: Disturbed, now: NDArray[np.int64], errors: dict[str, Floats]) -> list[dict[str, Any]]:
    """Mean absolute errors of what happens one after the other."""
    gap, lossy, shift, rows = given.gap, given.lossy, given.shift, len(given.values)
    places = [
        ("first hour", 0, 13),
        ("rest of the first day", 13, DAY),
        ("rest of the first week", DAY, given.learned),
        ("until the gap", given.learned, gap[0]),
        ("first hour after the gap", gap[1], gap[1] + 12),
        ("until the level shift", gap[1] + 12, shift),
        ("the shifted reading itself", shift, shift + 1),
        ("first hour after it", shift + 1, shift + 13),
        ("second hour", shift + 13, shift + 25),
        ("until readings get lost", shift + 25, lossy[0]),
        ("while a third is lost", *lossy),
        ("until the end", lossy[1], rows),
    ]
    made = []
    for name, start, end in places:
        here = (now >= start) & (now < end)
        if here.any():
            means = {who: float(values[here].mean()) for who, values in errors.items()}
            made.append({"name": name, "start": start, "rows": int(here.sum()), **means})
    return made


def _recovery(given: Disturbed, now: NDArray[np.int64], errors: Floats) -> int | None:
    """Rows after the first shifted one until an hour's mean error is as usual again; None if it never is."""
    before = (now >= max(given.gap[1] + 12, given.shift - 1_000)) & (now < given.shift)
    after = errors[now > given.shift]
    hours = np.convolve(after, np.full(12, 1 / 12), mode="valid")
    as_usual = np.flatnonzero(hours <= RECOVERED * errors[before].mean())
    return int(as_usual[0]) if as_usual.size else None


def switch(progress: Progress = silent) -> dict[str, Any]:
    """Follows linear systems that are unknown at first and replaced later on, beside the textbook's least squares.

    Each way has the settings that are best on other systems.

    Returns:
        Mean squared error over the systems, as a share of the signal's variance, by steps since the stream began and
        since the switch, and the steps until each way knows the system.
    """
    task = LinearSystem(dim=4, length=STEPS, switch_after=STEPS // 2)
    tuned_on = task.batch(0, batch_size=SYSTEMS // 2, seed=0, split="train")
    tested_on = task.batch(0, batch_size=SYSTEMS, seed=0, split="test")
    grid = [{"forget": forget, "ridge": ridge} for forget in FORGETTING for ridge in RIDGES]
    ways = {
        "ssmn_rls": [{"readout": "rls", **{f"readout_{name}": value for name, value in at.items()}} for at in grid],
        "ssmn_delta": [{"readout": "delta", "readout_eta": eta} for eta in STEP_SIZES],
        "textbook": grid,
    }
    elapsed = tested_on.elapsed
    assert elapsed is not None
    count, total = 0, sum(len(settings) + 1 for settings in ways.values())
    found: dict[str, Any] = {"settings": {}, "fresh": {}, "switched": {}, "steps_to_know": {}}
    for name, settings in ways.items():
        scores = []
        for chosen in settings:
            scores.append(float(_system_errors(name, tuned_on, chosen).mean()))
            count += 1
            progress("switch", count, total, "settings, on other systems")
        best = settings[int(np.argmin(scores))]
        errors = _system_errors(name, tested_on, best)
        count += 1
        progress("switch", count, total, "64 systems")
        found["settings"][name] = best
        found["fresh"][name] = errors[:, :SHOWN].mean(0).tolist()
        found["switched"][name] = _after_switch(errors, elapsed).mean(0).tolist()
        found["steps_to_know"][name] = {part: _first_below(found[part][name]) for part in ("fresh", "switched")}
        found.setdefault("settled", {})[name] = float(np.mean(found["fresh"][name][SHOWN // 2 :]))
    return {
        **found,
        "systems": SYSTEMS,
        "switched_systems": len(_after_switch(elapsed, elapsed)),
        "noise": task.noise,
        "known_below": SETTLED,
    }


def _system_errors(way: str, batch: Batch, settings: dict[str, Any]) -> Tensor:
    """Squared errors [B, T]."""
    if way == "textbook":
        said = least_squares(batch, **settings)
    else:
        width, outputs = batch.inputs.shape[-1], batch.targets.shape[-1]
        model = fresh_model(input_dim=width, output_dim=outputs, readout_features="inputs", **settings)
        with torch.no_grad():
            said, _ = model(batch.inputs, target=batch.inputs[..., :outputs])
    return (said - batch.targets).square().mean(-1)


def _after_switch(values: Tensor, elapsed: Tensor) -> Tensor:
    """The `SHOWN` steps from each row's first switch on, of the rows in which no other comes before."""
    picked = []
    for row, since in zip(values, elapsed, strict=True):
        begins = (since == 0).nonzero().flatten().tolist()[1:]
        if begins and int(since[begins[0] :][:SHOWN].max()) == SHOWN - 1:
            picked.append(row[begins[0] :][:SHOWN])
    return torch.stack(picked)


def _first_below(errors: list[float]) -> int | None:
    """The first step from which five in a row are known."""
    known = np.convolve(np.array(errors) <= SETTLED, np.ones(5), mode="valid") > 4.5
    return int(np.argmax(known)) if known.any() else None


def tell_story(model: SSMN, state: StreamState, given: Disturbed, progress: Progress = silent) -> dict[str, Any]:
    """Saves the state from shortly before the shift, reloads it, forks it, and goes on with all of them.

    Returns:
        File size and times, whether the reloaded state and its future are bit-identical, whether the parent stayed as
        it was, and what each says of the next reading: the state and its copy with the shift, the fork without.
    """
    before = state.clone()
    reloaded, file = saved_and_reloaded(state, model)
    progress("story", 1, 2, "saved, reloaded, forked")
    (other,) = state.fork(1)
    first = given.shift - BEFORE_SHIFT
    rows = slice(first, first + 3 * BEFORE_SHIFT)
    shifted, unshifted = (torch.from_numpy(values[rows]).float() for values in (given.values, given.raw))
    said = {
        "original": _predict(Stream(model, state), shifted),
        "reloaded": _predict(Stream(model, reloaded), shifted),
        "fork": _predict(Stream(model, other), unshifted),
    }
    progress("story", 2, 2, "continued")
    return {
        **file,
        "future_identical": torch.equal(said["original"], said["reloaded"]),
        "parent_unchanged": is_same(state, before),
        "position": int(state.position),
        "shift_after": BEFORE_SHIFT,
        "error_shifted": float((said["original"][:-1] - shifted[1:])[BEFORE_SHIFT + 12 :].abs().mean()),
        "error_unshifted": float((said["fork"][:-1] - unshifted[1:])[BEFORE_SHIFT + 12 :].abs().mean()),
        **{name: values.tolist() for name, values in said.items()},
    }


def run(*, limit: int | None = None, threads: int = 1, progress: Progress = silent) -> dict[str, Any]:
    """The whole demonstration as numbers.

    Args:
        limit: Uses this many of the sensor's readings at most (2,000 or more).
        threads: For the model; more gain nothing at its size.
        progress: Told where each measurement stands.

    Returns:
        `machine`, `sensor`, `threads` and one entry per measurement.

    Raises:
        FileError: The shipped readings are missing, or `limit` is too small.
    """
    started = time.perf_counter()
    sensor = Sensor.shipped(limit)
    with torch_threads(threads):
        watched = watch(sensor, progress)
        followed, model, state, given = follow(sensor, progress)
        switched = switch(progress)
        story = tell_story(model, state, given, progress)
    story["detector_identical"] = watched["reloaded_identical"]
    return {
        "machine": machine(),
        "threads": threads,
        "seconds": time.perf_counter() - started,
        "watch": watched,
        "follow": followed,
        "switch": switched,
        "story": story,
    }
