"""States of the engine's streams: forks, resets, and files that the models read and write too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines import CONFIGS, assert_close, every_config, inputs_of, model_of, outputs_of, text_config, vector_config
from ssmn import native
from ssmn.config import StackConfig
from ssmn.engine import Engine
from ssmn.errors import FileError, RangeError, StateError
from ssmn.models import load_model
from ssmn.state import StreamState

pytestmark = pytest.mark.skipif(not native.status().available, reason=native.status().reason)


@every_config
@pytest.mark.parametrize("length", [0, 1, 7, 150])
def test_a_state_goes_there_and_back(config: StackConfig, length: int) -> None:
    model, xs = model_of(config), inputs_of(config, length + 20, 1)
    _, state = outputs_of(model, xs[:length])
    expected, after = outputs_of(model, xs[length:], state=state)
    engine = Engine(model, streams=2)
    engine.set_state(1, state)
    assert state.diff(engine.get_state(1)).identical
    assert (engine.position(0), engine.position(1)) == (0, length)
    assert_close(engine.run(xs[length:], streams=[1]), expected, 2e-5)
    assert max(entry.relative for entry in after.diff(engine.get_state(1))) <= 2e-5
    with torch.no_grad():
        on, _ = model(torch.from_numpy(xs[:5]).transpose(0, 1), engine.get_state(1))
    assert_close(engine.run(xs[:5], streams=[1]), on.transpose(0, 1).numpy(), 2e-5)


@every_config
def test_many_states_go_at_once(config: StackConfig) -> None:
    model = model_of(config)
    engine, alone = Engine(model, streams=4), Engine(model, streams=4)
    for stream, length in enumerate((0, 2, 150, 11)):
        engine.run(inputs_of(config, length, 1), streams=[stream])
    states = [engine.get_state(stream) for stream in range(4)]
    assert StreamState.merge(states).diff(engine.get_states()).identical
    assert StreamState.merge([states[3], states[1]]).diff(engine.get_states([3, 1])).identical
    alone.set_states(engine.get_states([2, 3, 1]), [3, 0, 2])
    assert [alone.position(stream) for stream in range(4)] == [11, 0, 2, 150]
    for stream, state in enumerate((states[3], model.init_state(1), states[1], states[2])):
        assert state.diff(alone.get_state(stream)).identical
    xs = inputs_of(config, 20, 4)
    assert_close(alone.run(xs), engine.run(xs, streams=[3, 0, 1, 2]), 2e-5)
    with pytest.raises(StateError, match=r"set_states: .* is \[2, .*wanted \[4, .*: 4 rows"):
        engine.set_states(alone.get_states([0, 1]))
    with pytest.raises(RangeError, match="set_states: streams names one twice"):
        engine.set_states(states[0], [1, 1])


@every_config
def test_files_are_the_models_own(config: StackConfig, tmp_path: Path) -> None:
    model, xs = model_of(config), inputs_of(config, 30, 1)
    engine = Engine(model)
    engine.run(xs)
    engine.save_state(0, tmp_path / "engine.safetensors")
    loaded = StreamState.load(tmp_path / "engine.safetensors", model)
    assert loaded.diff(engine.get_state()).identical
    loaded.save(tmp_path / "model.safetensors", model)
    assert (tmp_path / "engine.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    other = Engine(model, "int8", streams=2)
    other.load_state(1, tmp_path / "model.safetensors")
    assert loaded.diff(other.get_state(1)).identical
    assert other.position(0) == 0


def test_files_of_a_loaded_engine(tmp_path: Path) -> None:
    model_of(text_config(semantic_encoder=True)).bfloat16().save_pretrained(tmp_path / "model")
    engine = Engine.load(tmp_path / "model")
    engine.run(inputs_of(engine.config, 30))
    engine.save_state(0, tmp_path / "state.safetensors")
    model = load_model(tmp_path / "model")
    assert StreamState.load(tmp_path / "state.safetensors", model).diff(engine.get_state()).identical


def test_forks_go_their_own_way() -> None:
    config = CONFIGS["erase-sinks"]
    model, xs = model_of(config), inputs_of(config, 60, 2)
    engine, alone = Engine(model), Engine(model)
    engine.run(xs[:40, 0])
    alone.run(xs[:40, 0])
    parent = engine.get_state(0)
    numbers = [engine.fork(0) for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    assert engine.streams == 6
    expected = alone.run(xs[40:, 1])
    np.testing.assert_array_equal(engine.run(xs[40:, 1:], streams=[4])[:, 0], expected)
    assert parent.diff(engine.get_state(0)).identical
    assert parent.diff(engine.get_state(5)).identical
    assert engine.step(np.zeros((6, 3), np.float32)).shape == (6, 5)


def test_reset_is_fresh() -> None:
    config = CONFIGS["text-untied-encoder"]
    model, ids = model_of(config), inputs_of(config, 50, 2)
    engine = Engine(model, streams=2)
    first = engine.run(ids)
    engine.reset(0)
    assert (engine.position(0), engine.position(1)) == (0, 50)
    np.testing.assert_array_equal(engine.run(ids[:, :1], streams=[0])[:, 0], first[:, 0])


def test_wrong_states(tmp_path: Path) -> None:
    model, other = model_of(vector_config()), model_of(vector_config(), seed=1)
    wider = model_of(vector_config(window_size=10))
    engine, path = Engine(model), tmp_path / "state.safetensors"
    engine.run(inputs_of(engine.config, 12, 1))
    before = engine.get_state()
    with pytest.raises(StateError, match="set_state: state is dict"):
        engine.set_state(0, {})  # type: ignore[arg-type]
    with pytest.raises(StateError, match=r"is \[2, 8, 6, 6\]; wanted \[1, 8, 6, 6\].*select"):
        engine.set_state(0, model.init_state(2))
    with pytest.raises(StateError, match=r"keys of the state is \[1, 9, 6, 6\]; wanted \[1, 8, 6, 6\]"):
        engine.set_state(0, wider.init_state(1))
    with pytest.raises(StateError, match="is float64; wanted float32"):
        engine.set_state(0, model.init_state(1).to(torch.float64))
    with pytest.raises(StateError, match="NaN or infinite"):
        engine.set_state(0, model.init_state(1).map(lambda t: t / 0 if t.is_floating_point() else t))
    fresh = model.init_state(1)
    torn = fresh.with_tensors({**fresh.named_tensors(), "layers.0.position": torch.tensor([3])})
    with pytest.raises(StateError, match=r"layers.0.position of the state is 3 and position 0"):
        engine.set_state(0, torn)
    with pytest.raises(FileError, match="does not exist"):
        engine.load_state(0, path)
    other.init_state(1).save(path, other)
    with pytest.raises(StateError, match="configs are equal but the weights are not"):
        engine.load_state(0, path)
    wider.init_state(1).save(path, wider)
    with pytest.raises(StateError, match=r"config\.window_size is 10"):
        engine.load_state(0, path)
    with pytest.raises(StateError, match=r"wanted \[1, 8, 6, 6\]"):
        engine.load_state(0, path, allow_other_weights=True)
    text = model_of(text_config(semantic_encoder=True))
    text.init_state(1).save(path, text)
    with pytest.raises(StateError, match=r"layout.front is 'encoder' in .*; wanted None"):
        engine.load_state(0, path)
    assert before.diff(engine.get_state()).identical
    other.init_state(1).save(path, other)
    engine.load_state(0, path, allow_other_weights=True)
    assert engine.position() == 0


def test_a_broken_state_is_not_saved(tmp_path: Path) -> None:
    engine = Engine(model_of(vector_config()))
    engine._streams.numbers[0, :] = np.inf
    with pytest.raises(StateError, match=r"NaN or infinite values.*not written"):
        engine.save_state(0, tmp_path / "state.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_state_stays_what_it_was_when_the_stream_goes_on() -> None:
    # A head width that is a multiple of 16 lies in the engine as it does in a state.
    config = text_config(hidden_dim=48, num_heads=3, memory_heads=3)
    engine = Engine(model_of(config))
    engine.run([1, 2, 3])
    state = engine.get_state(0)
    kept = state.clone()
    engine.run([4, 5])
    assert state.diff(kept).identical


@every_config
def test_a_sibling_takes_a_stream_and_goes_its_own_way(config: StackConfig) -> None:
    model, xs = model_of(config), inputs_of(config, 25, 1)
    engine = Engine(model, streams=2)
    engine.run(xs[:9], streams=[1])
    before = engine.get_state(1)
    fan = engine.sibling(3)
    fan.take(engine, 1)
    assert all(before.diff(fan.get_state(row)).identical for row in range(3))
    expected = engine.sibling(1)
    expected.take(engine, 1)
    y = expected.run(xs[9:])
    np.testing.assert_array_equal(fan.run(xs[9:], streams=[2]), y)
    assert before.diff(engine.get_state(1)).identical and before.diff(fan.get_state(0)).identical
    with pytest.raises(StateError, match="take: other is no sibling of this engine"):
        engine.take(Engine(model))
