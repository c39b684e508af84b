"""What a model writes while it reads, and what its layers hold: numbers against theory."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch

import ssmn
from ssmn import ops
from ssmn.cli import main
from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig
from ssmn.errors import ConfigError, FileError, RangeError, StateError
from ssmn.layers import SlidingWindowAttention, SynapticMemory, register_mixer
from ssmn.models import SSMN, TextSSMN
from ssmn.probes import (
    MemoryCall,
    RecordedStream,
    Recorder,
    attention_entropy,
    effective_rank,
    energy,
    flat,
    half_life,
    measure_blocks,
    measure_call,
    measure_state,
    memories,
    read_writes,
    resident_bytes,
    spectral_radius,
    spectrum,
    transition,
    watch_blocks,
    watch_importance,
    watch_memories,
)
from ssmn.state import PlasticState, State, register_state
from tiny import save_text_model

CONFIG = TextSSMNConfig(
    vocab_size=30, hidden_dim=12, num_layers=4, num_heads=2, window_size=5, memory_heads=3,
    layer_types=("static", "plastic", "plastic", "static"),
)  # fmt: skip


def test_pieces_are_the_whole_and_a_threshold_closes_exactly_what_is_below() -> None:
    model = TextSSMN(CONFIG)
    tokens = torch.randint(30, (1, 23))
    whole = read_writes(ssmn.Stream(model), tokens)
    assert whole.layers == (1, 2)
    assert whole.importance.shape == whole.written.shape == (23, 2, 3)
    assert whole.written.all()
    stream = ssmn.Stream(model)
    parts = [read_writes(stream, piece) for piece in tokens.split(7, 1)]
    np.testing.assert_allclose(np.concatenate([part.importance for part in parts]), whole.importance, atol=1e-6)
    assert stream.position.tolist() == [23]

    threshold = float(np.median(whole.importance[:, 0]))
    sparse = read_writes(ssmn.Stream(model), tokens, plasticity=Plasticity(write_threshold=threshold))
    np.testing.assert_array_equal(sparse.written, sparse.importance >= np.float32(threshold))
    np.testing.assert_allclose(sparse.strength, np.where(sparse.written, sparse.importance, 0).mean((1, 2)))
    frozen = read_writes(ssmn.Stream(model), tokens, plasticity=Plasticity(frozen=True))
    assert not frozen.written.any()


def test_what_is_not_written_leaves_the_memory_alone() -> None:
    model = TextSSMN(CONFIG)
    tokens = torch.randint(30, (1, 1))
    importance = read_writes(ssmn.Stream(model), tokens).importance[0, 0]
    threshold = float(np.sort(importance)[1])
    stream = ssmn.Stream(model)
    writes = read_writes(stream, tokens, plasticity=Plasticity(write_threshold=threshold))
    moved = stream.state.layers[1].memory.abs().amax((0, 2, 3)) > 0  # type: ignore[union-attr]
    # The first step has no vector before it: its key, and with it what is added, is zero. So read one more.
    assert not moved.any()
    writes = read_writes(stream, tokens, plasticity=Plasticity(write_threshold=threshold))
    moved = stream.state.layers[1].memory.abs().amax((0, 2, 3)) > 0  # type: ignore[union-attr]
    assert moved.tolist() == writes.written[0, 0].tolist()


def test_the_importance_of_a_batch_by_layer_and_call() -> None:
    model = TextSSMN(CONFIG)
    with watch_importance(model) as seen:
        model(torch.randint(30, (2, 4)))
        model(torch.randint(30, (2, 3)))
    assert {number: [tuple(call.shape) for call in calls] for number, calls in seen.items()} == {
        1: [(2, 4, 3), (2, 3, 3)], 2: [(2, 4, 3), (2, 3, 3)],
    }  # fmt: skip
    model(torch.randint(30, (2, 4)))
    assert len(seen[1]) == 2


def test_a_model_without_memory_is_refused() -> None:
    static = TextSSMN(TextSSMNConfig(vocab_size=9, hidden_dim=8, num_layers=1, num_heads=2, layer_types=("static",)))
    with pytest.raises(ConfigError, match="the model's layers are static: none has a synaptic memory"):
        memories(static)


def memory_model(**settings: Any) -> TextSSMN:
    config = TextSSMNConfig(
        vocab_size=30, hidden_dim=12, num_layers=4, num_heads=2, window_size=5, memory_heads=3,
        layer_types=("static", "plastic", "plastic", "static"), **settings,
    )  # fmt: skip
    return TextSSMN(config)


def call_of(memory: SynapticMemory, hidden: torch.Tensor, **options: Any) -> MemoryCall:
    with torch.no_grad(), watch_memories(memory) as seen:
        memory(hidden, **options)
    return seen[0][0]


def test_an_effective_rank_counts_planted_patterns() -> None:
    keys = torch.linalg.qr(torch.randn(9, 9)).Q
    for patterns in (1, 4, 9):
        values = torch.linalg.qr(torch.randn(7 + patterns, patterns)).Q.T
        memory = keys[:patterns].T @ values
        assert float(effective_rank(spectrum(memory))) == pytest.approx(patterns, rel=1e-4)
        assert float(energy(memory)) == pytest.approx(patterns, rel=1e-5)
    state = PlasticState(torch.stack([keys[:4].T @ keys[:4], torch.zeros(9, 9)]).unsqueeze(0), torch.zeros(1, 5))
    (measured,) = measure_state(state)
    torch.testing.assert_close(measured.values["saturation"], torch.tensor([[4 / 9, 0.0]]))
    assert measured.values["nbytes"].tolist() == [4 * (2 * 81 + 5)]


def test_saturation_tells_when_recall_begins_to_fail() -> None:
    """With random keys, the more of the directions are in use, the less of each value is read."""
    seen = []
    for pairs in (6, 24, 96):
        keys, values = (torch.nn.functional.normalize(torch.randn(1, pairs, 1, 24), dim=-1) for _ in range(2))
        ones = torch.ones(1, pairs, 1)
        _, memory = ops.memory_write(keys, values, eta=ones, log_decay=0 * ones, rule="hebbian")
        read = torch.einsum("bthk,bhkv->bthv", keys, memory)
        likeness = torch.nn.functional.cosine_similarity(read, values, dim=-1).mean()
        seen.append((float(effective_rank(spectrum(memory))) / 24, float(likeness)))
    saturation, likeness = zip(*seen, strict=True)
    assert saturation[0] < 0.3 < 0.6 < saturation[2]
    assert likeness[0] > 0.85 > 0.6 > likeness[2]


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-3, 0.03])
def test_the_measured_half_life_is_that_of_lambda(rate: float) -> None:
    for rule, eta in (("hebbian", 0.5), ("delta", 0.0)):
        memory = SynapticMemory(21, 3, update_rule=rule, plasticity_eta=eta, decay_lambda=(rate, rate, 0.02))  # type: ignore[arg-type]
        measured = measure_call(call_of(memory, torch.randn(2, 130, 21)))
        for name in ("half_life", "half_life_probed"):
            wanted = torch.tensor([half_life(rate), half_life(rate), half_life(0.02)]).expand(2, -1)
            torch.testing.assert_close(measured[name], wanted, rtol=2e-3, atol=0.0)
    # What is stored along a key is gone sooner where that key comes again, and nothing else is.
    probed = measure_call(call_of(SynapticMemory(21, decay_lambda=(1e-6,)), torch.randn(1, 60, 21)))
    assert float(probed["half_life_probed"]) < 100 < float(probed["half_life"])


def test_a_half_life_follows_the_elapsed_time_and_the_setting() -> None:
    memory, hidden = SynapticMemory(14, 2, plasticity_eta=0.0, decay_lambda=(0.01, 0.02)), torch.randn(1, 50, 14)
    usual = measure_call(call_of(memory, hidden))["half_life"]
    slower = measure_call(call_of(memory, hidden, plasticity=Plasticity(decay_scale=0.25)))["half_life"]
    faster = measure_call(call_of(memory, hidden, elapsed=torch.full((1, 50), 5.0)))["half_life"]
    torch.testing.assert_close(slower, 4 * usual)
    torch.testing.assert_close(faster, usual / 5)


def test_the_transition_is_what_happens_to_what_was_stored() -> None:
    memory, hidden = SynapticMemory(21, 3, decay_lambda=(0.1, 0.01, 0.0)), torch.randn(2, 17, 21)
    first, second = (memory.init_state(2).map(torch.randn_like) for _ in range(2))
    first = dataclasses.replace(first, previous=second.previous)
    with torch.no_grad():
        (_, after), (_, other) = memory(hidden, first), memory(hidden, second)
    kept = transition(call_of(memory, hidden, state=first))
    torch.testing.assert_close(kept @ (first.memory - second.memory), after.memory - other.memory, atol=1e-5, rtol=1e-4)
    radius = spectral_radius(kept)
    assert bool((radius <= 1 + 1e-5).all()) and bool((radius[:, 0] < radius[:, 2]).all())
    # Of a single step it is a_t: erasing one direction leaves the others.
    single = call_of(memory, hidden[:, :1], state=first)
    torch.testing.assert_close(measure_call(single)["spectral_radius"], single.log_decay[:, 0].exp())


def test_the_entropy_of_a_window_is_that_of_its_softmax() -> None:
    layer = SlidingWindowAttention(12, 3, window_size=4, num_kv_heads=1, sinks=True)
    hidden, mask = torch.randn(2, 11, 12), torch.rand(2, 11) > 0.3
    mask[:, :2] = True
    with torch.no_grad():
        assert layer.sinks is not None
        layer.sinks.copy_(torch.tensor([0.0, 1.0, -1.0]))
        _, state = layer(torch.randn(2, 6, 12))
    found = attention_entropy(layer, hidden, state, mask=mask, last=3)
    # The values say which weights they got: one direction for each slot of the window and none for the sink.
    for row in range(2):
        rows = torch.cat([torch.zeros(1, 0, 12), hidden[row, mask[row]].unsqueeze(0)], 1)
        entropies = []
        for stop in range(rows.shape[1] - 3, rows.shape[1]):
            start = state.select([row])
            with torch.no_grad():
                if stop:
                    _, start = layer(rows[:, :stop], start)
                q = layer.query(rows[:, stop]).unflatten(-1, (3, 4))
                k = layer.key(rows[:, stop]).unflatten(-1, (1, 4))
                spread = torch.eye(4)[None, :, None]
                order = (start.position - 3 + torch.arange(3)) % 3
                marked = dataclasses.replace(start, values=torch.zeros(1, 3, 1, 4).index_copy(1, order, spread[:, :3]))
                weights, _ = ops.window_attention(
                    q[:, None], k[:, None], spread[:, 3:], window_size=4, rope_theta=layer.rope_theta,
                    sinks=layer.sinks, initial_state=marked,
                )  # fmt: skip
            weights = torch.cat([weights[0, 0], 1 - weights[0, 0].sum(-1, keepdim=True)], -1)
            entropies.append(torch.special.entr(weights.clamp(min=0)).sum(-1))
        torch.testing.assert_close(found[row], torch.stack(entropies).mean(0), atol=1e-5, rtol=1e-4)
    # A long piece is cut to what its last windows reach.
    long = torch.randn(1, 200, 12)
    whole = attention_entropy(layer, long, mask=torch.ones(1, 200, dtype=torch.bool), last=5)
    torch.testing.assert_close(attention_entropy(layer, long, last=5), whole, atol=1e-5, rtol=1e-4)
    assert bool(attention_entropy(layer, long, mask=torch.zeros(1, 200, dtype=torch.bool)).isnan().all())


def test_what_has_no_synaptic_memory_has_the_measures_of_any_state() -> None:
    @register_state("test-average")
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class AverageState(State):
        mean: Annotated[torch.Tensor, "B D"]
        count: Annotated[torch.Tensor, "B", torch.int64]

    class Average(torch.nn.Module):
        def init_state(self, batch_size: int) -> AverageState:
            return AverageState(torch.zeros(batch_size, 12), torch.zeros(batch_size, dtype=torch.int64))

        def forward(self, hidden: Any, state: Any, **options: Any) -> Any:
            mean = state.mean + hidden.sum(1)
            return hidden, AverageState(mean, state.count + hidden.shape[1])

    register_mixer("test-average", lambda config: Average())
    model = TextSSMN(
        TextSSMNConfig(vocab_size=9, hidden_dim=12, num_layers=2, num_heads=2, layer_types=("test-average", "static"))
    )
    with watch_blocks(model) as seen:
        model(torch.randint(9, (6, 7)))
    average, window = measure_blocks(seen)
    assert average.kind == "test-average" and average.values["norm"].shape == (4,)  # the first rows alone
    torch.testing.assert_close(average.values["update"], average.values["norm"])
    assert average.values["nbytes"].tolist() == [4 * 12 + 8] * 4
    assert window.values["fill"].tolist() == pytest.approx([7 / 511] * 4) and window.values["entropy"].shape == (4, 2)
    with pytest.raises(StateError, match=r"the state but .* in the one before; they must agree"):
        measure_state(seen[0].after, seen[1].after)


def test_a_recorder_writes_what_is_due_and_changes_nothing(tmp_path: Path) -> None:
    model, tokens = memory_model(), torch.randint(30, (2, 100))
    paths = tmp_path / "probes.jsonl", tmp_path / "probes.csv"
    with Recorder(*paths, every=30, keep=9) as recorder:
        stream = RecordedStream(model, recorder=recorder, batch_size=2)
        outputs = [stream.push(piece) for piece in tokens.split(13, 1)]
        twin = stream.fork(1)[0]
        twin.push(tokens)  # not recorded
    plain = ssmn.Stream(model, batch_size=2)
    for piece, output in zip(tokens.split(13, 1), outputs, strict=True):
        assert torch.equal(plain.push(piece), output)
    assert memories(model)[1].watch is None
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [line["step"] for line in lines] == [39, 65, 91]
    assert lines == recorder.records
    last = lines[-1]
    assert [last[f"layers.{n}"]["kind"] for n in range(4)] == ["window", "plastic", "plastic", "window"]
    memory = last["layers.2"]
    assert len(memory["energy"]) == 3 and all(0 < share <= 1 for share in memory["saturation"])
    assert memory["write_rate"] == [1.0, 1.0, 1.0] and "spectrum" not in memory
    assert last["layers.0"]["fill"] == 1.0 and last["novelty"] > 1
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["layers.2.energy.1"]) for row in rows] == [line["layers.2"]["energy"][1] for line in lines]
    assert rows[0].keys() == flat(lines[0]).keys()


def test_the_update_is_that_of_the_piece(tmp_path: Path) -> None:
    model, tokens = memory_model(), torch.randint(30, (1, 24))
    recorder = Recorder(every=12, spectrum=True)
    stream = RecordedStream(model, recorder=recorder)
    stream.push(tokens[:, :9])
    before = stream.state.layers[1].memory  # type: ignore[union-attr]
    stream.push(tokens[:, 9:])
    moved = (stream.state.layers[1].memory - before)[0]  # type: ignore[union-attr]
    (record,) = recorder.records
    assert record["layers.1"]["update"] == pytest.approx(moved.square().sum((1, 2)).sqrt().tolist(), rel=1e-5)
    assert np.square(record["layers.1"]["spectrum"]).sum(1) == pytest.approx(record["layers.1"]["energy"], rel=1e-4)


def test_a_record_goes_on_where_the_steps_are_done_again(tmp_path: Path) -> None:
    paths = tmp_path / "probes.jsonl", tmp_path / "probes.csv"
    states = [memory_model()(torch.randint(30, (1, 8)))[1] for _ in range(4)]
    with Recorder(*paths) as recorder:
        for step in (10, 20, 30):
            recorder.observe(states[0], step=step)
    paths[0].write_text(paths[0].read_text() + '{"step": 4')  # cut short
    with Recorder(*paths, append=True) as recorder:
        recorder.observe(states[1], states[0], step=25)
    assert [json.loads(line)["step"] for line in paths[0].read_text().splitlines()] == [10, 20, 25]
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    assert [row["layers.1.update.0"] == "" for row in rows] == [True, True, False]
    with Recorder(*paths) as recorder:
        recorder.observe(states[2])
    assert [json.loads(line)["step"] for line in paths[0].read_text().splitlines()] == [8]


def test_a_stream_on_the_engine_is_recorded_by_its_state() -> None:
    model, tokens = memory_model(), torch.randint(30, (1, 50))
    recorder = Recorder(every=20, keep=5)
    stream = RecordedStream(model, recorder=recorder, backend="engine")
    for piece in tokens.split(10, 1):
        stream.push(piece)
    _, state = model(tokens[:, :40])
    assert [record["step"] for record in recorder.records] == [20, 40]
    wanted = energy(state.layers[1].memory)[0].tolist()  # type: ignore[union-attr]
    assert recorder.records[1]["layers.1"]["energy"] == pytest.approx(wanted, rel=1e-4)

    engine, recorder = ssmn.Engine(model), Recorder(every=20, keep=5)
    for token in tokens[0].tolist():
        engine.step(np.array([token]))
        recorder.observe_engine(engine)
    assert [record["step"] for record in recorder.records] == [20, 40]
    assert recorder.records[0]["layers.1"]["update"] == [None] * 3
    assert all(value > 0 for value in recorder.records[1]["layers.1"]["update"])


def test_training_is_recorded(tmp_path: Path) -> None:
    from ssmn.training import TrainConfig, train

    settings = {
        "task": {"name": "copy", "length": 4},
        "model": {"hidden_dim": 12, "num_layers": 3, "num_heads": 2, "window_size": 5},
        "train": {"steps": 5, "batch_size": 6, "tensorboard": False},
    }
    with Recorder(tmp_path / "probes.jsonl", every=2) as recorder:
        watched = train(TrainConfig.from_dict(settings), tmp_path / "watched", around_step=recorder.around)
    plain = train(TrainConfig.from_dict(settings), tmp_path / "plain")
    for name, weight in watched.model.state_dict().items():
        assert torch.equal(weight, plain.model.state_dict()[name])
    lines = [json.loads(line) for line in (tmp_path / "probes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["layers.1"]["kind"] == "plastic" and lines[0]["layers.1"]["importance"][0] > 0


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, state = memory_model()(torch.randint(30, (1, 8)))
    with Recorder(tmp_path / "board") as recorder:
        recorder.observe(state, step=7)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    (event,) = events.Scalars("probes/layers.2.energy.1")
    assert event.step == 7
    assert event.value == pytest.approx(recorder.records[0]["layers.2"]["energy"][1], rel=1e-6)


def test_a_recorder_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(RangeError, match="every=0; wanted a whole number of at least 1"):
        Recorder(every=0)
    with pytest.raises(FileError, match=r"probes.txt; wanted a file .jsonl or .csv, or a folder"):
        Recorder(tmp_path / "probes.txt")
    with Recorder(tmp_path / "probes.csv") as recorder:
        recorder.observe(memory_model().init_state(1))
        with pytest.raises(FileError, match="are not those of the table's columns"):
            recorder.observe(SSMN(SSMNConfig.preset("tiny", input_dim=2, output_dim=1)).init_state(1))


def test_the_command_line_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"line %d of a text\n" % number for number in range(40))
    folder, state = save_text_model(tmp_path / "model"), tmp_path / "state.safetensors"
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        words = ["stream", "--model", str(folder), "--state", str(state), "--probes", str(tmp_path / "p.csv")]
        assert main([*words, "--probe-every", "300"]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [len(text), 2 * len(text)]

    run = tmp_path / "run"
    pytest.importorskip("tensorboard")
    small = ["train.tensorboard=true", "task.length=4", "model.hidden_dim=12", "model.num_heads=2", "train.steps=3"]
    words = ["train", "--task", "copy", "--out", str(run), "--quiet", "--probe", "2"]
    assert main([*words, *(word for change in small for word in ("--set", change))]) == 0
    assert main(["train", "--out", str(run), "--resume", "--set", "train.steps=6", "--quiet", "--probe", "2"]) == 0
    lines = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert list((run / "tensorboard" / "probes").iterdir())


@pytest.mark.slow
def test_a_long_stream_on_the_engine_is_recorded_in_constant_memory(tmp_path: Path) -> None:
    """100,000 tokens into all three kinds of file, broken off by Ctrl-C: every record so far is whole and there."""
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    torch.manual_seed(0)
    engine, tokens = ssmn.Engine(memory_model()), np.random.default_rng(0).integers(30, size=100_000)
    paths, resident = (tmp_path / "p.jsonl", tmp_path / "p.csv", tmp_path / "board"), []
    recorder = Recorder(*paths, every=500)

    def run() -> None:
        with recorder:
            for number, token in enumerate(tokens, 1):
                engine.step(token.reshape(1))
                recorder.observe_engine(engine)
                if number % 20_000 == 0:
                    resident.append(resident_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    wanted = list(range(500, 100_001, 500))
    assert [json.loads(line)["step"] for line in paths[0].read_text().splitlines()] == wanted
    with paths[1].open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == wanted
    events = event_files.EventAccumulator(str(paths[2]), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("probes/layers.1.energy.0")] == wanted
    assert len(recorder.records) == 1 and max(resident) - resident[0] < 4_000_000
    with Recorder(*paths[:2], every=500, append=True) as again:  # goes on where it was broken off
        again.observe(engine.get_state(0), step=100_500)
    assert len(paths[0].read_text().splitlines()) == len(paths[1].read_text().splitlines()) - 1 == 201


@pytest.mark.slow
def test_ctrl_c_loses_no_record(tmp_path: Path) -> None:
    """`ssmn stream` is interrupted while it reads: table and state file hold what was answered."""
    folder, table, state = save_text_model(tmp_path / "model"), tmp_path / "p.csv", tmp_path / "s.safetensors"
    words = ["stream", "--model", folder, "--probes", table, "--probe-every", 2000, "--state", state]
    code = "import sys; from ssmn.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        feed = process.stdin

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):  # when the reader has gone
                feed.write(b"a line of a text\n" * 60_000)

        feeding = threading.Thread(target=write, daemon=True)
        feeding.start()
        for _ in range(1_000):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(120) == 130
        feeding.join(10)
    with table.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    read = int(ssmn.StreamState.load(state, ssmn.load_model(folder)).position[0])
    assert len(steps) >= 8 and steps == sorted(steps) and read - 4096 <= steps[-1] <= read
    assert [step // 2000 for step in steps] == sorted({step // 2000 for step in steps})


def least_times(tasks: dict[str, Any], rounds: int) -> dict[str, float]:
    """Seconds of processor time, the least of some alternating runs of each."""
    least = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            begun = time.process_time()
            task()
            least[name] = min(least[name], time.process_time() - begun)
    return least


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_cost_of_recording(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what a record costs in steps of reading, of the engine and of training, and what it costs between two."""
    torch.manual_seed(0)
    model = TextSSMN(TextSSMNConfig.preset(preset, vocab_size=1024)).eval()
    tokens, batch = torch.randint(1024, (1, 1024)), torch.randint(1024, (8, 257))
    never, always = Recorder(every=10**9), Recorder(tmp_path / "probes.jsonl", every=1)
    engine, optimiser = ssmn.Engine(model), torch.optim.AdamW(model.parameters())
    told = []

    def read(recorder: Recorder | None) -> None:
        RecordedStream(model, recorder=recorder).push(tokens)

    def run(recorder: Recorder | None) -> None:
        for token in tokens[0, :64].numpy():
            engine.step(token.reshape(1))
            if recorder is not None:
                recorder.observe_engine(engine)

    def train(recorder: Recorder | None) -> None:
        with contextlib.nullcontext() if recorder is None else recorder.around(model, 1):
            logits, _ = model(batch[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
            optimiser.step()
            optimiser.zero_grad()

    checks = {  # what is done where nothing is due: steps and records of a run, and the check by itself
        "reading": (read, 1024, 1, lambda: never.is_due(0, 1024)),
        "the engine": (run, 64, 64, lambda: never.observe_engine(engine)),
        "training": (train, 1, 1, lambda: never.around(model, 1)),
    }
    for name, (task, steps, records, check) in checks.items():
        model.train(name == "training")
        with torch.set_grad_enabled(name == "training"):
            found = least_times({"off": partial(task, None), "on": partial(task, always)}, 7)
            idle = least_times({"idle": lambda: [check() for _ in range(1000)]}, 5)["idle"] / 1000  # noqa: B023
        extra = (found["on"] / found["off"] - 1) * steps / records
        told.append((name, 100 * idle * records / found["off"], extra))
    always.close()
    with capsys.disabled():
        for name, idle, extra in told:
            print(f"\n{preset}, {name}: between records {idle:.2g} %; a record {extra:,.2f} steps", end="")
            print(f", within 5 % from every={math.ceil(max(1.0, 20 * extra)):,} on", end="")
    assert always.records and not never.records
