"""The part on chaotic series: its equations, its models against their definitions, and a run at tiny size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ssmn.bench.quality.frame import Options, finished, work
from ssmn.bench.quality.series import chaos
from ssmn.bench.report import markdown_table

ECHO = {
    "units": 23, "radius": 0.9, "leak": 0.4, "input": 0.7, "bias": 0.3, "connected": 1.0, "direct": True,
    "ridge": 1e-8, "increment": True,
}  # fmt: skip


def test_mackey_glass_without_feedback_decays() -> None:
    """Before the delayed part is above zero nothing is fed back: x decays as exp(−t / 10)."""
    start = [0.0] * 170 + [1.0]
    course = chaos.mackey_glass(17, start, 16)
    assert course.shape == (160,)
    assert course == pytest.approx(np.exp(-0.01 * np.arange(1, 161)), abs=1e-9)


def test_mackey_glass_stays_at_its_fixed_point() -> None:
    """0.2 / (1 + x¹⁰) = 0.1 at x = 1."""
    assert np.abs(chaos.mackey_glass(30, [1.0] * 301, 40) - 1).max() < 1e-12


def test_mackey_glass_between_steps_is_accurate() -> None:
    """With a delayed part that is the fixed point and a little of a line, the solution is known to second order."""
    slope = 1e-4
    start = [1 + slope * (step - 170) * 0.1 for step in range(171)]
    course = chaos.mackey_glass(17, start, 5)
    # around x = 1: u' = -0.4 u(t - 17) - 0.1 u, with u(s) = slope * s before 0
    t = 0.1 * np.arange(1, 51)
    force_at_zero, force_slope = 0.4 * slope * 17, -0.4 * slope
    line = 10 * force_slope
    rest = 10 * (force_at_zero - line)
    wanted = 1 + rest + line * t - rest * np.exp(-0.1 * t)
    assert np.abs(course - wanted).max() < 0.02 * np.abs(wanted - 1).max()


def test_lorenz_obeys_its_equations() -> None:
    course = chaos.lorenz((1.0, 2.0, 20.0), 400)
    x, y, z = course[1:-1].T
    slopes = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)
    assert np.abs((course[2:] - course[:-2]) / 0.04 - slopes).max() < 0.05 * np.abs(slopes).max()
    still = math.sqrt(8 / 3 * 27)
    assert chaos.lorenz((still, still, 27.0), 9) == pytest.approx(np.tile([still, still, 27.0], (9, 1)))


def test_exponents() -> None:
    """Of a linear map exactly; of the systems roughly what the module says."""
    assert chaos.exponent(lambda x: 3 * x, np.array([1.0, 0.0]), 0.5, 7) == pytest.approx(2 * math.log(3))
    start = chaos.lorenz((1.0, 2.0, 20.0), 300)[-1]
    found = chaos.exponent(lambda at: chaos.lorenz((at[0], at[1], at[2]), 25)[-1], start, 0.5, 150)
    assert found == pytest.approx(chaos.SYSTEMS["Lorenz"].exponent, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [17, 30])
def test_exponents_of_mackey_glass(delay: int) -> None:
    kept, rows = -10 * delay - 1, 2 * delay
    start = chaos.mackey_glass(delay, [0.9] * -kept, 1000)[kept:]
    found = chaos.exponent(lambda at: chaos.mackey_glass(delay, at.tolist(), rows)[kept:], start, rows, 1200)
    assert found == pytest.approx(chaos.SYSTEMS[f"Mackey-Glass {delay}"].exponent, rel=0.1)


def test_echo_state_network_is_that_of_reservoirpy() -> None:
    pytest.importorskip("reservoirpy", reason='the extra "bench" is not installed')
    rows = np.random.default_rng(0).standard_normal((31, 2))
    made = chaos.EchoState(2, ECHO, seed=5)
    states = made.read(rows)
    assert states == pytest.approx(made.node.run(rows), abs=1e-12)
    assert np.abs(states).max() > 0.1
    again = made.step(states[[3, 17]], rows[[4, 18]])
    assert again == pytest.approx(states[[4, 18]], abs=1e-12)


@pytest.mark.parametrize("kind", chaos.KINDS)
@pytest.mark.parametrize("columns", [1, 3])
def test_reading_a_stretch_equals_stepping_through_it(kind: str, columns: int) -> None:
    if kind == "echo-state network":
        pytest.importorskip("reservoirpy", reason='the extra "bench" is not installed')
    random = np.random.default_rng(1)
    rows = random.standard_normal((29, columns))
    for _ in range(5):
        setting = chaos._draw(kind, columns, random, 80)
        made = chaos.reader(kind, columns, setting, seed=2)
        states = made.read(rows)
        assert states.shape == (29, made.state_numbers) and made.state_numbers <= 80
        features = made.features(states, rows)
        assert features.shape[1] <= 80 + (kind == "echo-state network") * (1 + columns)
        state = states[:1]
        for at in range(1, 29):
            state = made.step(state, rows[at : at + 1])
            assert state == pytest.approx(states[at : at + 1], abs=1e-12)
            assert made.features(state, rows[at : at + 1]) == pytest.approx(features[at : at + 1], abs=1e-9)


def test_window_takes_every_stride_th_row_from_the_last_on() -> None:
    made = chaos.WindowReader(3, 2, 1, lambda values: values)
    rows = np.arange(7.0)[:, None]
    assert made.features(made.read(rows), rows)[-1].tolist() == [2, 4, 6]
    assert made.state_numbers == 5


def test_products_by_hand() -> None:
    found = chaos.products(2, 3)(np.array([[2.0, 3.0]]))
    assert found.tolist() == [[1, 2, 3, 4, 6, 9, 8, 12, 18, 27]]


def test_swiglu_is_that_of_the_blocks() -> None:
    import torch

    from ssmn.layers import SwiGLU

    random = np.random.default_rng(3)
    layer = SwiGLU(4, 6).double()
    windows = random.standard_normal((5, 3))
    found = chaos.swiglu(3, 10, 0.8, 0.4, seed=3)(windows)
    drawn = np.random.default_rng(3)
    gate, up = (0.8 / math.sqrt(3) * drawn.standard_normal((3, 6)) for _ in range(2))
    biases = [0.4 * drawn.standard_normal(6) for _ in range(2)]
    with torch.no_grad():
        for linear, weight, bias in zip((layer.gate, layer.up), (gate, up), biases, strict=True):
            linear.weight.copy_(torch.from_numpy(np.concatenate([weight, bias[None]]).T))
        layer.down.weight.copy_(torch.eye(4, 6))
        wanted = layer(torch.from_numpy(np.concatenate([windows, np.ones((5, 1))], 1)))
    assert found.shape == (5, 10)
    assert found[:, :4] == pytest.approx(wanted.numpy())
    assert found[:, 6:9] == pytest.approx(windows)


def test_ridge_is_the_closed_form() -> None:
    random = np.random.default_rng(4)
    features, targets = random.standard_normal((40, 7)), random.standard_normal((40, 2))
    moment = features.T @ features
    penalty = 0.3 * np.trace(moment) / 7
    wanted = np.linalg.solve(moment + penalty * np.eye(7), features.T @ targets)
    assert chaos.ridge(features, targets, 0.3) == pytest.approx(wanted)


def test_a_model_that_knows_the_map_is_never_lost_and_one_that_stands_still_soon() -> None:
    """The logistic map is a product of the last row; its error doubles per row, so it is followed for long."""
    course = [0.3]
    for _ in range(700):
        course.append(3.9 * course[-1] * (1 - course[-1]))
    rows = np.array(course)[:, None]
    given = chaos.Data(rows, {"test": np.array([600, 610])}, 15)
    setting = {"ridge": 1e-14, "increment": False}
    made = chaos.WindowReader(1, 1, 1, chaos.products(1, 2))
    lost, error, features = chaos.valid_times(made, given, 600, "test", setting)
    assert lost == [15, 15] and error < 1e-8 and features == 3
    still = chaos.WindowReader(1, 1, 1, lambda values: np.ones((len(values), 1)))
    lost, _, _ = chaos.valid_times(still, given, 600, "test", setting)
    mean = rows[chaos.WASHOUT + 1 : 600].mean()
    for begin, rowsuntil in zip((600, 610), lost, strict=True):
        beyond = np.abs(rows[begin : begin + 15, 0] - mean) > chaos.THRESHOLD
        assert rowsuntil == (int(beyond.argmax()) if beyond.any() else 15)
    assert min(lost) < 15


def test_starts_do_not_overlap_the_training_part_nor_each_other() -> None:
    given = chaos.data("Lorenz, first coordinate", 0, 400, 3, 1.0)
    assert given.starts["validation"][0] == 400
    assert given.starts["test"][0] >= given.starts["validation"][-1] + given.horizon
    assert len(given.rows) >= given.starts["test"][-1] + given.horizon
    assert given.rows[:400].mean() == pytest.approx(0, abs=1e-12) and given.rows[:400].std() == pytest.approx(1)
    assert not np.array_equal(given.rows, chaos.data("Lorenz, first coordinate", 1, 400, 3, 1.0).rows)


def test_at_tiny_size(tmp_path: Path) -> None:
    pytest.importorskip("reservoirpy", reason='the extra "bench" is not installed')
    options = Options(tmp_path, seeds=2, quick=True)
    assert work(chaos.PART, options)
    done = finished(chaos.PART, tmp_path)
    assert len(done) == len(chaos.KINDS) * (1 + 2)
    choice = done["lorenz-first-coordinate-products-of-the-last-rows-choice"]["results"]
    assert choice["validation"] == max(choice["all"]) and len(choice["all"]) == 2
    tested = done["lorenz-first-coordinate-products-of-the-last-rows-1"]
    assert tested["settings"]["setting"] == choice["setting"] and len(tested["results"]["times"]) == 3
    text = markdown_table(chaos.PART.tables(done)[0])
    assert all(f"| {kind} |" in text for kind in chaos.KINDS)
