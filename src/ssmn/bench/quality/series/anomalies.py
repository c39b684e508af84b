"""Anomalies: the Numenta Anomaly Benchmark, our detector beside simple rivals, and what scores mean on plain noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmn.bench.quality.frame import Options, Part, Result, Run, Workplace
from ssmn.bench.quality.series import nab
from ssmn.bench.report import Table
from ssmn.errors import MissingExtraError
from ssmn.series.detect import Detector, DetectorConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssmn.plots import Look

Floats = NDArray[np.float64]
Rival = Callable[..., Floats]

PUBLISHED = {
    "ARTime": 74.9, "Numenta HTM": 70.5, "CAD OSE": 69.9, "KNN-CAD": 58.0, "Random Cut Forest": 51.7,
    "Windowed Gaussian": 39.6,
}  # fmt: skip
"""The benchmark's own scoreboard, standard profile."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "without a clock": {},
    "one scale": {"scales": (1,)},
    "half-life 7,500": {"half_life": 7_500.0},
    "half-life 30,000": {"half_life": 30_000.0},
    "η 0.1": {"plasticity_eta": 0.1},
    "η 0.02": {"plasticity_eta": 0.02},
}
"""What is changed of the default settings."""

HALVES: list[dict[str, Any]] = [
    {"half_life": life, "plasticity_eta": eta} for life in (7_500.0, 15_000.0, 30_000.0) for eta in (0.05, 0.1)
]
REFRACTORY = (25, 50, 100)
"""The grid out of which settings are chosen on half of the streams."""

SILENCE = (0, 50, 100)
"""Rivals: rows in which only a higher score counts; the best is taken."""

CLAIMS = (0.5, 0.75, 0.9, 0.99)
"""Scores whose meaning is measured on noise."""


def windowed_gaussian(stream: nab.Labelled, window: int) -> Floats:
    """Distance from the mean of the last `window` values, in their standard deviations."""
    mean, deviation = _moments(stream.values, window)
    return np.abs(stream.values - mean) / deviation


def seasonal_naive(stream: nab.Labelled, days: int) -> Floats:
    """Difference from the value so many days before, in the standard deviations of all such differences so far."""
    times = np.maximum.accumulate(stream.times)
    before = np.searchsorted(times, times - np.timedelta64(days, "D"), side="right") - 1
    difference = np.where(before >= 0, stream.values - stream.values[np.maximum(before, 0)], 0.0)
    mean, deviation = _moments(difference, len(difference))
    return np.where(before >= 0, np.abs(difference - mean) / deviation, 0.0)


def ewma_chart(stream: nab.Labelled, rate: float, window: int) -> Floats:
    """An EWMA control chart: distance of the exponentially weighted mean from the mean of the last `window` values."""
    mean, deviation = _moments(stream.values, window)
    smooth, found = float(stream.values[0]), np.zeros(len(mean))
    for row, value in enumerate(stream.values.tolist()):
        smooth += rate * (value - smooth)
        found[row] = smooth
    return np.abs(found - mean) / (deviation * np.sqrt(rate / (2 - rate)))


def half_space_trees(stream: nab.Labelled, window: int, trees: int) -> Floats:
    """Half-space trees (Tan, Ting and Liu, 2011) as river has them, on the value scaled by the range seen so far."""
    try:
        from river.anomaly import HalfSpaceTrees
    except ImportError as error:
        raise MissingExtraError(
            "anomalies: river is not installed; type: pip install 'sparse-stream[timeseries]'"
        ) from error
    model = HalfSpaceTrees(n_trees=trees, height=8, window_size=window, seed=0)
    low = high = float(stream.values[0])
    found = np.zeros(len(stream.values))
    for row, value in enumerate(stream.values.tolist()):
        low, high = min(low, value), max(high, value)
        scaled: Any = {"value": (value - low) / (high - low) if high > low else 0.5}
        found[row] = model.score_one(scaled)
        model.learn_one(scaled)
    return found


def _moments(values: Floats, window: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the last `window` values before each."""
    shifted = values - values.mean()  # only against cancellation: the result does not depend on it
    sums = np.concatenate([[0.0], np.cumsum(shifted)])
    squares = np.concatenate([[0.0], np.cumsum(shifted**2)])
    end = np.arange(len(values))
    begin = np.maximum(0, end - window)
    count = np.maximum(1, end - begin)
    mean = (sums[end] - sums[begin]) / count
    spread = np.sqrt(np.maximum((squares[end] - squares[begin]) / count - mean**2, 0.0))
    floor = 1e-6 * (1.0 + np.abs(values))
    return mean + values.mean(), np.maximum(spread, floor)


RIVALS: dict[str, tuple[Rival, list[dict[str, Any]]]] = {
    "windowed Gaussian": (windowed_gaussian, [{"window": window} for window in (500, 2_000, 6_400)]),
    "seasonal naive": (seasonal_naive, [{"days": days} for days in (1, 7)]),
    "EWMA chart": (ewma_chart, [{"rate": rate, "window": 6_400} for rate in (0.05, 0.2, 0.5)]),
    "half-space trees": (half_space_trees, [{"window": window, "trees": 10} for window in (250, 1_000)]),
}
"""Each with the settings that are tried, times those of `SILENCE`; the best by the standard profile counts."""


def only_higher(scores: Floats, rows: int) -> Floats:
    """Scores, but −1 for those that do not exceed all of the last `rows` rows."""
    if rows == 0 or not scores.size:
        return scores
    before = np.concatenate([np.full(rows, -np.inf), scores])
    highest = np.lib.stride_tricks.sliding_window_view(before, rows)[: scores.size].max(axis=1)
    return np.where(scores > highest, scores, -1.0)


def noise(kind: str, rows: int, seed: int) -> Floats:
    """A stream without anomalies, a row every five minutes."""
    draw = np.random.default_rng(seed)
    plain = draw.standard_normal(rows)
    if kind.startswith("AR"):
        share = float(kind.split()[1])
        for row in range(1, rows):
            plain[row] += share * plain[row - 1]
        return plain
    kinds: dict[str, Callable[[], Floats]] = {
        "Gaussian": lambda: plain,
        "uniform": lambda: draw.random(rows),
        "exponential": lambda: draw.exponential(size=rows),
        "Student t, 3": lambda: draw.standard_t(3, rows),
        "log-normal": lambda: np.exp(plain),
        "daily wave": lambda: plain + 3 * np.sin(np.arange(rows) * 2 * np.pi / 288),
        "counts, mean 3": lambda: draw.poisson(3, rows).astype(np.float64),
        "counts, mean 0.02": lambda: draw.poisson(0.02, rows).astype(np.float64),
    }
    return kinds[kind]()


NOISES = (
    "Gaussian", "uniform", "exponential", "Student t, 3", "log-normal", "AR 0.9", "AR 0.99", "daily wave",
    "counts, mean 3", "counts, mean 0.02",
)  # fmt: skip


def runs(options: Options) -> Generator[Run, Result | None, None]:
    """Our detector, what each of its parts is worth, noise, rivals, and the grid for the halves."""
    default = DetectorConfig().to_dict()
    yield Run("detector", {"kind": "detector", "clock": True, "config": default})
    for name, change in ABLATIONS.items():
        config = DetectorConfig(**change).to_dict()
        run = name.replace(" ", "-").replace(",", "").replace("η", "eta")
        yield Run(f"ablation-{run}", {"kind": "detector", "clock": name != "without a clock", "config": config})
    rows = 1_500 if options.quick else 20_000
    yield Run("noise", {"kind": "noise", "rows": rows, "streams": 2, "from": 1_000, "config": default})
    for name, (_, tried) in RIVALS.items():
        yield Run(
            f"rival-{name.replace(' ', '-')}", {"kind": "rival", "name": name, "tried": tried, "silence": SILENCE}
        )
    for number, change in enumerate(HALVES[:1] if options.quick else HALVES):
        settings = {"config": DetectorConfig(**change).to_dict(), "refractory": REFRACTORY}
        yield Run(f"halves-{number}", {"kind": "halves", **settings})


def measure(run: Run, place: Workplace) -> Result | None:
    """Verdicts on the benchmark, or frequencies on noise."""
    settings = run.settings
    if settings["kind"] == "noise":
        return _measure_noise(settings, place)
    streams = nab.read(place.options.series / "NAB")
    if settings["kind"] == "rival":
        return _measure_rival(streams, settings, place)
    config = DetectorConfig.from_dict(settings["config"])
    begun = time.perf_counter()
    scores, news = [], []
    for number, stream in enumerate(streams):
        found = Detector(config=config).push(stream.values, stream.times if settings.get("clock", True) else None)
        scores.append(found.scores)
        news.append(found.news)
        if place.on_step(number + 1, len(streams), stream.name):
            return None
    seconds = time.perf_counter() - begun
    if settings["kind"] == "halves":
        return _measure_halves(streams, scores, settings["refractory"], config.threshold)
    verdicts = {
        name: {
            "best": _plain(nab.best(streams, news, profile)),
            "default": _plain(nab.score(streams, news, config.threshold, profile)),
        }
        for name, profile in nab.PROFILES.items()
    }
    result: Result = {"verdicts": verdicts, "rows_per_second": sum(map(len, scores)) / seconds, "categories": {}}
    for category in sorted({stream.category for stream in streams}):
        chosen = [number for number, stream in enumerate(streams) if stream.category == category]
        group, of_group = [streams[n] for n in chosen], [news[n] for n in chosen]
        levels = {"best": verdicts["standard"]["best"]["threshold"], "default": config.threshold}
        result["categories"][category] = {
            "streams": len(group),
            "rows": sum(len(stream.values) for stream in group),
            **{level: _plain(nab.score(group, of_group, threshold)) for level, threshold in levels.items()},
        }
    return result


def _measure_rival(streams: Sequence[nab.Labelled], settings: Mapping[str, Any], place: Workplace) -> Result | None:
    rival = RIVALS[settings["name"]][0]
    tried: list[Result] = []
    for change in settings["tried"]:
        begun, raw = time.perf_counter(), []
        for number, stream in enumerate(streams):
            raw.append(rival(stream, **change))
            if place.on_step(number + 1, len(streams), stream.name):
                return None
        speed = sum(map(len, raw)) / (time.perf_counter() - begun)
        for rows in settings["silence"]:
            scores = [only_higher(found, rows) for found in raw]
            verdicts = {name: _plain(nab.best(streams, scores, profile)) for name, profile in nab.PROFILES.items()}
            tried.append({"settings": {**change, "silence": rows}, "verdicts": verdicts, "rows_per_second": speed})
    return {"best": max(tried, key=lambda one: one["verdicts"]["standard"]["score"]), "tried": tried}


def _measure_halves(
    streams: Sequence[nab.Labelled], scores: Sequence[Floats], refractory: Sequence[int], threshold: float
) -> Result:
    """For each rest after a flag the verdict on every second stream, and on the others at that threshold."""
    found = []
    for rows in refractory:
        news = [_silenced(one, threshold, rows) for one in scores]
        entry: Result = {"refractory": rows}
        for half in (0, 1):
            chosen = nab.best(streams[half::2], news[half::2])
            other = nab.score(streams[1 - half :: 2], news[1 - half :: 2], chosen.threshold)
            entry[str(half)] = {"chosen on": _plain(chosen), "the others": _plain(other)}
        found.append(entry)
    return {"halves": found}


def _silenced(scores: Floats, threshold: float, rows: int) -> Floats:
    """The news of a detector with another rest after a flag."""
    news, until = scores.copy(), -1
    for row in np.flatnonzero(scores >= threshold).tolist():
        if row > until:
            news[row + 1 : row + 1 + rows] = 0.0
            until = row + rows
    return news


def _measure_noise(settings: Mapping[str, Any], place: Workplace) -> Result | None:
    config, rows, begin = DetectorConfig.from_dict(settings["config"]), settings["rows"], settings["from"]
    times = np.datetime64("2024-01-01", "s") + np.arange(rows) * np.timedelta64(300, "s")
    counted = (rows - begin) * settings["streams"]
    found: dict[str, dict[str, float]] = {}
    for number, kind in enumerate(NOISES):
        news = [
            Detector(config=config).push(noise(kind, rows, seed), times).news[begin:]
            for seed in range(settings["streams"])
        ]
        found[kind] = {str(claim): sum(int((one >= claim).sum()) for one in news) / counted for claim in CLAIMS}
        if place.on_step(number + 1, len(NOISES), kind):
            return None
    return {"frequencies": found}


def _plain(verdict: nab.Verdict) -> dict[str, Any]:
    threshold = verdict.threshold if np.isfinite(verdict.threshold) else None
    return {**asdict(verdict), "score": float(verdict.score), "threshold": threshold}


def tables(finished: Mapping[str, Result]) -> list[Table]:
    """Scores, categories, what each part is worth, the halves, and the meaning of scores."""
    found = []
    if rows := _score_rows(finished):
        head = ["detector", "standard", "low FP", "low FN", "windows found", "flags outside", "rows/s"]
        caption = "one threshold for all streams, the best for each profile unless it says default; found and outside: "
        found.append(
            Table("Numenta Anomaly Benchmark", head, rows, f"{caption}standard; published: its scoreboard", texts=1)
        )
    if "detector" in finished:
        found.append(_category_table(finished["detector"]["results"]["categories"]))
    ablations = {name: run for name, run in finished.items() if name.startswith("ablation-")}
    if ablations and "detector" in finished:
        lines = []
        for name, run in {"detector": finished["detector"], **ablations}.items():
            standard = run["results"]["verdicts"]["standard"]
            lines.append([
                "default settings" if name == "detector" else name.removeprefix("ablation-").replace("-", " "),
                *(f"{standard[level][key]:{form}}" for level in ("best", "default") for key, form in
                  (("score", ".1f"), ("found", "d"), ("outside", "d"))),
            ])  # fmt: skip
        head = ["settings", "best threshold", "found", "outside", "default threshold", "found", "outside"]
        found.append(Table("What the parts are worth", head, lines, "standard profile", texts=1))
    if halves := {name: run for name, run in finished.items() if name.startswith("halves-")}:
        found.append(_halves_table(halves))
    if "noise" in finished:
        frequencies = finished["noise"]["results"]["frequencies"]
        claimed = ["claimed", *(f"{(1 - claim) / claim:.2f}" for claim in CLAIMS)]
        lines = [claimed, *([kind, *(f"{1000 * f[str(claim)]:.2f}" for claim in CLAIMS)] for kind, f in
                            frequencies.items())]  # fmt: skip
        head = ["noise", *(f"score {claim}" for claim in CLAIMS)]
        found.append(Table("Rows of noise with such a score, per 1,000", head, lines, texts=1))
    return found


def _score_rows(finished: Mapping[str, Result]) -> list[list[str]]:
    rows = []
    if "detector" in finished:
        result = finished["detector"]["results"]
        speed = f"{result['rows_per_second']:,.0f}"
        for label, level in (("ssmn", "best"), ("ssmn, default threshold", "default")):
            verdicts = {name: levels[level] for name, levels in result["verdicts"].items()}
            rows.append([label, *_cells(verdicts), speed])
    for name in RIVALS:
        run = finished.get(f"rival-{name.replace(' ', '-')}")
        if run is not None:
            best = run["results"]["best"]
            rows.append([name, *_cells(best["verdicts"]), f"{best['rows_per_second']:,.0f}"])
    if rows:
        rows += [[f"{name} (published)", str(score), "", "", "", "", ""] for name, score in PUBLISHED.items()]
    return rows


def _cells(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    standard = verdicts["standard"]
    return [
        *(f"{verdicts[name]['score']:.1f}" for name in nab.PROFILES),
        f"{standard['found']} of {standard['windows']}",
        str(standard["outside"]),
    ]


def _category_table(categories: Mapping[str, Any]) -> Table:
    rows = []
    for name, of in categories.items():
        cells = [f"{of[level]['score']:.1f}" if of[level]["windows"] else "no windows" for level in ("best", "default")]
        default = of["default"]
        rows.append([
            name, str(of["streams"]), f"{of['rows']:,}", *cells, f"{default['found']} of {default['windows']}",
            str(default["outside"]),
        ])  # fmt: skip
    head = ["category", "streams", "rows", "best threshold", "default threshold", "windows found", "flags outside"]
    return Table("By category", head, rows, "standard profile; found and outside at the default threshold", texts=1)


def _halves_table(runs_of: Mapping[str, Result]) -> Table:
    rows = []
    for half, label in (("0", "first, third, ..."), ("1", "second, fourth, ...")):
        options = [(run["settings"]["config"], entry) for run in runs_of.values() for entry in run["results"]["halves"]]
        config, entry = max(options, key=lambda option: option[1][half]["chosen on"]["score"])
        chosen, other = entry[half]["chosen on"], entry[half]["the others"]
        hindsight = max(one[str(1 - int(half))]["chosen on"]["score"] for _, one in options)
        rows.append([
            label, f"{config['half_life']:,.0f}", str(config["plasticity_eta"]), str(entry["refractory"]),
            f"{chosen['threshold']:.3f}", f"{chosen['score']:.1f}", f"{other['score']:.1f}", f"{hindsight:.1f}",
        ])  # fmt: skip
    head = ["chosen on streams", "half-life", "η", "refractory", "threshold", "score there", "on the others",
            "others in hindsight"]  # fmt: skip
    return Table("Settings and threshold chosen on half of the streams", head, rows, "standard profile", texts=1)


def drawing(finished: Mapping[str, Result], look: Look) -> Figure | None:
    """The standard scores of ours, the rivals and the published detectors."""
    from ssmn import plots

    rows = _score_rows(finished)
    return plots.bars({row[0]: float(row[1]) for row in rows}, look, "standard score", "ssmn") if rows else None


PART = Part("anomalies", "The Numenta Anomaly Benchmark, and scores on noise.", runs, measure, tables, drawing)
