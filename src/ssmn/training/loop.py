"""The training loop: truncated back-propagation with carried state, checkpoints, exact resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmn.config import StackConfig, TextSSMNConfig
from ssmn.errors import FileError, TrainingError
from ssmn.files import atomic_write, read_file, write_file
from ssmn.models import SSMN, TextSSMN
from ssmn.models.stack import Stack
from ssmn.training.data import Corpus
from ssmn.training.heap import kept_heap
from ssmn.training.log import Interval, Log, Progress
from ssmn.training.settings import TrainConfig, differences, to_toml
from ssmn.training.source import Source, open_source
from ssmn.training.tokenizer import Tokenizer
from ssmn.training.trainer import Trainer

CHECKPOINT_FILE, SETTINGS_FILE, TOKENIZER_FILE, LOG_FILE = (
    "checkpoint.safetensors",
    "train.toml",
    "tokenizer.json",
    "log.jsonl",
)

_FREE_ON_RESUME = ("train.", "evaluate.")
_FIXED_ON_RESUME = ("train.batch_size", "train.piece_length", "train.carried_pieces")


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        model: The trained model.
        tokenizer: For text.
        step: Steps done.
        interrupted: Whether Ctrl-C ended it early (a checkpoint was saved).
        figures: The last evaluation: `bits_per_byte` (with `frozen_bits_per_byte`), or a task's figures.
        folder: Where everything was written.
    """

    model: Stack
    tokenizer: Tokenizer | None
    step: int
    interrupted: bool
    figures: dict[str, float]
    folder: Path


def train(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_step: Callable[[Progress], bool | None] | None = None,
    around_step: Callable[[Stack, int], contextlib.AbstractContextManager[Any]] | None = None,
    corpora: tuple[Corpus, Corpus] | None = None,
) -> TrainResult:
    """Trains a model and writes it, its tokenizer, its settings, a checkpoint and a log into a folder.

    The same settings, thread count and machine give the same weights, however often the run was
    stopped and resumed. Ctrl-C finishes the step, saves a checkpoint and returns; a second one
    stops at once. Nothing is written once a number is not finite, so the last checkpoint is good.

    Args:
        config: The settings.
        out: The folder; made if absent.
        resume: Goes on from the folder's checkpoint. The `train` settings may differ, except for
            `batch_size`, `piece_length` and `carried_pieces`.
        on_step: Called after each step; if it returns True, the run stops as by Ctrl-C.
        around_step: Called before each step with the model and the step's number, from 1; what it returns is entered
            around the step. `ssmn.probes.Recorder.around` is one.
        corpora: The streams to train and to evaluate on, if they have been read already; then `data` only says
            what they are.

    Returns:
        The result; `interrupted` says whether it ended early.

    Raises:
        TrainingError: There is no data or too little; data, loss or gradient is not finite (the step
            and the file are named); the folder holds another run, or none to resume.
        FileError: The folder cannot be made or written, or a file not be read.
        MissingExtraError: `train.tensorboard = true` without tensorboard.

    Example:
        >>> import tempfile
        >>> from ssmn.training import TrainConfig, train
        >>> settings = {"task": {"name": "copy", "length": 4}, "model": {"preset": "tiny"},
        ...             "train": {"steps": 1, "tensorboard": False}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train(TrainConfig.from_dict(settings), folder).step
        1
    """
    folder = Path(out)
    has_run = (folder / CHECKPOINT_FILE).exists()
    if resume and not has_run:
        raise TrainingError(f"train: {folder} has no {CHECKPOINT_FILE} to resume; leave --resume out to start there.")
    if has_run and not resume:
        raise TrainingError(f"train: {folder} already holds a run; pass --resume to go on, or another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"train: {folder} cannot be made a folder ({error.strerror}); choose another --out.") from error
    with kept_heap(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        source = open_source(config, folder / TOKENIZER_FILE if resume else None, corpora)
        model_config = config.model_config(**source.model_settings)
        config = dataclasses.replace(config, model=model_config.to_dict())
        trainer = Trainer(build_model(model_config), config.train)
        if resume:
            _restore(trainer, folder, config, source)
        atomic_write(folder / SETTINGS_FILE, to_toml(config.to_dict()).encode())
        if source.tokenizer is not None:
            source.tokenizer.save(folder / TOKENIZER_FILE)
        return _run(trainer, config, source, folder, on_step, around_step)


def build_model(config: StackConfig) -> Stack:
    """The model with fresh weights that a configuration describes."""
    return (TextSSMN if isinstance(config, TextSSMNConfig) else SSMN)(config)  # type: ignore[arg-type]


def _restore(trainer: Trainer, folder: Path, config: TrainConfig, source: Source) -> None:
    arrays, header = read_file(folder / CHECKPOINT_FILE, kind="checkpoint")
    changed = [
        name
        for name in differences(header["settings"], config.to_dict())
        if name in _FIXED_ON_RESUME or not name.startswith(_FREE_ON_RESUME)
    ]
    if changed:
        raise TrainingError(
            f"train: {', '.join(changed)} differ{'s' * (len(changed) == 1)} from the run in {folder}; resume with its "
            f"own {SETTINGS_FILE}, or start in another --out."
        )
    if header["data"] != source.digest:
        raise TrainingError(f"train: the data is not what the run in {folder} was reading; restore it, or start anew.")
    trainer.load(arrays, header["step"])


def _run(
    trainer: Trainer,
    config: TrainConfig,
    source: Source,
    folder: Path,
    on_step: Callable[[Progress], bool | None] | None,
    around_step: Callable[[Stack, int], contextlib.AbstractContextManager[Any]] | None,
) -> TrainResult:
    settings, figures = config.train, {}
    with Log(folder / LOG_FILE, trainer.step, settings.tensorboard) as log, interruptible() as interrupted:
        interval = Interval(trainer.step, settings.steps)
        while trainer.step < settings.steps and not interrupted.is_set():
            batch = source.batch(trainer.step)
            around = None if around_step is None else around_step(trainer.model, trainer.step + 1)
            with around or contextlib.nullcontext():
                output, loss, norm, rate = trainer.advance(batch)
            is_logged = trainer.step % settings.log_every == 0 or trainer.step == settings.steps
            progress = interval.add(trainer.step, batch, output, loss.item(), norm, rate)
            if is_logged:
                rate = {} if trainer.sparse is None else {"write_rate": trainer.sparse.rate}
                log.write(dataclasses.asdict(progress) | rate)
                interval = Interval(trainer.step, settings.steps)
            if on_step is not None and on_step(progress):
                interrupted.set()
            if settings.evaluate_every and trainer.step % settings.evaluate_every == 0:
                figures = source.evaluate(trainer.model)
                log.write({"step": trainer.step, **figures})
            if settings.checkpoint_every and trainer.step % settings.checkpoint_every == 0:
                _save(trainer, config, source, folder)
        _save(trainer, config, source, folder)
        if trainer.sparse is not None:
            trainer.sparse.remove()
        is_done = trainer.step >= settings.steps
        if is_done:
            figures = source.evaluate(trainer.model)
            log.write({"step": trainer.step, **figures})
    return TrainResult(trainer.model, source.tokenizer, trainer.step, not is_done, figures, folder)


def _save(trainer: Trainer, config: TrainConfig, source: Source, folder: Path) -> None:
    arrays = trainer.tensors()
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise TrainingError(
                f"train: {name} is not finite after step {trainer.step}; nothing was saved. The last checkpoint is "
                f"kept: go on from it with --resume and a lower train.learning_rate."
            )
    header = {"kind": "checkpoint", "step": trainer.step, "settings": config.to_dict(), "data": source.digest}
    write_file(folder / CHECKPOINT_FILE, arrays, header)
    trainer.model.save_pretrained(folder)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event, and a second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
