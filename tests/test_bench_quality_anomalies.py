"""The part `anomalies` of the quality benchmark: the scoring by hand, the rivals by hand, the part on two streams."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssmn.bench import quality
from ssmn.bench.quality.series import anomalies, nab
from ssmn.errors import FileError, ShapeError


def labelled(rows: int, *windows: tuple[int, int], name: str = "real/x.csv") -> nab.Labelled:
    times = np.datetime64("2024-01-01", "ns") + np.arange(rows) * np.timedelta64(1, "h")
    return nab.Labelled(name, times, np.random.default_rng(rows).standard_normal(rows), windows)


def at(stream: nab.Labelled, *rows: int) -> np.ndarray:
    scores = np.zeros(len(stream.values))
    scores[list(rows)] = 1.0
    return scores


STREAMS = [labelled(100, (40, 49)), labelled(61), labelled(83, (20, 26), (50, 70))]


def test_the_null_and_the_perfect_detector() -> None:
    null = [np.zeros(len(stream.values)) for stream in STREAMS]
    perfect = [at(stream, *(left for left, _ in stream.windows)) for stream in STREAMS]
    for profile in nab.PROFILES.values():
        assert nab.score(STREAMS, null, 0.5, profile).score == 0.0
        assert nab.score(STREAMS, perfect, 0.5, profile).score == pytest.approx(100.0)
        assert nab.best(STREAMS, perfect, profile).threshold == 1.0
    nothing = nab.best(STREAMS, [np.ones(len(stream.values)) for stream in STREAMS])
    assert (nothing.threshold, nothing.score) == (math.inf, 0.0)


def test_flags_by_hand() -> None:
    (stream,) = [labelled(100, (40, 49))]
    assert stream.probation == 15

    def raw(*rows: int, profile: nab.Profile = nab.STANDARD) -> float:
        span = profile.tp + profile.fn
        return nab.score([stream], [at(stream, *rows)], 0.5, profile).score / 100 * span - profile.fn

    first = 2 / (1 + math.exp(-5)) - 1
    middle = (2 / (1 + math.exp(-2.5)) - 1) / first
    assert raw(40) == pytest.approx(1.0)
    assert raw(45) == pytest.approx(middle)
    assert raw(45, 46, 49) == pytest.approx(middle)  # once, and at its first row
    assert raw(14) == pytest.approx(-1.0)  # probation
    assert raw(15) == pytest.approx(-1.11)
    assert raw(45, 52) == pytest.approx(middle + 0.11 * (2 / (1 + math.exp(5 / 3)) - 1))
    assert raw(45, 90) == pytest.approx(middle - 0.11)
    assert raw(15, profile=nab.PROFILES["reward low FP"]) == pytest.approx(-1.22)
    assert raw(14, profile=nab.PROFILES["reward low FN"]) == pytest.approx(-2.0)
    verdict = nab.score([stream], [at(stream, 30, 45, 52)], 0.5)
    assert (verdict.found, verdict.windows, verdict.outside) == (1, 1, 2)


def test_probation_is_at_most_750_rows() -> None:
    assert labelled(4_999).probation == 749
    assert labelled(9_000).probation == 750


def test_the_best_threshold_is_that_of_a_search_through_all() -> None:
    draw = np.random.default_rng(0)
    scores = [np.round(draw.random(len(stream.values)) ** 4, 2) for stream in STREAMS]
    for stream, one in zip(STREAMS, scores, strict=True):
        for left, right in stream.windows:
            one[(left + right) // 2] = 0.9
    levels = [*np.unique(np.concatenate(scores)).tolist(), math.inf]
    for profile in nab.PROFILES.values():
        found = nab.best(STREAMS, scores, profile)
        every = {level: nab.score(STREAMS, scores, level, profile) for level in levels}
        assert found.score == pytest.approx(max(one.score for one in every.values()))
        assert every[found.threshold] == found


def test_scores_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"real/x\.csv has scores of shape \[3\]; wanted \[61\]"):
        nab.best(STREAMS[1:2], [np.zeros(3)])


def save(folder: Path, streams: list[nab.Labelled]) -> None:
    windows = {}
    for stream in streams:
        path = folder / "data" / stream.name
        path.parent.mkdir(parents=True, exist_ok=True)
        moments = [str(time.astype("datetime64[s]")).replace("T", " ") for time in stream.times]
        lines = [f"{moment},{value!r}" for moment, value in zip(moments, stream.values.tolist(), strict=True)]
        path.write_text("\n".join(["timestamp,value", *lines]) + "\n", encoding="utf-8")
        windows[stream.name] = [[f"{moments[a]}.000000", f"{moments[b]}.000000"] for a, b in stream.windows]
    (folder / "labels").mkdir()
    (folder / "labels" / "combined_windows.json").write_text(json.dumps(windows), encoding="utf-8")


def test_reading(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="wanted a copy of the Numenta Anomaly Benchmark"):
        nab.read(tmp_path)
    written = [labelled(31, (12, 17), name="b/y.csv"), labelled(47, name="a/x.csv")]
    save(tmp_path, written)
    first, second = nab.read(tmp_path)
    assert (first.name, first.category, first.windows) == ("a/x.csv", "a", ())
    assert second.windows == ((12, 17),)
    np.testing.assert_array_equal(second.values, written[0].values)
    np.testing.assert_array_equal(second.times, written[0].times)
    labels = tmp_path / "labels" / "combined_windows.json"
    labels.write_text(labels.read_text().replace("12:00:00", "12:00:01"), encoding="utf-8")
    with pytest.raises(FileError, match=r"y\.csv has no rows at the times"):
        nab.read(tmp_path)
    (tmp_path / "data" / "a" / "x.csv").write_text("time,value\n2024-01-01,x\n", encoding="utf-8")
    with pytest.raises(FileError, match="wanted lines of time,value"):
        nab.read(tmp_path)


def test_rivals_by_hand() -> None:
    stream = labelled(60)
    values = stream.values
    found = anomalies.windowed_gaussian(stream, 10)
    assert found[40] == pytest.approx(abs(values[40] - values[30:40].mean()) / values[30:40].std())
    chart = anomalies.ewma_chart(stream, 0.25, 10)
    smooth = values[0]
    for value in values[:41]:
        smooth += 0.25 * (value - smooth)
    width = values[30:40].std() * math.sqrt(0.25 / 1.75)
    assert chart[40] == pytest.approx(abs(smooth - values[30:40].mean()) / width)
    seasonal = anomalies.seasonal_naive(stream, 1)
    differences = np.concatenate([np.zeros(24), values[24:] - values[:-24]])
    assert not seasonal[:24].any()
    assert seasonal[50] == pytest.approx(abs(differences[50] - differences[:50].mean()) / differences[:50].std())
    np.testing.assert_array_equal(anomalies.only_higher(np.array([1.0, 3, 2, 2, 4]), 2), [1, 3, -1, -1, 4])
    silenced = anomalies._silenced(np.array([0.4, 0.9, 0.95, 0.6, 0.5]), 0.5, 2)
    np.testing.assert_array_equal(silenced, [0.4, 0.9, 0, 0, 0.5])


def test_noise_is_the_same_for_the_same_seed() -> None:
    for kind in anomalies.NOISES:
        one = anomalies.noise(kind, 50, 3)
        np.testing.assert_array_equal(one, anomalies.noise(kind, 50, 3))
        assert not np.array_equal(one, anomalies.noise(kind, 50, 4)) or kind == "counts, mean 0.02"


def test_the_part_runs_on_two_streams(tmp_path: Path) -> None:
    pytest.importorskip("river", reason='the extra "timeseries" is not installed')
    streams = [labelled(420, (300, 340), name="a/x.csv"), labelled(390, (250, 280), name="b/y.csv")]
    streams[0].values[310] = 30.0
    streams[1].values[255] = -30.0
    save(tmp_path / "NAB", streams)
    found = quality.measure_quality(["anomalies"], out=str(tmp_path / "out"), series=str(tmp_path), quick=True)
    assert found["complete"]
    scores, categories, parts, halves, meaning = quality.tables(found)
    assert scores.rows[0][0] == "ssmn"
    assert scores.rows[0][4] == "2 of 2"
    assert float(scores.rows[0][1]) > 80
    assert {row[0] for row in scores.rows} >= {*anomalies.RIVALS, "Numenta HTM (published)"}
    assert [row[0] for row in categories.rows] == ["a", "b"]
    assert len(parts.rows) == 1 + len(anomalies.ABLATIONS)
    assert [row[0] for row in halves.rows] == ["first, third, ...", "second, fourth, ..."]
    assert meaning.rows[0] == ["claimed", "1.00", "0.33", "0.11", "0.01"]
