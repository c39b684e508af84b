"""The mutable holder: it does what a caller who carries the state by hand would do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fakes import FakeConfig, FakeModel, random_state
from ssmn.errors import RangeError, StateError
from ssmn.state import StreamState
from ssmn.stream import Stream


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(3))


def test_pushes_and_steps_equal_one_call(model: FakeModel, x: torch.Tensor) -> None:
    stream = Stream(model, batch_size=2)
    y = [stream.push(x[:, :4]), stream.push(x[:, 4:4]), stream.step(x[:, 4])[:, None], stream.push(x[:, 5:])]
    whole, state = model(x)
    torch.testing.assert_close(torch.cat(y, 1), whole, rtol=0, atol=1e-5)
    assert max(entry.relative for entry in stream.state.diff(state)) <= 1e-5
    assert stream.position.tolist() == [11, 11]
    assert repr(stream) == "Stream(FakeModel, position=[11, 11])"


def test_options_reach_the_model(model: FakeModel, x: torch.Tensor) -> None:
    stream, plain = Stream(model, batch_size=2), Stream(model, batch_size=2)
    torch.testing.assert_close(stream.push(x, gain=2.0), plain.push(2 * x))
    torch.testing.assert_close(stream.step(x[:, 0], gain=0.5), plain.step(x[:, 0] / 2))
    with pytest.raises(TypeError, match="gian"):
        stream.push(x, gian=2.0)


def test_no_gradient_unless_asked_for(model: FakeModel, x: torch.Tensor) -> None:
    assert not Stream(model, batch_size=2).push(x).requires_grad
    stream = Stream(model, batch_size=2, grad=True)
    stream.push(x[:, :5])
    stream.fork(1)[0].step(x[:, 5]).sum().backward()
    assert model.weight.grad is not None


def test_a_failing_push_leaves_the_state(model: FakeModel, x: torch.Tensor) -> None:
    stream = Stream(model, batch_size=2)
    stream.push(x)
    before = stream.state
    kept = before.clone()
    broken = x.clone()
    broken[1, 7] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        stream.push(broken)
    with pytest.raises(ValueError, match="not finite"):
        stream.step(broken[:, 7])
    assert stream.state is before
    assert before.diff(kept).identical


def test_forks_diverge_and_leave_the_parent(model: FakeModel, x: torch.Tensor) -> None:
    stream = Stream(model, batch_size=2)
    stream.push(x)
    stream.checkpoint()
    kept = stream.state.clone()
    left, right = stream.fork(2)
    left.push(x)
    right.push(-x)
    assert not left.state.diff(right.state).identical
    assert stream.state.diff(kept).identical
    assert left.checkpoints == ()
    with pytest.raises(RangeError, match="fork: n=0"):
        stream.fork(0)


def test_checkpoints(model: FakeModel, x: torch.Tensor) -> None:
    stream = Stream(model, batch_size=2)
    for verb in (stream.rollback, stream.forget):
        with pytest.raises(StateError, match="there is no checkpoint; make one with checkpoint"):
            verb()
    first = stream.checkpoint()
    stream.push(x[:, :3])
    assert stream.checkpoint("three") == "three"
    y = stream.push(x[:, 3:])
    stream.rollback()
    assert stream.position.tolist() == [3, 3]
    assert torch.equal(stream.push(x[:, 3:]), y)
    stream.rollback()
    stream.rollback(first)
    assert stream.position.tolist() == [0, 0]
    assert stream.checkpoints == (first, "three") == ("checkpoint 1", "three")
    with pytest.raises(StateError, match="rollback: name='four'; wanted one of 'checkpoint 1', 'three'"):
        stream.rollback("four")

    stream.step(x[:, 0])
    stream.checkpoint(first)
    assert stream.checkpoints == ("three", first)
    assert stream.checkpoint() == "checkpoint 2"
    stream.forget()
    stream.forget("three")
    stream.rollback()
    assert stream.checkpoints == (first,)
    assert stream.position.tolist() == [1, 1]


def test_reset_memory_keeps_position_and_window(model: FakeModel, x: torch.Tensor) -> None:
    stream = Stream(model, batch_size=2)
    stream.push(x)
    wanted = stream.state.reset_memory()
    stream.reset_memory()
    assert stream.state.diff(wanted).identical
    assert stream.position.tolist() == [11, 11]


def test_files_and_assignment(model: FakeModel, x: torch.Tensor, tmp_path: Path) -> None:
    stream, other = Stream(model, batch_size=2), Stream(model)
    stream.push(x)
    stream.save(tmp_path / "a")
    assert StreamState.load(tmp_path / "a", model).diff(stream.state).identical
    other.load(tmp_path / "a")
    assert torch.equal(other.push(x), stream.push(x))
    other.state = random_state(model, 3)
    assert other.push(torch.zeros(3, 1, 6)).shape == (3, 1, 6)

    heavier = Stream(FakeModel(seed=4))
    with pytest.raises(StateError, match="the weights are not"):
        heavier.load(tmp_path / "a")
    heavier.load(tmp_path / "a", allow_other_weights=True)
    assert heavier.position.tolist() == [11, 11]


def test_a_state_of_another_model_is_refused(model: FakeModel) -> None:
    with pytest.raises(StateError, match=r"Stream: layers.0.keys has shape .* in the given state but .* this stream's"):
        Stream(model, random_state(FakeModel(FakeConfig(window=2))))
