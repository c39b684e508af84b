"""The front, the heads and the read-out of models of series, beside what can be computed by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ssmn
from ssmn import errors
from ssmn.config import SSMNConfig, middle_of
from ssmn.layers import PlasticReadout, RunningFront
from ssmn.layers.front import LIMIT
from ssmn.layers.heads import spread_out
from ssmn.models import SSMN
from ssmn.training.losses import crps, gaussian_nll, pinball, prediction_loss

NAN = math.nan
SIZES: dict[str, Any] = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "window_size": 5, "memory_heads": 2}


def model_of(**settings: Any) -> SSMN:
    """A model whose output layer has weights, also where it begins without."""
    model = SSMN(SSMNConfig.from_dict({"input_dim": 3, "output_dim": 2, **SIZES, **settings}))
    model.output.reset_parameters()
    return model


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)


def by_hand(values: list[float], rate: float) -> tuple[list[float], list[float]]:
    """Mean and deviation after each value, by the formula of `RunningFront`, with NaN for what is missing."""
    mean = variance = 0.0
    count = 0
    means, deviations = [], []
    for value in values:
        if not math.isnan(value):
            count = min(count + 1, math.ceil(1 / rate))
            r, d = max(rate, 1 / count), value - mean
            if count > 8 and variance > (2.3e-16 * mean) ** 2:
                limit = 4 * math.sqrt(variance)
                d = min(max(d, -limit), limit)
            mean, variance = mean + r * d, (1 - r) * (variance + r * d * d)
        means.append(mean)
        deviations.append(math.sqrt(variance))
    return means, deviations


def test_statistics_are_plain_averages_at_first() -> None:
    _, state = RunningFront(1, rate=0.1)(column(2.0, 4.0, 9.0))
    assert state.mean.item() == pytest.approx(5.0)
    assert state.deviation.item() == pytest.approx(np.std([2.0, 4.0, 9.0]))
    assert state.count.item() == 3


def test_statistics_by_hand_with_gaps_outliers_and_a_shift() -> None:
    generator = np.random.default_rng(0)
    values = [*generator.normal(3, 2, 40), 1e6, NAN, *generator.normal(3, 2, 9), *generator.normal(90, 2, 30)]
    fronted, state = RunningFront(1, rate=0.07, masks_missing=True)(column(*values))
    means, deviations = by_hand([float(value) for value in values], 0.07)
    statistics = fronted.statistics
    assert statistics is not None
    np.testing.assert_allclose(statistics.mean[0, :, 0], means, rtol=1e-12)
    np.testing.assert_allclose(statistics.scale[0, :, 0], deviations, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.mean_before[0, 1:, 0], means[:-1], rtol=1e-12)
    wanted = np.clip((np.array(values) - means) / np.maximum(deviations, 1e-12), -LIMIT, LIMIT)
    np.testing.assert_allclose(fronted.x[0, :, 0], np.nan_to_num(wanted), atol=1e-9)
    assert state.count.item() == 15
    assert statistics.mean[0, 40, 0] < 4  # one outlier of a million moves little,
    assert statistics.mean[0, -1, 0] > 70  # and a shift is followed within about 2 / rate


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_level_shift_is_followed(rate: float) -> None:
    settled = round(3 / rate)
    noise = torch.randn(1, 2 * settled, 1, dtype=torch.float64)
    noise[:, settled:] += 50
    fronted, _ = RunningFront(1, rate=rate)(noise)
    assert fronted.statistics is not None
    after = fronted.statistics.mean[0, :, 0]
    assert after[settled + round(1.5 / rate)] > 25
    assert abs(float(fronted.x[0, -1, 0])) < 3


def test_a_large_offset_costs_no_precision() -> None:
    noise = torch.randn(2, 900, 3).round(decimals=1) * 8
    front = RunningFront(3, rate=0.02)
    plain, _ = front(noise)
    state, pieces = None, []
    for piece in (noise + 2.0**20).split(7, 1):
        fronted, state = front(piece, state)
        pieces.append(fronted.x)
    torch.testing.assert_close(torch.cat(pieces, 1), front(noise + 2.0**20)[0].x, atol=1e-5, rtol=1e-5)
    exact, _ = front((noise + 2.0**20).double() - 2.0**20)
    torch.testing.assert_close(torch.cat(pieces, 1), exact.x.float(), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(plain.x, exact.x.float(), atol=0.02, rtol=0.02)


def test_a_constant_is_no_trouble() -> None:
    values = torch.full((1, 60, 1), 7.0)
    values[0, 50:] = 8.0
    fronted, state = RunningFront(1, rate=0.1)(values)
    assert fronted.x.isfinite().all()
    assert not fronted.x[0, :50].any()
    assert fronted.x[0, 50, 0] == pytest.approx(3.0)  # (1 − r) / √(r (1 − r))
    assert state.mean.item() > 7.5


def test_absent_rows_hand_their_time_on() -> None:
    front = RunningFront(2, rate=None, masks_missing=True)
    x = torch.tensor([[[1.0, NAN], [NAN, NAN], [NAN, NAN], [2.0, 3.0], [NAN, NAN]], [[1.0, 1.0]] * 5])
    elapsed = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]).expand(2, -1)
    fronted, state = front(x, elapsed=elapsed)
    assert fronted.mask is not None
    assert fronted.mask.tolist() == [[True, False, False, True, False], [True] * 5]
    assert fronted.elapsed is not None
    assert fronted.elapsed[0, [0, 3]].tolist() == [1.0, 14.0]
    assert torch.equal(fronted.elapsed[1], elapsed[1])
    assert state.pending.tolist() == [16.0, 0.0]
    assert fronted.absent is not None
    assert fronted.absent[0, 0].tolist() == [False, True]
    later, state = front(torch.ones(2, 1, 2), state)
    assert later.elapsed is not None
    assert later.elapsed.tolist() == [[17.0], [1.0]]
    assert not state.pending.any()


def test_a_missing_row_is_the_same_as_a_longer_wait() -> None:
    model = model_of(missing="mask", normalise="running")
    x = torch.randn(1, 9, 3)
    gap = x.clone()
    gap[:, 4:6] = NAN
    y, state = model(gap)
    assert not y[:, 4:6].any()
    elapsed = torch.ones(1, 7)
    elapsed[0, 4] = 3
    kept = [0, 1, 2, 3, 6, 7, 8]
    alone, after = model(x[:, kept], elapsed=elapsed)
    torch.testing.assert_close(y[:, kept], alone)
    assert max(difference.relative for difference in state.diff(after)) < 1e-5


def test_outputs_come_back_in_the_units_of_their_columns() -> None:
    model = model_of(normalise="running", targets=(2, 0))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([1.0, -2.0]))
    x = torch.randn(1, 30, 3) * torch.tensor([1.0, 5.0, 100.0]) + torch.tensor([7.0, 0.0, -500.0])
    y, state = model(x)
    front = state.front
    assert isinstance(front, ssmn.state.FrontState)
    wanted = front.mean[0, [2, 0]] + torch.tensor([1.0, -2.0]) * front.deviation[0, [2, 0]]
    torch.testing.assert_close(y[0, -1], wanted)
    prediction, _ = model.predict(x)
    torch.testing.assert_close(prediction.in_units(), y)
    torch.testing.assert_close(prediction.normalised(y)[0, -1], torch.tensor([1.0, -2.0]), atol=1e-4, rtol=1e-4)
    assert prediction.settled is not None
    assert prediction.settled[0, :, 0].tolist() == [False] * 7 + [True] * 23


def test_outputs_that_speak_of_no_column_stay_as_they_are() -> None:
    torch.manual_seed(1)
    plain = model_of(normalise="running", targets=())
    x = torch.randn(1, 12, 3)
    y, _ = plain(1e4 + x)
    assert y.abs().max() < 20


def test_heads() -> None:
    x = torch.randn(2, 11, 3)
    for settings, shape in (
        ({}, (2, 11, 2)),
        ({"head": "gaussian"}, (2, 11, 2, 2)),
        ({"head": "quantile", "quantiles": (0.05, 0.3, 0.45, 0.9)}, (2, 11, 2, 4)),
    ):
        y, state = model_of(**settings)(x)
        assert y.shape == shape
        y_t, _ = model_of(**settings).step(x[:, 0], state)
        assert y_t.shape == (2, *shape[2:])


def test_quantiles_never_cross_and_begin_as_the_normal_ones() -> None:
    config = SSMNConfig(input_dim=1, output_dim=1, head="quantile", quantiles=(0.1, 0.25, 0.5, 0.975))
    begun = spread_out(torch.zeros(1, 4), config)
    torch.testing.assert_close(begun[0, 0], torch.tensor([-1.281552, -0.67449, 0.0, 1.959964]))
    wild = spread_out(30 * torch.randn(500, 4), config)
    assert (wild.diff(dim=-1) >= 0).all()
    assert middle_of((0.1, 0.45, 0.9)) == 1


def test_gaussian_losses_by_hand() -> None:
    output, target = torch.tensor([[1.0, 2.0]]), torch.tensor([4.0])
    wanted = math.log(2) + 0.5 * math.log(2 * math.pi) + 9 / 8
    assert gaussian_nll(output, target).item() == pytest.approx(wanted)
    assert pinball(torch.tensor([1.0, 3.0]), torch.tensor(2.0), (0.1, 0.7)).tolist() == pytest.approx([0.1, 0.3])
    # Levels of 0.25 and 0.75 stand for half of (0, 1) each.
    assert crps(torch.tensor([1.0, 3.0]), torch.tensor(0.0), (0.25, 0.75)).item() == pytest.approx(0.75 + 0.75)


def test_crps_of_many_quantiles_is_that_of_the_distribution() -> None:
    shares = tuple((n + 0.5) / 400 for n in range(400))
    quantiles = torch.special.ndtri(torch.tensor(shares, dtype=torch.float64))
    exact = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) + math.erf(1 / math.sqrt(2)) - 1 / math.sqrt(math.pi)
    assert crps(quantiles, torch.tensor(1.0, dtype=torch.float64), shares).item() == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("head", ["point", "gaussian", "quantile"])
def test_losses_leave_out_what_is_unknown_or_unsettled(head: str) -> None:
    model = model_of(head=head, normalise="running", missing="mask")
    x = torch.randn(2, 20, 3) * 100
    prediction, _ = model.predict(x)
    target = torch.randn(2, 20, 2) * 100
    loss = prediction_loss(prediction, target)
    changed = target.clone()
    changed[:, :7] += 1e6
    assert prediction_loss(prediction, changed) == loss
    gaps = target.clone()
    gaps[0, 12, 1] = NAN
    assert prediction_loss(prediction, gaps) != loss
    assert prediction_loss(prediction, torch.full_like(target, NAN)) == 0
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[1, 9] = True
    single = prediction_loss(prediction, target, mask)
    changed = torch.where(mask.unsqueeze(-1), target, NAN)
    torch.testing.assert_close(prediction_loss(prediction, changed), single)


def features(hidden: Tensor) -> Tensor:
    one = torch.ones_like(hidden[..., :1])
    return torch.cat([hidden, one], -1) / math.sqrt(2)


def test_delta_by_hand() -> None:
    torch.manual_seed(3)
    readout = PlasticReadout(4, 2, "delta", eta=0.3, forget=0.1)
    output, hidden, target = (torch.randn(1, 6, width, dtype=torch.float64) for width in (2, 4, 2))
    target[0, 2] = NAN
    target[0, 4, 1] = NAN
    elapsed = torch.tensor([[1.0, 2.0, 1.0, 0.5, 3.0, 1.0]], dtype=torch.float64)
    y, state = readout(output, hidden, target=target, elapsed=elapsed)
    phi, weights, wanted = features(hidden)[0], torch.zeros(5, 2, dtype=torch.float64), []
    for t in range(6):
        for o in range(2):
            if t and not target[0, t, o].isnan():
                kept = 0.9 ** elapsed[0, t]
                error = target[0, t, o] - output[0, t - 1, o] - kept * weights[:, o] @ phi[t - 1]
                weights[:, o] = kept * weights[:, o] + 0.3 * error * phi[t - 1] / phi[t - 1].square().sum()
        wanted.append(output[0, t] + weights.T @ phi[t])
    torch.testing.assert_close(y[0], torch.stack(wanted))
    torch.testing.assert_close(state.memory[0], weights)


@pytest.mark.parametrize("forget", [0.0, 0.05])
def test_least_squares_in_closed_form(forget: float) -> None:
    torch.manual_seed(4)
    readout = PlasticReadout(4, 3, "rls", forget=forget, ridge=0.2)
    output, hidden, target = (torch.randn(1, 30, width, dtype=torch.float64) for width in (3, 4, 3))
    target[0, 5, 1] = NAN
    y, _ = readout(output, hidden, target=target)
    phi, kept = features(hidden)[0], 1 - max(forget, 1e-6)
    learned = [t for t in range(1, 30) if t != 5]
    for t in (3, 17, 29):
        rows = [s for s in learned if s <= t]
        weight = torch.tensor([kept ** sum(1 for later in rows if later > s) for s in rows], dtype=torch.float64)
        keys, errors = phi[[s - 1 for s in rows]], target[0, rows] - output[0, [s - 1 for s in rows]]
        moment = (keys.T * weight) @ keys
        ridge = 0.2 + 1e-6 * moment.trace()
        solved = torch.linalg.solve(moment + ridge * torch.eye(5, dtype=torch.float64), (keys.T * weight) @ errors)
        torch.testing.assert_close(y[0, t], output[0, t] + solved.T @ phi[t])


@pytest.mark.parametrize("rule", ["delta", "rls"])
def test_a_read_out_that_is_told_nothing_does_not_move(rule: Any) -> None:
    torch.manual_seed(5)
    readout = PlasticReadout(4, 2, rule, forget=0.1)
    output, hidden, target = (torch.randn(2, 9, width) for width in (2, 4, 2))
    _, state = readout(output, hidden, target=target)
    told_nothing, after = readout(output, hidden, state)
    assert not torch.equal(told_nothing, output)  # but it still corrects
    assert torch.equal(after.memory, state.memory)
    frozen, kept = readout(output, hidden, state, target=target, plasticity=ssmn.Plasticity(frozen=True))
    assert torch.equal(frozen, told_nothing)
    assert torch.equal(kept.memory, state.memory)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 4] = True
    emptied, fresh = readout(output, hidden, state, reset=reset)
    torch.testing.assert_close(emptied[0, :4], told_nothing[0, :4])
    assert torch.equal(emptied[0, 4:], output[0, 4:])
    assert not fresh.memory[0].any()
    assert fresh.memory[1].any()


@pytest.mark.parametrize("rule", ["delta", "rls"])
def test_the_read_out_is_a_constant_in_training(rule: Any) -> None:
    readout = PlasticReadout(3, 2, rule)
    hidden, target = torch.randn(1, 6, 3, dtype=torch.float64), torch.randn(1, 6, 2, dtype=torch.float64)
    output = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    y, _ = readout(output, hidden.requires_grad_(), target=target)
    assert torch.equal(torch.autograd.grad(y.sum(), output, retain_graph=True)[0], torch.ones_like(output))
    assert torch.autograd.grad(y.sum(), hidden, allow_unused=True)[0] is None


@pytest.mark.parametrize("head", ["point", "gaussian", "quantile"])
def test_gradients_of_the_losses(head: str) -> None:
    """Numerically, in float64, for the input and the output layer; the statistics are constants."""
    torch.manual_seed(6)
    model = model_of(head=head, input_dim=2).double()
    x, target = torch.randn(1, 10, 2, dtype=torch.float64), torch.randn(1, 10, 2, dtype=torch.float64)

    def values(x: Tensor, bias: Tensor) -> Tensor:
        outcome = torch.func.functional_call(model, {"output.bias": bias}, (x,))[0]
        if head == "point":
            return (outcome - target).square()
        if head == "gaussian":
            return gaussian_nll(outcome, target)
        return pinball(outcome, target, model.config.quantiles)

    bias = model.output.bias.detach().clone().requires_grad_()
    torch.autograd.gradcheck(values, (x.requires_grad_(), bias))


def test_gradients_through_the_front_take_its_statistics_as_given() -> None:
    front = RunningFront(2, rate=0.2)
    x = torch.randn(1, 12, 2, dtype=torch.float64, requires_grad=True)
    fronted, _ = front(x)
    assert fronted.statistics is not None
    gradient = torch.autograd.grad(fronted.x.sum(), x)[0]
    torch.testing.assert_close(gradient[0, 1:], 1 / fronted.statistics.scale[0, 1:])


def test_static_and_future_inputs_are_read_packed_and_alone() -> None:
    model = model_of(static_dim=4, future_dim=1)
    x, future, static = torch.randn(1, 13, 3), torch.randn(1, 13, 1), torch.randn(2, 4)
    packed, state = model(x, future=future, static=static, cu_seqlens=torch.tensor([0, 5, 13]))
    for number, (first, last) in enumerate(itertools.pairwise((0, 5, 13))):
        piece = slice(first, last)
        alone, after = model(x[:, piece], future=future[:, piece], static=static[number : number + 1])
        torch.testing.assert_close(packed[:, piece], alone)
        assert state.select([number]).position.item() == after.position.item()
    other, _ = model(x[:, :5], future=future[:, :5] + 1, static=static[:1])
    assert not torch.allclose(other, packed[:, :5])
    mask = torch.ones(1, 5, dtype=torch.bool)
    mask[0, 2] = False
    holed = future[:, :5].clone()
    holed[0, 2] = NAN
    assert model(x[:, :5], future=holed, static=static[:1], mask=mask)[0].isfinite().all()


def test_settings_that_are_off_leave_no_trace() -> None:
    plain = SSMNConfig(input_dim=3, output_dim=2, **SIZES)
    assert not {"missing", "normalise", "norm_rate", "targets", "head", "quantiles", "readout"} & plain.to_dict().keys()
    full = SSMNConfig.from_dict(
        {
            **plain.to_dict(), "missing": "mask", "normalise": "running", "norm_rate": 0.2, "targets": [1, 1],
            "head": "quantile", "quantiles": [0.2, 0.5], "static_dim": 1, "future_dim": 2, "readout": "rls",
            "readout_forget": 0.1, "readout_ridge": 2.0,
        }
    )  # fmt: skip
    assert SSMNConfig.from_dict(full.to_dict()) == full
    assert full.target_columns == (1, 1)


@pytest.mark.parametrize("kind", ["readout", "normalise"])
def test_a_saved_model_may_be_given_what_has_no_weights(kind: str, tmp_path: Any) -> None:
    model = model_of()
    model.save_pretrained(tmp_path)
    loaded = SSMN.from_pretrained(tmp_path, **{kind: {"readout": "rls", "normalise": "running"}[kind]})
    assert torch.equal(loaded.output.weight, model.output.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing": "drop"}, "missing='drop'; wanted one of error, mask"),
        ({"normalise": True}, "normalise=True; wanted one of none, running"),
        ({"norm_rate": 0.0}, r"norm_rate=0.0; wanted a number in \(0, 1\]"),
        ({"head": "mean"}, "head='mean'; wanted one of point, gaussian, quantile"),
        ({"quantiles": (0.5, 0.1)}, r"quantiles=\(0.5, 0.1\); wanted rising shares in \(0, 1\), at least one"),
        ({"quantiles": ("a",)}, r"quantiles=\('a',\); wanted rising shares"),
        ({"quantiles": ()}, r"quantiles=\(\); wanted rising shares"),
        ({"targets": (0, 3)}, r"targets=\(0, 3\); wanted output_dim=2 input columns in \[0, 2\], or \(\) for none"),
        ({"targets": (0,)}, r"targets=\(0,\); wanted output_dim=2 input columns"),
        ({"targets": "ab"}, "targets='ab'; wanted output_dim=2 input columns"),
        ({"output_dim": 4, "normalise": "running"}, "targets=None; wanted the input column of each of the 4 outputs"),
        (
            {"output_dim": 4, "readout": "rls"},
            r"targets=None; .* since there are more outputs than inputs \(input_dim=3\); or \(\)",
        ),
        ({"static_dim": -1}, "static_dim=-1; wanted 0 or more"),
        ({"future_dim": 0.5}, "future_dim=0.5; wanted an integer"),
        ({"readout": "lms"}, "readout='lms'; wanted one of none, delta, rls"),
        ({"readout_features": "x"}, "readout_features='x'; wanted one of hidden, inputs, both"),
        ({"readout_eta": 1.5}, r"readout_eta=1.5; wanted a number in \[0, 1\]"),
        ({"readout_forget": 1.0}, r"readout_forget=1.0; wanted a share in \[0, 1\) lost per step"),
        ({"readout_ridge": 0.0}, "readout_ridge=0.0; wanted a positive number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=f"SSMNConfig: {message}"):
        model_of(**settings)


FIVE = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("settings", "options", "error", "message"),
    [
        (
            {},
            {"x": FIVE + NAN},
            errors.RangeError,
            "x is not finite at row 0, step 0; .* or make the model with missing",
        ),
        (
            {"missing": "mask"},
            {"x": FIVE + math.inf},
            errors.RangeError,
            "x is infinite at row 0, step 0; a missing valu",
        ),
        (
            {},
            {"target": FIVE[..., :2]},
            errors.RangeError,
            "target is given, but nothing learns from it; make the model",
        ),
        (
            {"readout": "rls"},
            {"target": FIVE},
            errors.ShapeError,
            r"target is torch.float32 \[2, 5, 3\]; wanted a floating tensor \[B, T, output_dim\] = \[2, 5, 2\]",
        ),
        ({"readout": "rls"}, {"target": 3}, errors.ShapeError, "target is int; wanted a floating tensor"),
        (
            {"readout": "rls"},
            {"target": FIVE[..., :2] + math.inf},
            errors.RangeError,
            "target is infinite; wanted finite numbers, or NaN for what is unknown",
        ),
        ({"future_dim": 4}, {}, errors.ShapeError, r"future is NoneType; wanted a tensor \[2, 5, 4\] \(future_dim=4\)"),
        ({"static_dim": 4}, {"static": FIVE}, errors.ShapeError, r"static is \[2, 5, 3\]; wanted a tensor \[2, 4\]"),
        ({}, {"static": FIVE}, errors.RangeError, "static is given, but the model has none; make it with static_dim"),
        ({"future_dim": 3}, {"future": FIVE + NAN}, errors.RangeError, "future is not finite; wanted finite numbers"),
        (
            {"future_dim": 3},
            {"future": FIVE.double()},
            errors.DtypeError,
            "future is torch.float64 but the weights are",
        ),
    ],
)
def test_bad_inputs_are_refused(settings: Any, options: Any, error: Any, message: str) -> None:
    model = model_of(**settings)
    with pytest.raises(error, match=f"SSMN: {message}"):
        model(**{"x": FIVE, **options})


def test_states_of_other_models_are_refused() -> None:
    plain = model_of().init_state(2)
    with pytest.raises(errors.StateError, match="SSMN: the state has no part for the front; use"):
        model_of(normalise="running")(FIVE, plain)
    with pytest.raises(errors.StateError, match="SSMN: the state has no part for the plastic read-out"):
        model_of(readout="rls")(FIVE, plain)
    with pytest.raises(errors.StateError, match="PlasticReadout: the state is of the rule delta; wanted one of 'rls'"):
        model_of(readout="rls")(FIVE, model_of(readout="delta").init_state(2))
    with pytest.raises(errors.StateError, match="PlasticReadout: the state is of the rule rls; wanted one of 'delta'"):
        model_of(readout="delta")(FIVE, model_of(readout="rls").init_state(2))
    with pytest.raises(errors.StateError, match="RunningFront: the state's mean has shape"):
        model_of(normalise="running")(FIVE, model_of(missing="mask").init_state(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RunningFront(0, 0.1), "RunningFront: columns=0; wanted at least 1"),
        (lambda: RunningFront(1, 2.0), r"RunningFront: rate=2.0; wanted a number in \(0, 1\], or None"),
        (lambda: PlasticReadout(0, 1), "PlasticReadout: features=0; wanted at least 1"),
        (lambda: PlasticReadout(1, 1, "sgd"), "PlasticReadout: rule='sgd'; wanted delta or rls"),  # pyright: ignore
        (lambda: PlasticReadout(1, 1, eta=2.0), r"PlasticReadout: eta=2.0; wanted a number in \[0, 1\]"),
        (lambda: PlasticReadout(1, 1, forget=1.0), "PlasticReadout: forget=1.0; wanted a share"),
        (lambda: PlasticReadout(1, 1, ridge=0.0), "PlasticReadout: ridge=0.0; wanted a positive number"),
    ],
)
def test_bad_layer_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        build()


def test_bad_losses_are_refused() -> None:
    with pytest.raises(
        errors.ShapeError, match=r"gaussian_nll: output has shape \[3\]; wanted the target's \[3\] and 2"
    ):
        gaussian_nll(torch.zeros(3), torch.zeros(3))
    with pytest.raises(errors.RangeError, match=r"pinball: quantiles=\(0.0,\); wanted shares in \(0, 1\)"):
        pinball(torch.zeros(3, 1), torch.zeros(3), (0.0,))


def test_a_stream_takes_the_options_of_series() -> None:
    model = model_of(readout="rls", static_dim=1, future_dim=2, normalise="running")
    x, future, static = torch.randn(1, 8, 3), torch.randn(1, 8, 2), torch.ones(1, 1)
    stream = ssmn.Stream(model)
    stepped = [stream.step(x[:, t], target=x[:, t, :2], future=future[:, t], static=static) for t in range(8)]
    whole = ssmn.Stream(model).push(x, target=x[..., :2], future=future, static=static)
    torch.testing.assert_close(torch.stack(stepped, 1), whole)


@pytest.mark.parametrize("head", ["point", "gaussian", "quantile"])
def test_with_a_read_out_an_untrained_output_says_nothing(head: str) -> None:
    config = SSMNConfig.from_dict({"input_dim": 3, "output_dim": 2, **SIZES, "readout": "rls", "head": head})
    prediction, _ = SSMN(config).predict(torch.randn(2, 7, 3))
    assert not prediction.points().any()


def test_memory_that_is_reset_forgets_what_the_read_out_learned() -> None:
    model = model_of(readout="rls", normalise="running")
    x = torch.randn(1, 20, 3)
    _, state = model(x, target=x[..., :2])
    emptied = state.reset_memory()
    assert isinstance(emptied.head, ssmn.state.ReadoutState)
    assert not emptied.head.memory.any()
    assert isinstance(emptied.front, ssmn.state.FrontState)
    assert emptied.front.mean.any()


@pytest.mark.slow
@pytest.mark.parametrize("forget", [0.0, 0.001])
def test_least_squares_stay_sound_over_a_million_steps(forget: float) -> None:
    """Steps in float32; first a system, then one direction alone for half a million steps, then another system."""
    generator = np.random.default_rng(0)
    readout, state, rest = PlasticReadout(3, 1, "rls", forget=forget, ridge=0.1), None, 1_000_000
    systems = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, 2.0]])
    for system, excited, steps in ((0, True, 250_000), (0, False, 500_000), (1, True, 250_000)):
        rest -= steps
        hidden = torch.from_numpy(generator.normal(size=(1, steps, 3)).astype(np.float32))
        if not excited:
            hidden[..., 1:] = 0.0
        hidden = torch.nn.functional.normalize(hidden, dim=-1)
        truth = hidden @ systems[system].unsqueeze(-1)
        target = torch.cat([torch.zeros(1, 1, 1), truth[:, :-1]], 1)
        for piece in range(0, steps, 10_000):
            part = slice(piece, piece + 10_000)
            y, state = readout(torch.zeros_like(truth[:, part]), hidden[:, part], state, target=target[:, part])
            assert y.isfinite().all()
    assert rest == 0
    assert (y - truth[:, -10_000:]).abs().max() < (0.1 if forget else 3.0)
