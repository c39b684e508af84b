"""Where a run's batches come from: files of text or of series, or a task."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmn.models.stack import Stack
from ssmn.training.data import Corpus, StreamBatches, read_text, shuffled, text_files
from ssmn.training.evaluate import evaluate_stream, evaluate_task, targets_of
from ssmn.training.settings import DataConfig, TrainConfig
from ssmn.training.tasks import Batch, Task
from ssmn.training.tokenizer import Tokenizer

_EVALUATED_STEPS = 1 << 15
"""Held-out steps that an evaluation during training reads at most."""


@dataclass(frozen=True, eq=False)
class Source:
    """The batches of a run, and what decides them."""

    batch: Callable[[int], Batch]
    model_settings: dict[str, Any]
    digest: str
    tokenizer: Tokenizer | None
    evaluate: Callable[[Stack], dict[str, float]]


def open_source(config: TrainConfig, tokenizer_file: Path | None, corpora: tuple[Corpus, Corpus] | None) -> Source:
    """The batches that the settings name; text is encoded by the tokenizer of a file, if there is one already."""
    if config.task is not None:
        return _task_source(config.task, config)
    assert config.data is not None
    corpus, other = corpora or _read_corpora(config.data, config.seed, tokenizer_file)
    tokenizer, settings = corpus.tokenizer, config.train
    if tokenizer is not None:
        sizes = {"kind": "text", "vocab_size": tokenizer.vocab_size}
    else:
        columns = corpus.steps.shape[1]
        sizes = {
            "kind": "standard",
            "input_dim": columns,
            "output_dim": len(config.model.get("targets", ())) or columns,
        }
    batches = StreamBatches(
        corpus, settings.batch_size, settings.piece_length, settings.fresh_rate, config.seed, settings.carried_pieces
    )
    model_config = config.model_config(**sizes)

    def batch(step: int) -> Batch:
        made = batches.batch(step)
        return dataclasses.replace(made, targets=targets_of(model_config, made.targets))

    return Source(
        batch=batch,
        model_settings=sizes,
        digest=hashlib.sha256(corpus.steps.tobytes()).hexdigest(),
        tokenizer=tokenizer,
        evaluate=lambda model: _stream_figures(model, other),
    )


def _read_corpora(data: DataConfig, seed: int, tokenizer_file: Path | None) -> tuple[Corpus, Corpus]:
    """The streams to train and to evaluate on."""
    files = text_files(data.text or data.series or "", data.pattern)
    if data.shuffle:
        files = shuffled(files, seed)
    if data.text is None:
        read = Corpus.from_tables
    else:
        tokenizer = _tokenizer(str(tokenizer_file or data.tokenizer), files, data.vocab_size)
        read = functools.partial(Corpus.from_text, tokenizer=tokenizer)
    corpus = read(files)
    if data.validation is None:
        begin, last = corpus.split(data.held_out)
        return begin, last.cut(_EVALUATED_STEPS)
    return corpus, read(text_files(data.validation, data.pattern)).sample(_EVALUATED_STEPS)


def _task_source(task: Task, config: TrainConfig) -> Source:
    return Source(
        batch=lambda step: task.batch(step, batch_size=config.train.batch_size, seed=config.seed),
        model_settings=task.model_settings(),
        digest="",
        tokenizer=None,
        evaluate=lambda model: evaluate_task(model, task, batches=4, seed=config.seed),
    )


def _tokenizer(name: str, files: list[Path], vocab_size: int) -> Tokenizer:
    if name == "bytes":
        return Tokenizer.for_bytes()
    if name == "bpe":
        return Tokenizer.train_bpe((read_text(file, utf8=True).decode() for file in files), vocab_size)
    return Tokenizer.load(name)


def _stream_figures(model: Stack, corpus: Corpus) -> dict[str, float]:
    if len(corpus) < 2:
        return {}
    score = evaluate_stream(model, corpus.steps, tokenizer=corpus.tokenizer)
    name = "held_out_loss" if corpus.tokenizer is None else "held_out_bits_per_byte"
    return {name: score.loss if corpus.tokenizer is None else score.bits_per_byte}
