"""Tasks at uneven times, and the part of the quality benchmark that compares models on them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmn.bench.quality.family import irregular
from ssmn.bench.quality.frame import Options, finished, work
from ssmn.errors import FileError, RangeError
from ssmn.training.irregular import DroppedDigits, DroppedRows, IrregularTask, Waves


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A table whose first column is the hour, and all others the hour of the day."""
    path = tmp_path / "ETT" / "ETTh1.csv"
    path.parent.mkdir()
    rows = (f"x,{hour},{','.join([str(hour % 24)] * 6)}" for hour in range(20 * 720))
    path.write_text("date,a,b,c,d,e,f,g\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_waves_are_asked_where_they_are_hidden() -> None:
    made = Waves(length=40, noise=0.0).episodes("train", 300, generator())
    shown = made.x[..., 1].bool()
    assert torch.equal(shown, ~made.asked)
    assert not made.x[..., 0][made.asked].any()
    # What is shown is what would be asked, but for the scale.
    torch.testing.assert_close(made.x[..., 0][shown], 0.56 * made.target[..., 0][shown])
    assert abs(float(made.target[made.asked].square().mean()) - 1) < 0.25
    assert not made.elapsed[:, 0].any()
    assert abs(float(made.elapsed[:, 1:].mean()) - 1) < 0.05
    assert 0.35 < float(made.asked.float().mean()) < 0.45
    with pytest.raises(RangeError, match="Waves: length=8; wanted more than the 8 steps"):
        Waves(length=8)


def test_digits_lie_where_the_clock_says() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    task = DroppedDigits(kept=20)
    made = task.episodes("test", 9, generator())
    images, labels = load_digits(return_X_y=True)
    tests = [number for number in range(len(labels)) if number % 6 == 5]
    places = made.elapsed.cumsum(1).long()
    for row in range(9):
        fits = [n for n in tests if np.allclose(np.asarray(images)[n][places[row]] / 16, made.x[row, :, 0])]
        assert int(made.target[row, -1]) in {int(np.asarray(labels)[n]) for n in fits}
    assert made.asked.nonzero()[:, 1].unique().tolist() == [19]
    sure = torch.nn.functional.one_hot(made.target, 10).float()
    assert task.error(sure, made) == 0.0 and task.error(-sure, made) == 1.0
    with pytest.raises(RangeError, match="kept=65; wanted 1 to the 64 pixels"):
        DroppedDigits(kept=65)


def test_rows_are_dropped_and_the_gaps_told(series: Path) -> None:
    task = DroppedRows(series / "ETT" / "ETTh1.csv", length=15)
    made = task.episodes("validation", 7, generator())
    scale = (12 * 720) / math.sqrt(12)  # the deviation of hours counted up
    ahead = made.x[..., 7]
    torch.testing.assert_close(made.target[..., 0] * scale, ahead, atol=0.05, rtol=0.01)
    torch.testing.assert_close(made.elapsed[:, 1:], ahead[:, :-1])
    assert abs(float(ahead.mean()) - 2) < 0.3
    hours = made.x[..., 0] * scale + 12 * 720 / 2
    assert hours.min() > 12 * 720 - 1 and hours.max() < 16 * 720
    for wrong, error, message in (
        (lambda: DroppedRows(series / "none.csv"), FileError, "none.csv does not exist; wanted ETTh1.csv"),
        (lambda: DroppedRows(series / "ETT" / "ETTh1.csv", dropped=1.0), RangeError, "dropped=1.0; wanted a share"),
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_a_seed_makes_the_same_episodes() -> None:
    task: IrregularTask = Waves(length=12)
    one, same, other = (task.episodes("train", 3, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.features(), same.features()) and torch.equal(one.target, same.target)
    assert not torch.equal(one.x, other.x)
    assert one.features().shape == (3, 12, 3)


@pytest.mark.parametrize("model", [*irregular.MODELS, *irregular.OTHERS])
def test_models_are_of_equal_size_and_causal(model: str) -> None:
    if model == "CfC":
        pytest.importorskip("ncps")
    torch.manual_seed(0)
    built = irregular.build(model, 3, 2, 2_000)
    assert 0.9 * 2_000 < sum(weight.numel() for weight in built.parameters()) <= 2_000
    x, elapsed = torch.randn(4, 6, 3), torch.rand(4, 6)
    y = built(x, elapsed=elapsed)[0]
    later = x.clone()
    later[:, 4:] += 1
    changed = built(later, elapsed=elapsed)[0]
    torch.testing.assert_close(changed[:, :4], y[:, :4])
    assert not torch.allclose(changed[:, 4:], y[:, 4:])
    if model not in ("LSTM", "GRU"):  # they know the time as a feature alone
        assert not torch.allclose(built(x, elapsed=3 * elapsed + 1)[0], y)


def test_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = Options(tmp_path, seeds=2, quick=True)
    work(irregular.PART, options, only=["waves-AMN-0*", "digits-GRU-0*"])
    runs = finished(irregular.PART, tmp_path)
    assert sorted(runs) == ["digits-GRU-0.003-0", "digits-GRU-0.003-1", "waves-AMN-0.003-0", "waves-AMN-0.003-1"]
    for run in runs.values():
        found = run["results"]
        assert math.isfinite(found["test"]) and found["validation"] != found["test"]
        assert 500 < found["parameters"] <= 600
    (table,) = irregular.PART.tables(runs)
    assert [row[:2] for row in table.rows] == [["digits", "GRU"], ["waves", "AMN"]]
    assert all(len(row) == len(table.head) for row in table.rows)
    # Two runs of one seed are equal, whatever ran in between.
    again = Options(tmp_path / "again", seeds=1, quick=True)
    work(irregular.PART, again, only=["waves-AMN-0*"])
    assert (
        finished(irregular.PART, again.out)["waves-AMN-0.003-0"]["results"]["test"]
        == (runs["waves-AMN-0.003-0"]["results"]["test"])
    )
