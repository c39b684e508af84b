"""The mutable holder: it does what a caller who carries the state by hand would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import FakeConfig, FakeModel, random_state
from ssmn import native
from ssmn.config import Plasticity
from ssmn.errors import ConfigError, DtypeError, RangeError, SSMNError, StateError
from ssmn.state import StreamState
from ssmn.stream import Stream
from tiny import row_model, text_model


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


@pytest.mark.skipif(not native.status().available, reason="no native library")
class TestEngine:
    """The engine under a stream: what torch does, in the same words."""

    @pytest.mark.parametrize("make", [text_model, row_model])
    def test_it_does_what_torch_does(self, make: Any) -> None:
        torch.manual_seed(1)
        model = make()
        x = torch.randint(256, (3, 20)) if make is text_model else torch.randn(3, 20, 2)
        settings = Plasticity(eta_scale=[0.5, 1.0, 2.0])
        elapsed = torch.rand(3, 6) + 0.5
        found = []
        for backend in ("torch", "engine"):
            stream = Stream(model, batch_size=3, backend=backend)
            y = [stream.push(x[:, :7]), stream.step(x[:, 7]).unsqueeze(1)]
            y += [stream.push(x[:, 8:12], plasticity=settings), stream.push(x[:, 12:12])]
            y.append(stream.push(x[:, 12:18], elapsed=elapsed))
            mark = stream.checkpoint()
            stream.push(x[:, 18:])
            stream.rollback(mark)
            left, right = stream.fork(2)
            left.reset_memory()
            y += [left.step(x[:, 18]).unsqueeze(1), right.push(x[:, 18:], plasticity=settings)]
            assert right.backend == backend
            assert stream.position.tolist() == [18] * 3
            assert left.position.tolist() == [19] * 3
            found.append((torch.cat(y, 1), right.state))
        (y, state), (y_engine, state_engine) = found
        torch.testing.assert_close(y_engine, y, rtol=0, atol=1e-4)
        assert max(entry.relative for entry in state_engine.diff(state)) <= 1e-4

    def test_files_and_batches_change_hands(self, tmp_path: Path) -> None:
        model = text_model()
        stream = Stream(model, batch_size=2, backend="engine")
        stream.push(torch.randint(256, (2, 9)))
        stream.save(tmp_path / "two.safetensors")
        other = Stream(model)
        other.load(tmp_path / "two.safetensors")
        assert other.state.diff(stream.state).identical
        stream.state = stream.state.select([1])
        assert stream.step(torch.tensor([5])).shape == (1, 256)
        assert stream.position.tolist() == [10]

    def test_a_failing_push_leaves_the_state(self) -> None:
        stream = Stream(row_model(), backend="engine")
        stream.push(torch.randn(1, 4, 2))
        kept = stream.state
        for wrong in (torch.full((1, 3, 2), torch.nan), torch.zeros(2, 3, 2), torch.zeros(1, 3, 2).double()):
            with pytest.raises(SSMNError):
                stream.push(wrong)
        with pytest.raises(DtypeError, match="x is list; wanted a tensor"):
            stream.push([1])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="mask"):
            stream.push(torch.zeros(1, 3, 2), mask=torch.ones(1, 3))
        assert stream.state.diff(kept).identical

    def test_auto_takes_it_where_it_runs(self) -> None:
        for model, grad, backend in (
            (row_model(), False, "engine"), (row_model().double(), False, "torch"), (row_model(), True, "torch"),
        ):  # fmt: skip
            assert Stream(model, backend="auto", grad=grad).backend == backend

    def test_what_it_cannot_do_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="the engine records no gradients; wanted grad=False"):
            Stream(row_model(), backend="engine", grad=True)
        with pytest.raises(RangeError, match="backend='gpu'; wanted auto, engine or torch"):
            Stream(row_model(), backend="gpu")  # type: ignore[arg-type]
        with pytest.raises(DtypeError, match="float64"):
            Stream(row_model().double(), backend="engine")
