"""The stream engine against the models: every option, batches, formats, threads, refusals."""

from __future__ import annotations

import lzma
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssmn
from engines import (
    CONFIGS,
    assert_close,
    every_config,
    inputs_of,
    model_of,
    outputs_of,
    steps,
    text_config,
    vector_config,
)
from ssmn import native
from ssmn.config import Plasticity, StackConfig
from ssmn.engine import Engine
from ssmn.errors import ConfigError, DtypeError, FileError, RangeError, ShapeError, StateError
from ssmn.models.stack import Stack
from ssmn.training import Tokenizer

pytestmark = pytest.mark.skipif(not native.status().available, reason=native.status().reason)


@every_config
@pytest.mark.parametrize("threads", [1, 3])
def test_steps_as_the_model_does(config: StackConfig, threads: int) -> None:
    model, xs = model_of(config), inputs_of(config, 200, 2)
    expected, state = outputs_of(model, xs)
    engine = Engine(model, streams=2, threads=threads)
    assert_close(steps(engine, xs), expected, 2e-5)
    for stream in range(2):
        assert engine.position(stream) == 200
        difference = state.select([stream]).diff(engine.get_state(stream))
        assert max(entry.relative for entry in difference) <= 2e-5


@every_config
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_sequences_and_batches_are_steps_to_the_bit(config: StackConfig, dtype: Any) -> None:
    xs = inputs_of(config, 131, 3)
    model = model_of(config)
    alone = Engine(model, dtype)
    expected = steps(alone, xs[:, 1])
    if getattr(config, "output_memory", False):  # written once per chunk, so equal to rounding
        for y in (Engine(model, dtype).run(xs[:, 1]), Engine(model, dtype, streams=3, threads=2).run(xs)[:, 1]):
            assert_close(y, expected, 1e-5)
        return
    for threads in (1, 2):
        batch, sequence = Engine(model, dtype, streams=3, threads=threads), Engine(model, dtype, threads=threads)
        np.testing.assert_array_equal(steps(batch, xs)[:, 1], expected)
        np.testing.assert_array_equal(sequence.run(xs[:, 1]), expected)
        np.testing.assert_array_equal(Engine(model, dtype, streams=3, threads=threads).run(xs)[:, 1], expected)
        last = Engine(model, dtype, streams=3, threads=threads).prefill(xs)
        np.testing.assert_array_equal(last[1], expected[-1])
        for engine, stream in ((batch, 1), (sequence, 0)):
            assert alone.get_state(0).diff(engine.get_state(stream)).identical


def test_pieces_equal_the_whole() -> None:
    config = CONFIGS["text-untied-encoder"]
    xs = inputs_of(config, 300, 1)[:, 0]
    whole, pieces = Engine(model_of(config)), Engine(model_of(config))
    expected = whole.run(xs)
    got = [pieces.run(xs[:1]), pieces.run(xs[1:1]), pieces.run(xs[1:60]), steps(pieces, xs[60:63]), pieces.run(xs[63:])]
    np.testing.assert_array_equal(np.concatenate(got), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["erase-sinks", "same-chat", "text-untied-encoder", "wide-window"])
def test_ten_thousand_steps(name: str) -> None:
    config = CONFIGS[name]
    xs = inputs_of(config, 10_000, 1)
    expected, state = outputs_of(model_of(config), xs)
    engine = Engine(model_of(config))
    assert_close(steps(engine, xs), expected)
    assert max(entry.relative for entry in state.diff(engine.get_state())) <= 1e-4


def test_more_streams_than_a_chunk() -> None:
    config = vector_config()
    model, xs = model_of(config), inputs_of(config, 4, 61)
    expected, _ = outputs_of(model, xs)
    engine = Engine(model, streams=61)
    assert_close(engine.run(xs), expected, 2e-5)
    many = Engine(model, streams=61)
    np.testing.assert_array_equal(steps(many, xs), Engine(model, streams=61).run(xs))


def test_streams_at_their_own_pace() -> None:
    config = text_config(semantic_encoder=True)
    model, ids = model_of(config), inputs_of(config, 20, 3)
    alone = [steps(Engine(model), ids[:, stream]) for stream in range(3)]
    engine, seen = Engine(model, streams=3), [0, 0, 0]
    for chosen in ([2, 0], [1], [0, 1, 2], np.array([True, False, True]), [1, 0]):
        which = np.flatnonzero(chosen) if isinstance(chosen, np.ndarray) else chosen
        y = engine.step(np.array([ids[seen[s], s] for s in which]), streams=chosen)
        for row, stream in enumerate(which):
            np.testing.assert_array_equal(y[row], alone[stream][seen[stream]])
            seen[stream] += 1
    assert [engine.position(stream) for stream in range(3)] == seen
    ys = engine.run(ids[seen[2] : seen[2] + 4, 2:], streams=[2])
    np.testing.assert_array_equal(ys[:, 0], alone[2][seen[2] : seen[2] + 4])


@pytest.mark.parametrize(
    "plasticity",
    [
        Plasticity(eta_scale=3.0, decay_scale=20.0),
        Plasticity(plasticity_eta=0.05, decay_lambda=0.2),
        Plasticity(plasticity_eta=0.0),
        Plasticity(decay_lambda=0.0, write_threshold=0.45),
        Plasticity(frozen=True),
        Plasticity(eta_scale=[0.5, 2.0], decay_lambda=[0.1, 1e-3]),
    ],
)
@pytest.mark.parametrize("name", ["hebbian-grouped", "erase-chat"])
def test_plasticity(name: str, plasticity: Plasticity) -> None:
    config = CONFIGS[name]
    model, xs = model_of(config), inputs_of(config, 90, 2)
    before, state = outputs_of(model, xs[:40])
    expected, state = outputs_of(model, xs[40:], state=state, plasticity=plasticity)
    engine = Engine(model, streams=2)
    assert_close(engine.run(xs[:40]), before, 2e-5)
    memory = engine.get_state(1).layers[1].named_tensors()["memory"]
    engine.set_plasticity(plasticity)
    assert_close(engine.run(xs[40:]), expected, 1e-4)  # without a write strength short reads are blown up
    after = engine.get_state(1).layers[1].named_tensors()["memory"]
    assert torch.equal(memory, after) == plasticity.frozen


@pytest.mark.parametrize(
    "plasticity",
    [Plasticity(output_eta=[0.3, 2.0], output_decay=0.2), Plasticity(output_eta=0.0), Plasticity(frozen=True)],
)
def test_plasticity_of_the_output_memory(plasticity: Plasticity) -> None:
    config = CONFIGS["text-output-memory-decay"]
    model, xs = model_of(config), inputs_of(config, 90, 2)
    before, state = outputs_of(model, xs[:40])
    expected, after = outputs_of(model, xs[40:], state=state, plasticity=plasticity)
    engine = Engine(model, streams=2)
    assert_close(engine.run(xs[:40]), before, 2e-5)
    memory = engine.get_state(1).named_tensors()["head.memory"]
    engine.set_plasticity(plasticity)
    assert_close(engine.prefill(xs[40:]), expected[-1], 2e-5)
    now = engine.get_state(1).named_tensors()["head.memory"]
    assert_close(now.numpy(), after.named_tensors()["head.memory"][1:].numpy(), 2e-5)
    assert torch.equal(now, memory) == plasticity.frozen


def test_plasticity_of_one_stream() -> None:
    config = CONFIGS["delta"]
    model, xs = model_of(config), inputs_of(config, 30, 2)
    expected, _ = outputs_of(model, xs, plasticity=Plasticity(eta_scale=[1.0, 0.1]))
    engine = Engine(model, streams=2)
    engine.set_plasticity(Plasticity(eta_scale=0.1), 1)
    assert_close(engine.run(xs), expected, 2e-5)
    engine.reset(1)
    forked = engine.fork(1)
    np.testing.assert_array_equal(
        engine.run(xs[:, 1:], streams=[forked]), learning(model, Plasticity(eta_scale=0.1)).run(xs[:, 1:])
    )


def learning(model: Stack, plasticity: Plasticity) -> Engine:
    engine = Engine(model)
    engine.set_plasticity(plasticity)
    return engine


def test_elapsed() -> None:
    config = CONFIGS["hebbian-grouped"]
    model, xs = model_of(config), inputs_of(config, 30, 2)
    elapsed = np.random.default_rng(2).uniform(0, 50, (30, 2)).astype(np.float32)
    expected, _ = outputs_of(model, xs, elapsed=torch.from_numpy(elapsed).T)
    engine, stepped = Engine(model, streams=2), Engine(model, streams=2)
    assert_close(engine.run(xs, elapsed=elapsed), expected, 2e-5)
    got = np.stack([stepped.step(x, elapsed=dt).copy() for x, dt in zip(xs, elapsed, strict=True)])
    assert_close(got, expected, 2e-5)


def test_a_stream_has_no_last_position() -> None:
    config = CONFIGS["wide-window"]
    model, xs = model_of(config), inputs_of(config, 50, 1)
    _, state = outputs_of(model, xs[:20])
    far = state.map(lambda tensor: tensor if tensor.is_floating_point() else tensor + 2**40)
    expected, _ = outputs_of(model, xs[20:], state=far)
    engine = Engine(model)
    engine.set_state(0, far)
    assert_close(engine.run(xs[20:]), expected, 2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.001), ("int8", 0.01), ("int4", 0.03)])
def test_bits_per_byte_of_the_shipped_model(dtype: Any, tolerance: float) -> None:
    assets = Path(ssmn.__file__).parent / "demo" / "assets"
    with lzma.open(assets / "held-out.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read(60_000)
    ids = np.array(Tokenizer.load(assets / "model" / "tokenizer.json").encode(text))

    def bits_per_byte(engine: Engine) -> float:
        logits = engine.run(ids[:-1]).astype(np.float64)
        most = logits.max(-1)
        normaliser = np.log(np.exp(logits - most[:, None]).sum(-1)) + most
        losses = normaliser - logits[np.arange(len(logits)), ids[1:]]
        return float(losses.sum() / math.log(2) / len(text.encode()))

    exact, rounded = (bits_per_byte(Engine.load(assets / "model", name)) for name in ("float32", dtype))
    print(f"{dtype}: float32 {exact:.4f} bits per byte, {100 * (rounded / exact - 1):+.2f} %")
    assert 1.4 < exact < 1.9
    assert rounded <= exact * (1 + tolerance)


@pytest.mark.parametrize("path", native.status().runnable)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_every_path(path: str, dtype: Any) -> None:
    config = text_config(hidden_dim=80, num_heads=4, num_kv_heads=2, memory_heads=2, semantic_encoder=True, ffn_dim=72)
    model, ids = model_of(config), inputs_of(config, 70, 2)
    best = Engine(model, dtype, streams=2).run(ids)
    try:
        native.use_kernels(path)
        engine = Engine(model, dtype, streams=2)
        ys = engine.run(ids)
        np.testing.assert_array_equal(steps(Engine(model, dtype, streams=2), ids), ys)
    finally:
        native.use_kernels(None)
    # Codes are whole numbers, but a rounding of the last bit can move an input to the next code.
    assert_close(ys, best, 2e-5 if dtype in ("float32", "bfloat16") else 0.2)
    if dtype in ("int8", "int4"):
        assert np.median(np.abs(ys - best)) <= 0.01 * np.abs(best).max()


def test_low_precision_weights() -> None:
    config = vector_config()
    model, xs = model_of(config).bfloat16(), inputs_of(config, 20, 1)
    expected, _ = outputs_of(model.float(), xs)
    assert_close(Engine(model.bfloat16()).run(xs), expected, 2e-5)
    with pytest.raises(DtypeError, match=r"float64; .* model.float\(\)"):
        Engine(model.double())


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_a_loaded_engine_needs_no_torch(tmp_path: Path, dtype: str) -> None:
    config = CONFIGS["text-untied-encoder"]
    model, ids = model_of(config), inputs_of(config, 40, 1)[:, 0]
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "ids.npy", ids)
    script = f"""
import sys
sys.path.insert(0, {str(Path(ssmn.__file__).parents[1])!r})
import numpy, ssmn
engine = ssmn.Engine.load({str(tmp_path / "model")!r}, dtype={dtype!r})
ids = numpy.load({str(tmp_path / "ids.npy")!r})
engine.prefill(ids[:30])
engine.save_state(0, {str(tmp_path / "state.safetensors")!r})
engine.reset(0)
engine.load_state(0, {str(tmp_path / "state.safetensors")!r})
engine.fork(0)
numpy.save({str(tmp_path / "ys.npy")!r}, engine.run(ids[30:], streams=[1]))
assert not {{"torch", "tokenizers", "safetensors"}} & set(sys.modules), "a heavy module was loaded"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "ys.npy"), Engine(model, dtype).run(ids)[30:])  # type: ignore[arg-type]


def test_results_belong_to_the_engine() -> None:
    model = model_of(vector_config())
    engine = Engine(model)
    x = inputs_of(model.config, 2, 1)[:, 0]
    first = engine.step(x[0])
    assert engine.step(x[1]) is first
    assert engine.step(x[:1]).shape == (1, 5)
    assert engine.run(x) is not engine.run(x)


def test_two_threads_are_refused() -> None:
    config = text_config(hidden_dim=96, num_heads=4)
    engine, ids = Engine(model_of(config), streams=1), inputs_of(config, 20_000)
    expected = Engine(model_of(config)).run(ids)
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(engine.run(ids)))
    thread.start()
    refused = 0
    while thread.is_alive():
        if engine._lock.locked():
            for call in (lambda: engine.step(1), lambda: engine.run(ids), lambda: engine.reset(0), engine.fork):
                if engine._lock.locked():
                    with pytest.raises(StateError, match="another thread is running this engine"):
                        call()
                    refused += 1
            break
        time.sleep(0)
    thread.join()
    assert refused
    np.testing.assert_array_equal(results[0], expected)


def test_the_library_refuses_a_second_call_too() -> None:
    engine = Engine(model_of(vector_config()))
    engine._packed.sizes.busy = 1
    with pytest.raises(StateError, match="another thread"):
        engine.step(np.zeros(3, np.float32))
    engine._packed.sizes.busy = 0
    engine.step(np.zeros(3, np.float32))


def test_wrong_arguments(tmp_path: Path) -> None:
    model = model_of(vector_config())
    with pytest.raises(DtypeError, match=r"Engine: model is dict; .*Engine.load\(folder\)"):
        Engine({})
    with pytest.raises(RangeError, match="dtype='float16'; wanted one of float32, bfloat16, int8, int4"):
        Engine(model, "float16")  # type: ignore[arg-type]
    for options in ({"streams": 0}, {"threads": True}, {"streams": 1.5}):
        with pytest.raises(RangeError, match=r"wanted a whole number of at least 1"):
            Engine(model, **options)  # type: ignore[arg-type]
    with pytest.raises(FileError, match=r"no config.json; wanted a folder written by save_pretrained"):
        Engine.load(tmp_path)


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    model = model_of(vector_config())
    changes: Any = (
        (lambda w: w.pop("norm.weight"), "has no weights 'norm.weight'"),
        (lambda w: w.update({"more": torch.zeros(2)}), "has weights 'more' that the model does not use"),
        (lambda w: w.update({"norm.weight": torch.zeros(35)}), r"norm.weight has shape \[35\]; wanted \[36\]"),
    )
    for change, message in changes:
        weights = dict(model.state_dict())
        change(weights)

        class Other:
            config = model.config
            state_dict = staticmethod(lambda weights=weights: weights)

        with pytest.raises(FileError, match=message):
            Engine(Other())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_spoilt_weights_do_not_look_sound(value: float) -> None:
    model = model_of(vector_config())
    with torch.no_grad():
        model.blocks[0].ffn.up.weight[0, 1] = value
    for dtype in ("int8", "int4"):
        message = "SSMN: blocks.0.ffn.up.weight has NaN or infinite values; go back to an earlier model"
        with pytest.raises(RangeError, match=message):
            Engine(model, dtype)
    for dtype in ("float32", "bfloat16"):
        assert np.isnan(Engine(model, dtype).step(np.ones(3, np.float32))).all()


def test_wrong_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(vector_config())
    object.__setattr__(model.config, "layer_types", ("static", "plastic", "static", "hopfield"))
    with pytest.raises(ConfigError, match="layer_types has 'hopfield'; the engine runs static and plastic"):
        Engine(model)


@pytest.mark.parametrize("streams", [1, 2])
def test_wrong_vectors(streams: int) -> None:
    engine = Engine(model_of(vector_config()), streams=streams)
    good = inputs_of(engine.config, 1, streams)[0]
    engine.step(good)
    before = engine.get_state(0)
    for bad, error, message in (
        ([0.0, 0.0, 0.0], DtypeError, "x is list; wanted a float32 numpy array"),
        (good.astype(np.float64), DtypeError, "x is an array of float64; .*numpy.asarray"),
        (torch.zeros(streams, 3), DtypeError, "x is Tensor"),
        (good[:, :2].copy(), ShapeError, rf"has shape \[{streams}, 2\]; wanted \[{streams}, 3\]"),
        (np.zeros((streams + 1, 3), np.float32), ShapeError, rf"wanted \[{streams}, 3\] \({streams} streams"),
        (np.full_like(good, np.nan), RangeError, r"not finite at \[0, 0\]; drop the step"),
        (np.where(np.arange(3) == 1, np.float32(np.inf), good), RangeError, r"not finite at \[0, 1\]"),
    ):
        with pytest.raises(error, match=message):
            engine.step(bad)
    with pytest.raises(ShapeError, match=rf"wanted \[T, {streams}, 3\]"):
        engine.run(np.zeros((4, streams + 1, 3), np.float32))
    xs = np.zeros((4, streams, 3), np.float32)
    xs[2, 0, 1] = np.nan
    with pytest.raises(RangeError, match=r"not finite at \[2, 0, 1\]"):
        engine.run(xs)
    with pytest.raises(ShapeError, match="prefill: xs has no steps"):
        engine.prefill(np.zeros((0, streams, 3), np.float32))
    assert before.diff(engine.get_state(0)).identical
    assert engine.run(np.zeros((0, streams, 3), np.float32)).shape == (0, streams, 5)


def test_wrong_tokens() -> None:
    engine = Engine(model_of(text_config()))
    for bad, came in ((37, 37), (-1, -1), (10**30, 10**30), (np.array([40]), 40)):
        with pytest.raises(RangeError, match=rf"tokens lie in \[{came}, {came}\]; wanted \[0, 36\] .*encode with the"):
            engine.step(bad)
    for bad in (1.5, "a", [0.5], None):
        with pytest.raises(DtypeError, match=r"the tokens are .*; wanted whole numbers"):
            engine.step(bad)
    with pytest.raises(ShapeError, match=r"has shape \[2\]; wanted \[1\]"):
        engine.step([1, 2])
    assert engine.position() == 0
    for good in (3, np.int32(3), np.array(3, np.uint16), [3], np.array([3])):
        engine.reset(0)
        np.testing.assert_array_equal(np.ravel(engine.step(good)), Engine(model_of(text_config())).step(3))


def test_wrong_streams() -> None:
    engine, x = Engine(model_of(vector_config()), streams=2), np.zeros((2, 3), np.float32)
    for bad, error, message in (
        ([0, 2], RangeError, "streams has 2; wanted each of 0 to 1 at most once"),
        ([0, 0], RangeError, "streams names one twice"),
        ([0.0, 1.0], DtypeError, "streams is float64"),
        ([True], DtypeError, r"or a mask \[2\]"),
    ):
        with pytest.raises(error, match=message):
            engine.step(x, streams=bad)  # type: ignore[arg-type]
    for verb in (engine.position, engine.fork, engine.reset, engine.get_state):
        for bad in (2, -1, True, 0.0):
            with pytest.raises(RangeError, match=r"stream=.*; wanted 0 to 1"):
                verb(bad)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="plasticity is int"):
        engine.set_plasticity(1)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"eta_scale has shape \[3\]; wanted a number or one per stream \[2\]"):
        engine.set_plasticity(Plasticity(eta_scale=[1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match="wanted a number"):
        engine.set_plasticity(Plasticity(eta_scale=[1.0, 2.0]), 0)
    with pytest.raises(ShapeError, match=r"elapsed has shape \[3\]; wanted a number or \[2\]"):
        engine.step(x, elapsed=np.ones(3))
    with pytest.raises(RangeError, match="elapsed has negative or non-finite"):
        engine.step(x, elapsed=-1.0)


def test_sizes() -> None:
    model = model_of(text_config(hidden_dim=96, num_heads=4))
    bytes_of = {dtype: Engine(model, dtype).weight_nbytes for dtype in ("float32", "bfloat16", "int8", "int4")}
    assert bytes_of["float32"] > 1.8 * bytes_of["bfloat16"] > 1.8 * 1.4 * bytes_of["int8"]
    assert bytes_of["int8"] > 1.15 * bytes_of["int4"]
    engine = Engine(model, streams=3)
    engine.run(inputs_of(model.config, 200, 3))
    assert engine.nbytes == Engine(model, streams=3).nbytes
    assert engine.nbytes >= engine.weight_nbytes + 3 * engine.stream_nbytes
    assert repr(engine) == "Engine(text, float32, streams=3, threads=1)"
