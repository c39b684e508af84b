"""The engine's front, heads and read-out against the models', and against themselves: pieces, batches, states."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssmn
from engines import BASE, model_of, vector_config
from series_engines import CONFIGS, answers, every_series, one, part, series_of
from ssmn import native
from ssmn.config import Plasticity, SSMNConfig
from ssmn.engine import Engine
from ssmn.errors import RangeError, ShapeError
from ssmn.models import SSMN
from ssmn.state import StreamState
from ssmn.stream import Stream

pytestmark = pytest.mark.skipif(not native.status().available, reason=native.status().reason)

NAN = math.nan


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Beside the largest value of each output."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    largest = np.abs(expected).reshape(-1, *expected.shape[2:]).max(0)
    assert (np.abs(actual - expected) <= tolerance * np.maximum(largest, 1.0)).all()


def mean_of(state: StreamState) -> torch.Tensor:
    tensors = state.named_tensors()
    return tensors["front.mean"].double() + tensors["front.rest"].double()


def assert_same_state(actual: StreamState, expected: StreamState, tolerance: float = 1e-5) -> None:
    # The two parts of a mean may be cut in different places, but their sum is exact to more than a float.
    if "front.mean" in expected.named_tensors():
        torch.testing.assert_close(mean_of(actual), mean_of(expected), rtol=1e-7, atol=1e-7)
    differences = {entry.name: entry.relative for entry in expected.diff(actual) if entry.name != "front.rest"}
    assert max(differences.values()) <= tolerance, differences


def stepped(engine: Engine, series: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([engine.step(**one(series, t)).copy() for t in range(len(series["xs"]))])


@every_series
def test_steps_as_the_model_does(config: SSMNConfig) -> None:
    model, series = model_of(config), series_of(config, 230, 2)
    expected, state = answers(model, series)
    engine = Engine(model, streams=2)
    assert_near(stepped(engine, series), expected)
    assert engine.position(1) == int(state.position[1])
    assert_same_state(engine.get_states(), state)
    engine.set_states(state)
    assert state.diff(engine.get_states()).identical


@every_series
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sequences_and_batches_are_steps_to_the_bit(config: SSMNConfig, dtype: Any) -> None:
    model, series = model_of(config), series_of(config, 131, 3)
    batch, alone = Engine(model, dtype, streams=3), Engine(model, dtype)
    expected = stepped(batch, series)
    second = part(series, slice(None), [1])
    np.testing.assert_array_equal(stepped(alone, second), expected[:, 1:2])
    for threads in (1, 2):
        whole, pieces = Engine(model, dtype, streams=3, threads=threads), Engine(model, dtype, threads=threads)
        np.testing.assert_array_equal(whole.run(**series), expected)
        got = [pieces.run(**part(second, slice(a, b))) for a, b in ((0, 1), (1, 1), (1, 70), (70, 75), (75, 131))]
        np.testing.assert_array_equal(np.concatenate(got), expected[:, 1:2])
        last = Engine(model, dtype, streams=3, threads=threads).prefill(**series)
        np.testing.assert_array_equal(last, expected[-1])
        for engine, stream in ((alone, 0), (whole, 1), (pieces, 0)):
            assert batch.get_state(1).diff(engine.get_state(stream)).identical


@every_series
def test_a_state_goes_there_and_back(config: SSMNConfig, tmp_path: Path) -> None:
    model, series = model_of(config), series_of(config, 190, 1)
    _, state = answers(model, part(series, slice(0, 120)))
    expected, after = answers(model, part(series, slice(120, None)), state=state)
    engine = Engine(model, streams=2)
    engine.set_state(1, state)
    assert state.diff(engine.get_state(1)).identical
    assert engine.get_state(0).diff(model.init_state(1)).identical
    assert_near(engine.run(**part(series, slice(120, None)), streams=[1]), expected)
    assert_same_state(engine.get_state(1), after)
    engine.save_state(1, tmp_path / "engine.safetensors")
    loaded = StreamState.load(tmp_path / "engine.safetensors", model)
    loaded.save(tmp_path / "model.safetensors", model)
    assert loaded.diff(engine.get_state(1)).identical
    assert (tmp_path / "engine.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@every_series
def test_forks_and_resets(config: SSMNConfig) -> None:
    model, series = model_of(config), series_of(config, 90, 2)
    early, late, other = (
        part(series, slice(0, 50), [0]), part(series, slice(50, None), [0]), part(series, slice(50, None), [1]),
    )  # fmt: skip
    engine, alone = Engine(model), Engine(model)
    first = engine.run(**early)
    alone.run(**early)
    parent = engine.get_state(0)
    assert engine.fork(0) == 1
    engine.run(**other, streams=[1])
    assert parent.diff(engine.get_state(0)).identical
    np.testing.assert_array_equal(engine.run(**late, streams=[0]), alone.run(**late))
    engine.reset(1)
    np.testing.assert_array_equal(engine.run(**early, streams=[1]), first)


@pytest.mark.parametrize("name", ["masked-normalised", "everything-beside", "lms-masked", "squares-masked"])
@pytest.mark.parametrize("seed", range(6))
def test_gaps_in_every_place(name: str, seed: int) -> None:
    config = CONFIGS[name]
    random = np.random.default_rng(seed)
    steps, streams = int(random.integers(1, 40)), int(random.integers(1, 6))
    model, series = model_of(config, seed), series_of(config, steps, streams, seed)
    series["xs"][random.random((steps, streams)) < random.choice([0.1, 0.5, 0.95])] = NAN
    if seed % 2:
        series["xs"][:, -1] = NAN  # a stream that never says anything
        del series["elapsed"]
    expected, state = answers(model, series)
    engine, sequence = Engine(model, streams=streams), Engine(model, streams=streams, threads=2)
    got = stepped(engine, series)
    assert_near(got, expected)
    np.testing.assert_array_equal(sequence.run(**series), got)
    np.testing.assert_array_equal(Engine(model, streams=streams).prefill(**series), got[-1])
    lost = np.isnan(series["xs"]).sum(2) == config.input_dim
    assert not expected[lost].any()
    for stream in range(streams):
        assert engine.position(stream) == int((~lost[:, stream]).sum())
        assert_same_state(engine.get_state(stream), state.select([stream]))


def test_more_streams_than_a_chunk() -> None:
    config = CONFIGS["lms-masked"]
    model, series = model_of(config), series_of(config, 5, 61)
    expected, _ = answers(model, series)
    engine = Engine(model, streams=61)
    got = stepped(engine, series)
    assert_near(got, expected)
    np.testing.assert_array_equal(Engine(model, streams=61, threads=2).run(**series), got)


@pytest.mark.parametrize("path", native.status().runnable)
@pytest.mark.parametrize("name", ["lms-masked", "squares-masked"])
def test_every_path(path: str, name: str) -> None:
    config = CONFIGS[name]
    model, series = model_of(config), series_of(config, 70, 2)
    best = Engine(model, streams=2).run(**series)
    try:
        native.use_kernels(path)
        ys = Engine(model, streams=2).run(**series)
        np.testing.assert_array_equal(stepped(Engine(model, streams=2), series), ys)
    finally:
        native.use_kernels(None)
    assert_near(ys, best)


@pytest.mark.parametrize("name", ["squares-masked", "lms"])
def test_a_frozen_read_out_learns_nothing(name: str) -> None:
    config = CONFIGS[name]
    model, series = model_of(config), series_of(config, 80, 2)
    _, state = answers(model, part(series, slice(0, 50)))
    expected, after = answers(model, part(series, slice(50, None)), state=state, plasticity=Plasticity(frozen=True))
    engine = Engine(model, streams=2)
    engine.run(**part(series, slice(0, 50)))
    before = engine.get_state(1).named_tensors()["head.memory"]
    engine.set_plasticity(Plasticity(frozen=True))
    assert_near(engine.run(**part(series, slice(50, None))), expected)
    assert torch.equal(before, engine.get_state(1).named_tensors()["head.memory"])
    assert_same_state(engine.get_state(1), after.select([1]))


@pytest.mark.parametrize("forget", [0.0, 0.002, 0.05, 0.9])
def test_squares_stay_exact(forget: float) -> None:
    config = SSMNConfig.from_dict({
        **BASE, "input_dim": 3, "output_dim": 2, "layer_types": ["static"], "num_layers": 1, "readout": "rls",
        "readout_forget": forget, "readout_features": "both",
    })  # fmt: skip
    model, series = model_of(config), series_of(config, 1200, 1)
    series["elapsed"][700] = 1e6  # everything is forgotten at once
    expected, state = answers(model, series)
    engine = Engine(model)
    assert_near(engine.run(**series), expected)
    assert_same_state(engine.get_state(0), state)


def vector(name: str, **options: Any) -> tuple[Engine, dict[str, np.ndarray]]:
    config = CONFIGS[name]
    return Engine(model_of(config), **options), series_of(config, 6, options.get("streams", 1))


def test_wrong_arguments() -> None:
    engine, series = vector("everything-beside", streams=2)
    before = engine.get_state(0)
    good = one(series, 0)
    for change, error, message in (
        ({"future": None}, ShapeError, r"step: future is NoneType; wanted a float32 numpy array \[2, 5\]"),
        ({"static": good["static"][0]}, ShapeError, r"static is float32 \[4\]; wanted .* \[2, 4\]"),
        ({"static": good["static"].astype(float)}, ShapeError, r"static is float64 \[2, 4\]"),
        ({"target": np.zeros((2, 2), np.float32)}, RangeError, "target is given, but the model has none; .* readout="),
        ({"future": np.full((2, 5), NAN, np.float32)}, RangeError, r"future is not finite at \[0, 0\]"),
        ({"x": np.array([[0, 0, 0], [0, np.inf, 0]], np.float32)}, RangeError, r"the input is infinite at \[1, 1\]"),
    ):
        with pytest.raises(error, match=message):
            engine.step(**{**good, **change})
    with pytest.raises(
        ShapeError, match=r"run: future is float32 \[5, 2, 5\]; wanted a float32 numpy array \[6, 2, 5\]"
    ):
        engine.run(**{**series, "future": series["future"][1:]})
    with pytest.raises(RangeError, match="future is given, but the model has none; make it with future_dim"):
        Engine(model_of(vector_config())).step(np.zeros(3, np.float32), future=np.zeros(1, np.float32))
    assert before.diff(engine.get_state(0)).identical
    squares, series = vector("squares")
    with pytest.raises(RangeError, match=r"target is infinite at \[0, 1\]; what is unknown is NaN"):
        squares.step(np.zeros((1, 3), np.float32), target=np.array([[0.0, np.inf]], np.float32))
    with pytest.raises(RangeError, match="the input is not finite"):
        squares.step(np.full(3, NAN, np.float32))
    assert squares.position() == 0


def test_a_single_stream_needs_no_axis() -> None:
    engine, series = vector("everything-beside")
    again, _ = vector("everything-beside")
    alone = {name: array[0] if name == "static" else array[:, 0] for name, array in series.items()}
    expected = engine.run(**series)
    assert expected.shape == (6, 1, 2, 2)
    np.testing.assert_array_equal(again.run(**alone), expected[:, 0])
    again.reset(0)
    got = [again.step(**one(alone, t)).copy() for t in range(6)]
    np.testing.assert_array_equal(np.stack(got), expected[:, 0])


@pytest.mark.parametrize("name", ["everything-beside", "squares-masked"])
def test_a_stream_on_the_engine(name: str) -> None:
    config = CONFIGS[name]
    model, series = model_of(config), series_of(config, 40, 2)
    assert isinstance(model, SSMN)
    tensors = {
        key: torch.from_numpy(array) if key == "static" else torch.from_numpy(array).transpose(0, 1)
        for key, array in series.items()
    }
    x = tensors.pop("xs")
    plain, engine = Stream(model, batch_size=2), Stream(model, batch_size=2, backend="engine")
    expected, got = plain.push(x, **tensors), engine.push(x, **tensors)
    assert_near(got.numpy(), expected.numpy())
    assert_same_state(engine.state, plain.state)
    rows = {key: value if key == "static" else value[:, 3] for key, value in tensors.items()}
    assert_near(engine.step(x[:, 3], **rows).numpy()[None], plain.step(x[:, 3], **rows).numpy()[None])


def test_a_loaded_engine_needs_no_torch(tmp_path: Path) -> None:
    config = CONFIGS["lms-masked"]
    model, series = model_of(config), series_of(config, 30, 1)
    model.save_pretrained(tmp_path / "model")
    for key, array in series.items():
        np.save(tmp_path / f"{key}.npy", array)
    script = f"""
import sys
sys.path.insert(0, {str(Path(ssmn.__file__).parents[1])!r})
import numpy, ssmn
engine = ssmn.Engine.load({str(tmp_path / "model")!r})
series = {{key: numpy.load({str(tmp_path)!r} + f"/{{key}}.npy") for key in {list(series)!r}}}
numpy.save({str(tmp_path / "ys.npy")!r}, engine.run(**series))
assert not {{"torch", "safetensors"}} & set(sys.modules), "a heavy module was loaded"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "ys.npy"), Engine(model).run(**series))
