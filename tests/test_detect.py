"""The anomaly detector: laws of a stream, a case by hand, the memory against the library's own, files, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmn import ops
from ssmn.errors import ConfigError, FileError, RangeError, ShapeError
from ssmn.files import read_file, write_file
from ssmn.series import Detector, DetectorConfig
from ssmn.series.detect import _Column
from test_docs import ROOT, blocks

SMALL = DetectorConfig(threshold=0.02, warm_up=30, half_life=200.0, refractory=7, scales=(1, 5))


def stream(rows: int = 613, columns: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Waves with noise, a row every 20 minutes, and some missing values."""
    draw = np.random.default_rng(3)
    times = np.datetime64("2024-02-28T23:50", "ns") + np.arange(rows) * np.timedelta64(20, "m")
    values = np.sin(np.arange(rows)[:, None] * 2 * np.pi / 72) + 0.2 * draw.standard_normal((rows, columns))
    values[draw.random((rows, columns)) < 0.03] = math.nan
    values[200] = math.nan
    return values, times


def test_any_cut_of_a_stream_equals_the_whole_and_step_equals_push() -> None:
    values, times = stream()
    whole = Detector(2, SMALL).push(values, times)
    assert 3 < whole.flags.sum() < 100
    pieces = Detector(2, SMALL)
    found = [pieces.push(values[a:b], times[a:b]) for a, b in ((0, 1), (1, 77), (77, 77), (77, 400))]
    single = [pieces.step(row, time) for row, time in zip(values[400:], times[400:], strict=True)]
    assert pieces.rows == len(values)
    np.testing.assert_array_equal(
        np.concatenate([*(one.scores for one in found), [one.score for one in single]]), whole.scores
    )
    np.testing.assert_array_equal(
        np.concatenate([*(one.flags for one in found), [one.flag for one in single]]), whole.flags
    )
    np.testing.assert_array_equal(
        np.concatenate([*(one.columns for one in found), [one.column for one in single]]), whole.columns
    )


def test_nothing_depends_on_what_is_still_to_come() -> None:
    values, times = stream()
    changed = values.copy()
    changed[301:] = 99.0
    before, after = Detector(2, SMALL).push(values, times), Detector(2, SMALL).push(changed, times)
    np.testing.assert_array_equal(before.scores[:301], after.scores[:301])
    assert after.scores[301] > before.scores[301]


def test_a_row_without_values_is_as_if_it_were_not_there() -> None:
    values, times = stream(columns=1)
    present = ~np.isnan(values[:, 0])
    whole, rest = Detector(1, SMALL).push(values, times), Detector(1, SMALL).push(values[present], times[present])
    np.testing.assert_array_equal(whole.scores[present], rest.scores)
    np.testing.assert_array_equal(whole.flags[present], rest.flags)
    assert not whole.scores[~present].any()


def test_a_column_is_watched_by_itself_and_named() -> None:
    values, times = stream(columns=1)
    alone = Detector(1, SMALL).push(values, times)
    both = Detector(2, SMALL).push(np.hstack([np.full_like(values, 4.0), values]), times)
    assert set(both.columns[both.scores > 0]) == {1}
    odds = alone.scores / (1 - alone.scores)
    np.testing.assert_allclose(both.scores, odds / (odds + 2), rtol=1e-12)


def test_evidence_and_score_by_hand() -> None:
    config = DetectorConfig(warm_up=20, half_life=100.0, scales=(1,))
    detector = Detector(1, config)
    found = detector.push([0.0] * 21 + [1.0, 2.0])
    assert not found.scores[:21].any()
    assert found.scores[21] > 0.99  # the first change of a constant
    # Row 23: the three views of the value leave [low, 1]; the difference from the row before, 1 again, does not.
    low = 0.5 - 0.5 * 0.5**0.01
    evidence = 3 * math.sqrt(1 / (1 - low + 3e-9))
    period = 0.32 * 100 * evidence**1.25 / (1 + 0.14 * 100 / 23)
    assert found.scores[22] == pytest.approx(period / (period + 1000), rel=1e-9)


def test_the_memory_is_the_delta_rule_with_the_hour_as_key() -> None:
    draw = np.random.default_rng(0)
    values, hours = draw.standard_normal(400), np.sort(draw.integers(500_000, 500_600, 400))
    config = DetectorConfig(plasticity_eta=0.3, scales=(1,))
    column = _Column(config)
    for value, hour in zip(values.tolist(), hours.tolist(), strict=True):
        column.step(value, hour)
    for slots, memory in ((24, column.memory[:24]), (168, column.memory[24:])):
        keys = torch.nn.functional.one_hot(torch.from_numpy(hours % slots), slots).double()
        visits = keys.cumsum(0)[torch.arange(400), hours % slots]
        eta = torch.clamp(1 / visits, min=0.3)
        k, v = keys[None, :, None], torch.from_numpy(values)[None, :, None, None]
        _, final = ops.synaptic_memory(
            k, k, v, eta=eta[None, :, None], log_decay=torch.zeros(1, 400, 1).double(), rule="delta",
            output_final_state=True, backend="reference",
        )  # fmt: skip
        assert final is not None
        np.testing.assert_allclose(final[0, 0, :, 0].numpy(), memory, atol=1e-12)


def test_an_event_gives_one_flag_and_a_shift_is_seen_at_once() -> None:
    draw = np.random.default_rng(5)
    values = draw.standard_normal(900)
    values[600:640] += 15.0
    found = Detector().push(values)
    assert found.flags[600]
    assert found.flags[600:650].sum() == 1
    assert not found.news[601:651].any() and found.scores[601:651].any()
    eager = Detector(config=DetectorConfig(refractory=0)).push(values)
    np.testing.assert_array_equal(eager.scores, found.scores)
    np.testing.assert_array_equal(eager.flags, eager.scores >= 0.5)


def test_the_clock_shows_what_is_usual_at_another_hour() -> None:
    hours = np.datetime64("2024-01-01T00") + np.arange(24 * 40)
    values = 10.0 * (hours.astype(np.int64) % 24 >= 12) + 0.1 * np.random.default_rng(1).standard_normal(24 * 40)
    values[24 * 30 + 3] = 10.0
    assert np.flatnonzero(Detector().push(values, hours).flags).tolist() == [24 * 30 + 3]
    assert Detector().push(values).scores[24 * 30 + 3] < 0.5
    unknown = np.full(len(hours), np.datetime64("NaT"), "datetime64[h]")
    np.testing.assert_array_equal(Detector().push(values, unknown).scores, Detector().push(values).scores)


def test_noise_is_flagged_about_as_often_as_the_score_says() -> None:
    draw = np.random.default_rng(11)
    flags = sum(Detector().push(draw.standard_normal(4_000)).flags[1_000:].sum() for _ in range(4))
    assert 12 / 3 <= flags <= 12 * 3


def test_save_and_load_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    values, times = stream()
    detector = Detector(2, SMALL)
    size = detector.nbytes
    detector.push(values[:333], times[:333])
    path = tmp_path / "state.safetensors"
    detector.save(path)
    again = Detector.load(path)
    assert (again.rows, again.columns, again.config, again.nbytes) == (333, 2, SMALL, size)
    np.testing.assert_array_equal(
        again.push(values[333:], times[333:]).news, detector.push(values[333:], times[333:]).news
    )


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_file(path, {"x": np.zeros(3)}, {"kind": "checkpoint"})
    with pytest.raises(FileError, match=r"is not a detector's; wanted a file of Detector\.save"):
        Detector.load(path)
    Detector().save(path)
    tensors, header = read_file(path)
    tensors["0.means"] = np.zeros(5)
    write_file(path, tensors, header)
    with pytest.raises(FileError, match=r"means is float64 \[5\]; wanted float64 \[9\]"):
        Detector.load(path)
    del tensors["0.means"]
    write_file(path, tensors, header)
    with pytest.raises(FileError, match="does not hold a whole detector"):
        Detector.load(path)
    Detector().save(path)
    path.write_bytes(path.read_bytes()[:-3] + b"???")
    with pytest.raises(FileError, match="damaged"):
        Detector.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0; wanted a number above 0 and at most 1"),
        ({"refractory": -1}, "refractory=-1; wanted a whole number from 0"),
        ({"warm_up": 5}, "warm_up=5; wanted a whole number from 20"),
        ({"half_life": 0.5}, "half_life=0.5; wanted a number from 1"),
        ({"plasticity_eta": 1.5}, "plasticity_eta=1.5; wanted a number above 0 and at most 1"),
        ({"scales": (10, 1)}, r"scales=\(10, 1\); wanted rising whole numbers from 1"),
        ({"scales": ()}, r"scales=\(\); wanted rising"),
    ],
)
def test_impossible_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorConfig.from_dict({**DetectorConfig().to_dict(), **change})


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="there is no setting 'treshold'"):
        DetectorConfig.from_dict({"treshold": 0.5})
    with pytest.raises(RangeError, match="columns=0; wanted a whole number from 1"):
        Detector(0)
    with pytest.raises(ShapeError, match=r"values have shape \[4, 3\]; wanted \[N, 2\]"):
        Detector(2).push(np.zeros((4, 3)))
    with pytest.raises(ShapeError, match=r"times are datetime64\[h\] \[3\]; wanted datetime64 \[4\]"):
        Detector().push(np.zeros(4), np.zeros(3, "datetime64[h]"))
    with pytest.raises(ShapeError, match=r"times are int64 \[4\]"):
        Detector().push(np.zeros(4), np.zeros(4, np.int64))
    detector = Detector(2)
    with pytest.raises(RangeError, match="row 1, column 0 is infinite; wanted finite numbers, or NaN"):
        detector.push([[0.0, 1.0], [math.inf, 0.0]])
    assert detector.rows == 0


def test_the_page_on_anomalies_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks(ROOT / "docs" / "anomalies.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/anomalies.md", "exec"), {})
    assert capsys.readouterr().out == "[1083] 0.65\nFalse 0\nTrue\n"
