"""Settings, data, the loop and its files: exact resumption, safe interruption, nothing bad kept."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssmn
from ssmn import native
from ssmn.cli import main
from ssmn.errors import ConfigError, FileError, MissingExtraError, TrainingError
from ssmn.files import read_file
from ssmn.training import (
    Progress,
    Tokenizer,
    TrainConfig,
    TrainResult,
    build_model,
    evaluate_stream,
    evaluate_task,
    examine,
    load_settings,
    settings_for,
    shipped_configs,
    train,
)
from ssmn.training.data import Corpus, StreamBatches, shuffled, text_files
from ssmn.training.muon import Muon
from ssmn.training.settings import OptimisationConfig, differences, extend, override, to_toml
from ssmn.training.trainer import BfloatProducts, Trainer

MODEL = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "window_size": 5, "ffn_dim": 24}
LINES = "the cat sat on the mat; the dog sat on the log.\nné 🙂 again and again\n"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(LINES * 30, encoding="utf-8")
    return path


def text_settings(book: Path, **changes: Any) -> TrainConfig:
    settings = {
        "data": {"text": str(book), "held_out": 0.1},
        "model": MODEL,
        "train": {"steps": 20, "batch_size": 3, "piece_length": 37, "warmup_steps": 4, "log_every": 4,
                  "checkpoint_every": 7, "tensorboard": False},
    }  # fmt: skip
    return TrainConfig.from_dict(extend(settings, changes))


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, msg=name)


class InterruptAt:
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            signal.raise_signal(signal.SIGINT)


# --- settings ---------------------------------------------------------------------------------------------------


def test_settings_survive_toml(book: Path) -> None:
    config = text_settings(book, model={"rope_theta": "none"}, train={"betas": [0.8, 0.9]})
    assert TrainConfig.from_dict(tomllib.loads(to_toml(config.to_dict()))) == config
    assert config.train.betas == (0.8, 0.9)
    assert text_settings(book, train={"tensorboard": "none"}).train.tensorboard is None
    assert config.model_config(kind="text", vocab_size=9).rope_theta is None
    assert tomllib.loads(to_toml({"a b": {'"': ["x\n", 1e-9, True]}})) == {"a b": {'"': ["x\n", 1e-9, True]}}


def test_overrides_are_toml_or_words() -> None:
    values = override({"train": {"steps": 1}}, ["train.steps=5", "data.text=a b.txt", "model.x.y=[1, 2]", "seed = 3"])
    assert values == {"train": {"steps": 5}, "data": {"text": "a b.txt"}, "model": {"x": {"y": [1, 2]}}, "seed": 3}
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3}) == ["a.c", "d"]
    with pytest.raises(ConfigError, match=r"--set 'steps': wanted section\.setting=value"):
        override({}, ["steps"])


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('[task]\nname = "mqar"\npairs = 4\n[train]\nsteps = 3\n')
    (tmp_path / "more.toml").write_text('extends = "base.toml"\n[train]\nbatch_size = 2\n')
    (tmp_path / "other.toml").write_text('extends = "more.toml"\n[task]\nname = "copy"\n')
    assert load_settings(tmp_path / "more.toml")["task"] == {"name": "mqar", "pairs": 4}
    assert load_settings(tmp_path / "other.toml") == {
        "task": {"name": "copy"},
        "train": {"steps": 3, "batch_size": 2},
    }
    (tmp_path / "self.toml").write_text('extends = "self.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        load_settings(tmp_path / "self.toml")


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_settings_are_sound(name: str, book: Path) -> None:
    values = load_settings(name)
    if "task" not in values:
        key = "series" if name == "series" else "text"
        data = {k: v for k, v in values.get("data", {}).items() if k != "text"}
        values["data"] = {**data, key: str(book)}
    config = TrainConfig.from_dict(values)
    sizes = {} if config.task else {"kind": "text", "vocab_size": 300}
    assert config.model_config(**sizes).num_layers >= 2


def test_settings_for_data_and_tasks(book: Path) -> None:
    assert settings_for(task="mqar-rebound") == load_settings("rebound")
    assert settings_for("mqar", task="mqar", overrides=["task.pairs=3"])["task"]["pairs"] == 3
    assert settings_for("distance", task="copy")["task"] == {"name": "copy"}
    assert "evaluate" not in settings_for("distance", task="copy")
    assert settings_for(text=book)["data"]["text"] == str(book)
    assert "task" not in settings_for("mqar", series=book)
    for arguments, message in (
        ({}, "nothing to train on"),
        ({"task": "mqr"}, "unknown task 'mqr'; did you mean 'mqar'"),
        ({"task": "mqar", "text": book}, "text and task were given"),
        ({"config": "mqra"}, "neither a file nor a shipped configuration; did you mean 'mqar'"),
        ({"config": str(book)}, "is not a TOML file"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_for(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tsk": {}}, "unknown setting 'tsk'; did you mean 'task'"),
        ({}, "exactly one of a \\[data\\] and a \\[task\\] section"),
        ({"task": 3}, "task=3; wanted a section"),
        ({"data": {}}, "exactly one of data.text and data.series"),
        ({"data": {"text": "x", "held_out": 1.0}}, "held_out=1.0; wanted a share"),
        ({"task": {"name": "copy"}, "seed": -1}, "seed=-1; wanted 0 or more"),
        ({"task": {"name": "copy"}, "seed": 1.5}, "seed=1.5; wanted an integer"),
        ({"task": {"name": "copy"}, "train": {"step": 3}}, "train: unknown setting 'step'; did you mean 'steps'"),
        ({"task": {"name": "copy"}, "train": {"steps": 0}}, "steps=0; wanted at least 1"),
        ({"task": {"name": "copy"}, "train": {"learning_rate": -1}}, "wanted positive numbers"),
        ({"task": {"name": "copy"}, "train": {"betas": [0.9]}}, "betas=\\[0.9\\]; wanted 2 values"),
        ({"task": {"name": "copy"}, "train": {"betas": [0.9, 1.0]}}, "wanted two numbers in"),
        ({"task": {"name": "copy"}, "train": {"final_rate": 2.0}}, "final_rate=2.0; wanted a share"),
        ({"task": {"name": "copy"}, "train": {"compute_dtype": "int8"}}, "wanted one of auto, float32, bfloat16"),
        ({"task": {"name": "copy"}, "train": {"tensorboard": "yes"}}, "wanted true or false"),
        ({"task": {"name": "copy"}, "model": {"preset": "giant"}}, "preset='giant'; wanted one of tiny"),
        ({"task": {"name": "copy"}, "evaluate": {"x": {"task": {"len": 3}}}}, "evaluate.x.task: unknown setting 'len'"),
        ({"task": {"name": "copy"}, "evaluate": {"x": {"batches": 0}}}, "batches=0"),
        ({"data": {"text": "x"}, "evaluate": {"x": {}}}, "belong to a task"),
        ({"data": {"text": "x"}, "steps": 3}, "unknown setting 'steps'; did you mean 'train.steps'"),
        ({"data": {"text": "x"}, "window_size": 3}, "did you mean 'model.window_size'"),
        ({"data": {"text": "x"}, "model": {"hiden_dim": 3}}, "unknown setting 'hiden_dim'; did you mean 'hidden_dim'"),
        ({"data": {"series": "x"}, "model": {"hiden_dim": 3}}, "model: unknown setting 'hiden_dim'; did you mean"),
        ({"data": {"text": "x"}, "model": {"hidden_dim": 33, "num_heads": 2}}, "wanted a divisor of hidden_dim=33"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)


def test_model_settings_must_fit_the_data() -> None:
    config = TrainConfig.from_dict({"task": {"name": "copy"}, "model": {"vocab_size": 7}})
    with pytest.raises(ConfigError, match="vocab_size=7, but the data needs 1032"):
        config.model_config()
    config = TrainConfig.from_dict({"task": {"name": "copy"}, "model": {"hidden_dm": 7}})
    with pytest.raises(ConfigError, match="unknown setting 'hidden_dm'; did you mean 'hidden_dim'"):
        config.model_config()


def test_the_learning_rate_rises_and_falls_as_a_cosine() -> None:
    settings = OptimisationConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_rate=0.25)
    assert [settings.rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert settings.rate(60) == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert settings.rate(110) == pytest.approx(0.5)


# --- data -------------------------------------------------------------------------------------------------------


def test_pieces_of_parallel_streams_follow_on_each_other(book: Path) -> None:
    corpus = Corpus.from_text([book], Tokenizer.for_bytes())
    batches = StreamBatches(corpus, batch_size=3, piece_length=37)
    length = (len(corpus) - 1) // 3
    assert batches.pieces == length // 37
    pieces = [batches.batch(step) for step in range(batches.pieces)]
    assert [piece.fresh for piece in pieces] == [True] + [False] * (batches.pieces - 1)
    whole = torch.cat([piece.inputs for piece in pieces], 1)
    targets = torch.cat([piece.targets for piece in pieces], 1)
    torch.testing.assert_close(whole[:, 1:], targets[:, :-1])
    for row in range(3):
        np.testing.assert_array_equal(whole[row], corpus.steps[row * length : row * length + whole.shape[1]])
    again = batches.batch(batches.pieces)
    assert again.fresh
    torch.testing.assert_close(again.inputs, pieces[0].inputs)
    assert pieces[0].target_bytes == 3 * 37


def test_some_pieces_begin_fresh_whatever_the_order_they_are_asked_in(book: Path) -> None:
    corpus = Corpus.from_text([book], Tokenizer.for_bytes())
    batches = StreamBatches(corpus, batch_size=3, piece_length=37, fresh_rate=0.3, seed=5)
    chosen = [batches.batch(step).fresh_rows for step in range(200)]
    share = np.mean([0.0 if rows is None else rows.double().mean().item() for rows in chosen])
    assert 0.22 < share < 0.38
    some = next(step for step, rows in enumerate(chosen) if rows is not None)
    torch.testing.assert_close(batches.batch(some).fresh_rows, chosen[some])
    assert StreamBatches(corpus, batch_size=3, piece_length=37).batch(17).fresh_rows is None


def test_a_fresh_piece_forgets_what_came_before(book: Path, tmp_path: Path) -> None:
    def position(rate: float) -> list[int]:
        config = text_settings(book, train={"fresh_rate": rate, "steps": 3})
        tensors, _ = read_file(train(config, tmp_path / str(rate)).folder / "checkpoint.safetensors")
        return tensors["stream.position"].tolist()

    assert position(1.0) == [37] * 3
    assert position(0.0) == [3 * 37] * 3


def test_a_folder_is_read_in_order_and_pieces_name_their_files(tmp_path: Path) -> None:
    for name, content in {"b.txt": "bbbbb", "a.txt": "aaa", ".hidden": "no", "sub/c.txt": "cc"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    corpus = Corpus.from_text(text_files(tmp_path), Tokenizer.for_bytes())
    assert bytes(corpus.steps.tolist()) == b"aaabbbbbcc"
    assert corpus.name_of([0], 3) == str(tmp_path / "a.txt")
    assert [Path(name).name for name in corpus.name_of([2, 8], 1).split(", ")] == ["a.txt", "c.txt"]
    begin, end = corpus.split(0.35)
    assert bytes(begin.steps.tolist() + end.steps.tolist()) == b"aaabbbbbcc"
    assert end.name_of([0], 1) == str(tmp_path / "b.txt")
    assert end.name_of([3], 1) == str(tmp_path / "sub" / "c.txt")
    with pytest.raises(TrainingError, match=r"no file that fits pattern '\*\.md'"):
        text_files(tmp_path, "*.md")
    with pytest.raises(TrainingError, match="does not exist"):
        text_files(tmp_path / "absent")


def test_tables_are_read_and_refused_by_row(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("date,a,b\n2020-01-01,1,2.5\n2020-01-02,3,-4e1\n")
    assert Corpus.from_tables([table]).steps.tolist() == [[1, 2.5], [3, -40]]
    table.write_text("1,2\n3,x\n")
    with pytest.raises(FileError, match="row 2 is '3,x'"):
        Corpus.from_tables([table])
    table.write_text("a,b\n")
    with pytest.raises(FileError, match="no row of numbers"):
        Corpus.from_tables([table])
    wide = tmp_path / "wide.csv"
    wide.write_text("1,2,3\n")
    table.write_text("1,2\n")
    with pytest.raises(FileError, match=r"3 columns, but .* has 2"):
        Corpus.from_tables([table, wide])


def test_data_that_cannot_be_trained_on(book: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch_size \* train\.piece_length \+ 1 = 30001: lower"):
        train(text_settings(book, train={"piece_length": 10_000}), tmp_path / "long")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    with pytest.raises(FileError, match=r"latin\.txt: byte 3 is not UTF-8; leave the file out"):
        train(text_settings(tmp_path / "latin.txt", data={"tokenizer": "bpe"}), tmp_path / "latin")
    (tmp_path / "void.txt").touch()
    with pytest.raises(TrainingError, match="data: there is nothing in it to train on"):
        train(text_settings(tmp_path / "void.txt"), tmp_path / "void")


# --- the loop ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_whole_folder(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(text_settings(book, data={"tokenizer": "bpe", "vocab_size": 300}, train={"evaluate_every": 10}), out)
    assert not result.interrupted
    assert result.step == 20
    loaded = ssmn.TextSSMN.from_pretrained(out)
    assert_identical(weights(result), loaded.state_dict())
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    assert tokenizer.vocab_size == loaded.config.vocab_size
    resolved = TrainConfig.from_dict(load_settings(out / "train.toml"))
    assert resolved.model_config(kind="text", vocab_size=tokenizer.vocab_size) == loaded.config
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10, 12, 16, 20, 20, 20]
    assert lines[0]["loss"] > lines[5]["loss"]
    assert lines[0]["figure"] == "bits_per_byte"
    assert result.figures == {"held_out_bits_per_byte": lines[-1]["held_out_bits_per_byte"]}
    held_out = tokenizer.encode(book.read_bytes())
    held_out = held_out[len(held_out) - math.ceil(len(held_out) * 0.1) :]
    score = evaluate_stream(loaded, held_out, tokenizer=tokenizer, piece_length=23)
    assert score.bits_per_byte == pytest.approx(lines[-1]["held_out_bits_per_byte"], rel=1e-5)


@pytest.mark.parametrize("carried", [1, 3])
def test_stretches_are_shuffled_and_cover_the_corpus(carried: int) -> None:
    corpus = Corpus(np.arange(125), (), ())
    batches = StreamBatches(corpus, batch_size=2, piece_length=5, seed=3, carried_pieces=carried)
    assert batches.pieces == 12
    begins = []
    for passed in (0, 12):
        pieces = [batches.batch(passed + step) for step in range(12)]
        assert [batch.fresh for batch in pieces] == [step % carried == 0 for step in range(12)]
        for before, after in itertools.pairwise(pieces):
            if not after.fresh:
                torch.testing.assert_close(after.inputs, before.inputs + 5)
        begins.append([row[0] for batch in pieces for row in batch.inputs.tolist()])
        assert sorted(begins[-1]) == list(range(0, 120, 5))
    assert begins[0] != begins[1]
    with pytest.raises(TrainingError, match=r"piece_length \* train\.carried_pieces \+ 1 = 181: lower"):
        StreamBatches(corpus, batch_size=2, piece_length=30, carried_pieces=3)


def test_evaluates_on_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "x.txt").write_text(f"{name} {LINES}" * 30, encoding="utf-8")
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "y.txt").write_text("quite another text\n" * 9, encoding="utf-8")
    data = {"text": str(tmp_path / "text"), "validation": str(tmp_path / "late"), "shuffle": True}
    result = train(text_settings(tmp_path, data=data, train={"steps": 2}), tmp_path / "out")
    score = evaluate_stream(
        result.model, Tokenizer.for_bytes().encode("quite another text\n" * 9), tokenizer=Tokenizer.for_bytes()
    )
    assert result.figures["held_out_bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-6)
    files = text_files(tmp_path / "text")
    assert shuffled(files, seed=0) == shuffled(files, seed=0) != shuffled(files, seed=1)
    assert sorted(shuffled(files, seed=1)) == files
    whole = Corpus(np.arange(1000), (), ())
    assert whole.sample(1000).steps.tolist() == whole.steps.tolist()
    assert whole.sample(64).steps.tolist() == [62 * i + j for i in range(16) for j in range(4)]


@pytest.mark.parametrize(("compute_dtype", "optimizer"), [("float32", "adamw"), ("bfloat16", "muon"), ("auto", "muon")])
def test_resuming_continues_bit_for_bit(book: Path, tmp_path: Path, compute_dtype: str, optimizer: str) -> None:
    config = text_settings(book, train={"compute_dtype": compute_dtype, "optimizer": optimizer})
    whole = train(config, tmp_path / "whole")
    stop = InterruptAt(10) if optimizer == "adamw" else lambda progress: progress.step == 10
    stopped = train(config, tmp_path / "halves", on_step=stop)
    assert (stopped.interrupted, stopped.step) == (True, 10)
    resumed = train(config, tmp_path / "halves", resume=True)
    assert_identical(weights(whole), weights(resumed))
    one, header = read_file(tmp_path / "whole" / "checkpoint.safetensors", kind="checkpoint")
    other, _ = read_file(tmp_path / "halves" / "checkpoint.safetensors", kind="checkpoint")
    assert header["step"] == 20
    assert any(name.startswith("stream.") for name in one)
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in one)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    lines = (tmp_path / "halves" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12, 16, 20, 20]


def test_interruption_at_every_step_leaves_the_same_weights(tmp_path: Path) -> None:
    settings = {"task": {"name": "mqar", "pairs": 3, "vocab_size": 40}, "model": MODEL,
                "train": {"steps": 4, "batch_size": 2, "tensorboard": False}}  # fmt: skip
    config = TrainConfig.from_dict(settings)
    whole = train(config, tmp_path / "whole")
    for step in range(1, 5):
        result = train(config, tmp_path / "parts", resume=step > 1, on_step=InterruptAt(step))
        assert (result.step, result.interrupted) == (step, step < 4)
    assert_identical(weights(whole), weights(result))


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    settings = {"task": {"name": "copy", "length": 3}, "model": MODEL, "train": {"steps": 1, "tensorboard": False}}
    train(TrainConfig.from_dict(settings), tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_is_not_overwritten_or_mixed_up(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = text_settings(book, train={"steps": 2})
    with pytest.raises(TrainingError, match="to resume; leave --resume out"):
        train(config, out, resume=True)
    train(config, out)
    with pytest.raises(TrainingError, match="already holds a run; pass --resume"):
        train(config, out)
    with pytest.raises(FileError, match=r"book\.txt cannot be made a folder \(File exists\); choose another --out"):
        train(config, book)
    with pytest.raises(TrainingError, match=r"model\.window_size, seed differ from the run"):
        train(dataclasses.replace(config, seed=1, model={**config.model, "window_size": 6}), out, resume=True)
    with pytest.raises(TrainingError, match=r"train\.batch_size differs from the run"):
        train(text_settings(book, train={"batch_size": 4}), out, resume=True)
    longer = train(text_settings(book, train={"steps": 3, "learning_rate": 1e-4}), out, resume=True)
    assert longer.step == 3
    book.write_text(LINES * 31)
    with pytest.raises(TrainingError, match="the data is not what the run"):
        train(config, out, resume=True)


def table_settings(table: Path) -> TrainConfig:
    settings = {"data": {"series": str(table), "held_out": 0.0}, "model": MODEL,
                "train": {"steps": 8, "batch_size": 1, "piece_length": 10, "checkpoint_every": 3,
                          "tensorboard": False}}  # fmt: skip
    return TrainConfig.from_dict(settings)


def test_nan_in_the_data_stops_with_step_and_file(tmp_path: Path) -> None:
    numbers = np.sin(np.arange(0, 100, 0.5)).reshape(100, 2)
    numbers[55, 1] = np.nan
    table = tmp_path / "sensor.csv"
    np.savetxt(table, numbers, delimiter=",")
    with pytest.raises(TrainingError, match=r"the data of step 6 is not finite \(in .*sensor\.csv\)"):
        train(table_settings(table), tmp_path / "run")
    _, header = read_file(tmp_path / "run" / "checkpoint.safetensors")
    assert header["step"] == 3


def test_a_standard_model_learns_a_table(tmp_path: Path) -> None:
    table = tmp_path / "sensor.csv"
    np.savetxt(table, np.sin(np.arange(0, 200, 0.5)).reshape(200, 2), delimiter=",", header="a,b", comments="")
    result = train(table_settings(table), tmp_path / "run")
    assert isinstance(result.model, ssmn.SSMN)
    assert result.tokenizer is None
    assert math.isnan(evaluate_stream(result.model, np.zeros((5, 2), dtype=np.float32)).bits_per_byte)


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_nothing_bad_is_ever_saved(book: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def sabotaged(trainer: Any, batch: Any) -> Any:
        if trainer.step == 8 and what == "loss":
            trainer.model.norm.weight.data.fill_(math.inf)
        if trainer.step == 8 and what == "gradient":
            trainer.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        result = advance(trainer, batch)
        if trainer.step == 14 and what == "weights":
            trainer.model.norm.weight.data.fill_(math.nan)
        return result

    monkeypatch.setattr(Trainer, "advance", sabotaged)
    message = {
        "loss": r"the loss is nan at step 9 \(data: .*book\.txt\)",
        "gradient": r"the gradient's norm is nan at step 9 \(data: .*book\.txt\)",
        "weights": r"model\.norm\.weight is not finite after step 14; nothing was saved",
    }[what]
    with pytest.raises(TrainingError, match=message):
        train(text_settings(book), tmp_path / "run")
    arrays, header = read_file(tmp_path / "run" / "checkpoint.safetensors")
    assert header["step"] == 7
    assert all(np.isfinite(array).all() for array in arrays.values())
    monkeypatch.undo()
    assert train(text_settings(book), tmp_path / "run", resume=True).step == 20


def test_bfloat16_keeps_weights_optimizer_and_state_in_float32(book: Path, tmp_path: Path) -> None:
    exact = train(text_settings(book), tmp_path / "exact")
    low = train(text_settings(book, train={"compute_dtype": "bfloat16"}), tmp_path / "low")
    arrays, _ = read_file(tmp_path / "low" / "checkpoint.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(name) for name in ("float32", "int64", "uint8")}
    gaps = [float((weights(exact)[name] - weights(low)[name]).abs().max()) for name in weights(exact)]
    assert 0 < max(gaps) < 0.1
    assert low.figures["held_out_bits_per_byte"] == pytest.approx(exact.figures["held_out_bits_per_byte"], abs=0.05)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_bfloat16_rounds_weight_products_and_not_the_recurrence(backend: Any) -> None:
    k, v = torch.randn(2, 2, 70, 1, 8)
    k, eta, log_decay = torch.nn.functional.normalize(k, dim=-1), torch.rand(2, 70, 1), -torch.rand(2, 70, 1) / 9
    linear = torch.nn.Linear(8, 5)
    with BfloatProducts():
        rounded = linear(k)
        _, low = ssmn.ops.memory_write(k, v, eta=eta, log_decay=log_decay, backend=backend)
    _, exact = ssmn.ops.memory_write(k, v, eta=eta, log_decay=log_decay, backend=backend)
    torch.testing.assert_close(low, exact, rtol=0, atol=0)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - linear(k)).detach().abs().max()) < 0.02
    rounded.sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


def test_the_copy_in_bfloat16_is_of_what_is_there_now() -> None:
    x, linear = torch.randn(3, 8), torch.nn.Linear(8, 5)
    with BfloatProducts():
        first, again = linear(x), linear(x)
        x += 1
        moved = linear(x)
        with torch.no_grad():
            silent = linear(leaf := torch.randn(3, 8, requires_grad=True))
        tracked = linear(leaf)
    assert torch.equal(first, again)
    torch.testing.assert_close(moved, linear(x), rtol=0.02, atol=0.02)
    assert torch.equal(silent, tracked)
    tracked.sum().backward()
    assert leaf.grad is not None


def test_only_matrices_decay() -> None:
    model = build_model(ssmn.TextSSMNConfig(vocab_size=11, **MODEL))  # type: ignore[arg-type]
    trainer = Trainer(model, OptimisationConfig(weight_decay=0.3))
    [adam] = trainer.optimizers
    decayed, free = adam.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert all(weight.dim() >= 2 for weight in decayed["params"])
    assert all(weight.dim() < 2 for weight in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    assert decayed["betas"] == (0.9, 0.98)


def test_muon_turns_the_inner_matrices() -> None:
    model = build_model(ssmn.TextSSMNConfig(vocab_size=11, semantic_encoder=True, **MODEL))  # type: ignore[arg-type]
    settings = OptimisationConfig(optimizer="muon", weight_decay=0.3)
    muon, adam = Trainer(model, settings).optimizers
    names = {id(weight): name for name, weight in model.named_parameters()}
    turned = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    left = {names[id(weight)] for group in adam.param_groups for weight in group["params"]}
    assert {"encoder.down.weight", "blocks.0.ffn.gate.weight", "blocks.0.mixer.query.weight"} <= turned
    assert {"embedding.weight", "blocks.0.mixer.importance.present.weight", "norm.weight"} <= left
    assert turned | left == set(names.values())
    assert not turned & left
    assert muon.param_groups[0]["weight_decay"] == 0.3


def test_muon_is_the_published_iteration() -> None:
    """Torch's own computes in bfloat16, so two of its digits are compared; ours does not depend on the dtype."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 40), (40, 12), (9, 9))]
    gradients = [[torch.randn(weight.shape, generator=generator) for weight in start] for _ in range(3)]
    ends = []
    for made, dtype in ((torch.optim.Muon, torch.float32), (Muon, torch.float32), (Muon, torch.float64)):
        weights = [torch.nn.Parameter(weight.to(dtype, copy=True)) for weight in start]
        options: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw"} if made is torch.optim.Muon else {}
        optimizer = made(weights, lr=0.1, weight_decay=0.3, **options)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.to(dtype)
            optimizer.step()
        ends.append([weight.detach().double() for weight in weights])
    for published, ours, precise in zip(*ends, strict=True):
        torch.testing.assert_close(ours, published, rtol=0, atol=4e-3)
        torch.testing.assert_close(ours, precise, rtol=0, atol=1e-6)


def test_auto_takes_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(ssmn.TextSSMNConfig(vocab_size=11, **MODEL))  # type: ignore[arg-type]
    settings = OptimisationConfig(compute_dtype="auto")
    for paths, is_low in ((("avx512-bf16", "avx2"), True), (("avx512", "avx2"), False), ((), False)):
        status = dataclasses.replace(native.status(), runnable=paths)
        monkeypatch.setattr(native, "status", lambda status=status: status)
        products = Trainer(model, settings).products
        assert isinstance(products, BfloatProducts) == is_low


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_is_written_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"task": {"name": "copy", "length": 3}, "model": MODEL, "train": {"steps": 1, "tensorboard": True}}
    config = TrainConfig.from_dict(settings)
    find_spec = importlib.util.find_spec
    if find_spec("tensorboard") is not None:
        train(config, tmp_path / "with")
        assert list((tmp_path / "with" / "tensorboard").iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install \"sparse-stream\[train\]\""):
        train(config, tmp_path / "without")
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, tensorboard=None)), tmp_path / "silent")
    assert not (tmp_path / "silent" / "tensorboard").exists()


# --- evaluation -------------------------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_the_pieces() -> None:
    tokens = Tokenizer.for_bytes().encode(LINES)
    lm = ssmn.TextSSMN(ssmn.TextSSMNConfig(vocab_size=256, **MODEL))  # type: ignore[arg-type]
    scores = [evaluate_stream(lm, tokens, tokenizer=Tokenizer.for_bytes(), piece_length=n) for n in (7, 1024)]
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-5)
    assert scores[0].bits_per_byte == pytest.approx(scores[0].loss / math.log(2), rel=1e-9)
    assert scores[0].target_bytes == scores[0].steps == len(LINES.encode()) - 1
    task = TrainConfig.from_dict({"task": {"name": "drift", "length": 90, "switch_after": 70}}).task
    assert task is not None
    model = ssmn.SSMN(ssmn.SSMNConfig(input_dim=8, output_dim=8, **MODEL))  # type: ignore[arg-type]
    figures = [evaluate_task(model, task, batches=1, batch_size=2, piece_length=n) for n in (11, 4096)]
    assert list(figures[0]) == ["error_0-8", "error_8-16", "error_16-32", "error_32-64", "error_64+"]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_examination_reports_every_figure_of_every_seed() -> None:
    settings = {
        "task": {"name": "copy", "length": 4, "vocab_size": 40},
        "model": MODEL,
        "train": {"steps": 1, "batch_size": 2, "tensorboard": False},
        "evaluate": {"recall": {"at_least": 2.0, "batches": 1}, "frozen": {"frozen": True, "at_most": 1.0}},
    }
    config = TrainConfig.from_dict(settings)
    figures = list(examine(config, seeds=(3, 5)))
    assert [(figure.seed, figure.name, figure.met, figure.goal) for figure in figures] == [
        (3, "recall", False, "≥ 2"),
        (3, "frozen", True, "≤ 1"),
        (5, "recall", False, "≥ 2"),
        (5, "frozen", True, "≤ 1"),
    ]
    untrained = TrainConfig.from_dict(extend(settings, {"evaluate": {"untrained": {"untrained": True}}}))
    (*_, figure) = examine(untrained, seeds=(3,))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(config.model_config())
    assert config.task is not None
    assert figure.value == evaluate_task(model, config.task, seed=3)["accuracy"]
    with pytest.raises(ConfigError, match=r"no \[evaluate\.NAME\] section"):
        list(examine(TrainConfig.from_dict({"task": {"name": "copy"}})))


# --- the command line -------------------------------------------------------------------------------------------


def test_train_and_eval_from_the_command_line(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    small = ["train.steps=3", "train.batch_size=2", "train.piece_length=20", "train.tensorboard=false"]
    small += [f"model.{name}={value}" for name, value in MODEL.items()]
    changes = [word for change in small for word in ("--set", change)]
    assert main(["train", "--text", str(book), "--out", out, *changes]) == 0
    written = capsys.readouterr().err
    assert "training 3/3 loss" in written
    assert "held out bits per byte" in written
    assert main(["train", "--out", out, "--resume", "--set", "train.steps=4", "--quiet"]) == 0
    assert main(["eval", out, "--text", str(book), "--limit", "200", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["memory"] for row in rows] == ["on", "frozen"]
    assert rows[0]["bytes"] < 200
    assert main(["eval", out]) == 1
    assert "was not trained on a task; give --text FILE or --task NAME" in capsys.readouterr().err
    texts = tmp_path / "texts"
    texts.mkdir()
    (tmp_path / "void").touch()
    for name, content in (("a", "naïve"), ("b", "naïve"), ("bad", b"caf\xe9 and more")):
        (texts / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["eval", out, "--text", str(texts), "--limit", "9", "--json"]) == 0  # cuts the second ï in two
    assert 0 < json.loads(capsys.readouterr().out.splitlines()[0])["bytes"] < 8
    for path, words in (
        (texts, f"byte 15 of {texts} is not UTF-8"),
        (tmp_path / "nope", "nope does not exist; wanted a text file or a folder"),
        (tmp_path / "void", "void gives 0 tokens; wanted a text of at least 2"),
    ):
        assert main(["eval", out, "--text", str(path)]) == 1
        assert words in capsys.readouterr().err
    assert main(["eval", out, "--task", "mqar"]) == 1
    assert "task mqar wants a model of vocab_size=1032" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--text", str(book), "--out", out]) == 1
    assert "already holds a run" in capsys.readouterr().err

    task = ["--set", "task.length=4", "--set", "train.steps=2", "--set", "task.vocab_size=40"]
    run = str(tmp_path / "copy")
    assert main(["train", "--task", "copy", "--out", run, *task, "--compute-dtype", "bfloat16", "-q"]) == 0
    assert main(["eval", run, "--set", "task.length=3"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["eval", "--config", "copy", "--seeds", "2", *task, "--set", "evaluate.recall.at_least=1.1", "-q"]) == 1
    table = capsys.readouterr().out
    assert "≥ 1.1" in table
    assert "NO" in table
    assert main(["eval"]) == 2


def test_ctrl_c_on_the_command_line_says_how_to_go_on(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmn.cli.train import Display

    monkeypatch.setattr(Display, "show", lambda self, progress: InterruptAt(2)(progress))
    out = tmp_path / "run"
    words = ["train", "--task", "copy", "--out", str(out), "--set", "task.length=3", "--set", "train.batch_size=2"]
    assert main(words) == 130
    assert f"Stopped after step 2; go on with: ssmn train --out {out} --resume" in capsys.readouterr().err
    _, header = read_file(out / "checkpoint.safetensors")
    assert header["step"] == 2
