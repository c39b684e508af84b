"""The training loop: truncated back-propagation with carried state, checkpoints, exact resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ssmn import native
from ssmn.config import StackConfig, TextSSMNConfig
from ssmn.errors import FileError, MissingExtraError, TrainingError
from ssmn.files import atomic_write, read_file, write_file
from ssmn.layers.heads import Prediction
from ssmn.models import SSMN, TextSSMN
from ssmn.models.stack import Stack
from ssmn.state import StreamState
from ssmn.training.data import Corpus, StreamBatches, read_text, shuffled, text_files
from ssmn.training.evaluate import evaluate_stream, evaluate_task, loss_of, measures_of, outputs_of, targets_of
from ssmn.training.heap import kept_heap
from ssmn.training.muon import Muon
from ssmn.training.settings import DataConfig, OptimisationConfig, TrainConfig, differences, to_toml
from ssmn.training.sparse import SparseTraining
from ssmn.training.tasks import Batch, Task
from ssmn.training.tokenizer import Tokenizer

CHECKPOINT_FILE, SETTINGS_FILE, TOKENIZER_FILE, LOG_FILE = (
    "checkpoint.safetensors",
    "train.toml",
    "tokenizer.json",
    "log.jsonl",
)

_FREE_ON_RESUME = ("train.", "evaluate.")
_FIXED_ON_RESUME = ("train.batch_size", "train.piece_length", "train.carried_pieces")
_EVALUATED_STEPS = 1 << 15
"""Held-out steps that an evaluation during training reads at most."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Mean loss since the last log line: nats per token, or squared error.
        figure: Name of the figure beside the loss: `bits_per_byte`, `accuracy`, or `loss`.
        value: Its value, over the same steps (accuracy: on the last batch).
        learning_rate: Of this step.
        gradient_norm: Before clipping.
        tokens_per_second: Since the last log line.
        seconds_left: At that speed.
    """

    step: int
    steps: int
    loss: float
    figure: str
    value: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float


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
        source = _open_source(config, folder, resume, corpora)
        model_config = config.model_config(**source.model_settings)
        config = dataclasses.replace(config, model=model_config.to_dict())
        trainer = _Trainer(build_model(model_config), config.train)
        if resume:
            _restore(trainer, folder, config, source)
        atomic_write(folder / SETTINGS_FILE, to_toml(config.to_dict()).encode())
        if source.tokenizer is not None:
            source.tokenizer.save(folder / TOKENIZER_FILE)
        return _run(trainer, config, source, folder, on_step, around_step)


def build_model(config: StackConfig) -> Stack:
    """The model with fresh weights that a configuration describes."""
    return (TextSSMN if isinstance(config, TextSSMNConfig) else SSMN)(config)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Source:
    """The batches of a run, and what decides them."""

    batch: Callable[[int], Batch]
    model_settings: dict[str, Any]
    digest: str
    tokenizer: Tokenizer | None
    evaluate: Callable[[Stack], dict[str, float]]


class _BfloatProducts(TorchFunctionMode):
    """Within it, products with weights are computed on bfloat16 copies; all else stays as it is.

    `torch.autocast` would also round the matrix products inside the memory's recurrence, and with
    them the state.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.linear:
            return func(*args, **(kwargs or {}))
        low = [item.bfloat16() if isinstance(item, Tensor) else item for item in args]
        return func(*low, **(kwargs or {})).to(args[0].dtype)


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16: in software its products are many times slower than in float32."""
    return "avx512-bf16" in native.status().runnable


_ADAM_KEYS, _MUON_KEYS = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
_LEAST_MUON = 8
"""Matrices with fewer rows or columns (gates, short convolutions) are left to AdamW."""


def _optimizers(named: dict[str, torch.nn.Parameter], settings: OptimisationConfig) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices alone, and Muon before it if it is wanted."""
    turned: list[Tensor] = []
    if settings.optimizer == "muon":
        inner = [weight for name, weight in named.items() if name.startswith(("blocks.", "encoder."))]
        turned = [weight for weight in inner if weight.dim() == 2 and min(weight.shape) >= _LEAST_MUON]
    left = [weight for weight in named.values() if not any(weight is other for other in turned)]
    groups = [
        {"params": [weight for weight in left if weight.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in left if weight.dim() < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    adam = torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
    if not turned:
        return [adam]
    return [Muon(turned, lr=rate, weight_decay=settings.weight_decay), adam]


class _Trainer:
    """A model, its optimizer and the carried state: what one step changes and a checkpoint holds."""

    def __init__(self, model: Stack, settings: OptimisationConfig):
        self.model, self.settings = model, settings
        self.step = 0
        self.state: StreamState | None = None
        self.sparse = None if settings.write_rate is None else SparseTraining(model, settings)
        self.named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        is_low = settings.compute_dtype == "bfloat16" or (settings.compute_dtype == "auto" and _has_bfloat16())
        self.products = _BfloatProducts() if is_low else contextlib.nullcontext()
        self.optimizers = _optimizers(self.named, settings)

    def advance(self, batch: Batch) -> tuple[Tensor | Prediction, Tensor, float, float]:
        """One optimizer step; returns the output, the loss, the gradient's norm and the learning rate."""
        rate = self.settings.rate(self.step)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        self._check_data(batch)
        before = None if batch.fresh or self.state is None else self.state.detach()
        reset = None
        if before is not None and batch.fresh_rows is not None:
            reset = torch.zeros(batch.inputs.shape[:2], dtype=torch.bool)
            reset[:, 0] = batch.fresh_rows
        if self.sparse is not None:
            self.sparse.prepare(self.step)
        with self.products:
            output, state = outputs_of(self.model, batch, before, reset=reset)
        loss = loss_of(output, batch)
        self._check_finite("loss", loss.item(), batch)
        self.model.zero_grad(set_to_none=True)
        (loss if self.sparse is None else loss + self.sparse.penalty()).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.named.values(), self.settings.clip_norm))
        self._check_finite("gradient's norm", norm, batch)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state = state.detach()
        self.step += 1
        return output.detach(), loss.detach(), norm, rate

    def _check_data(self, batch: Batch) -> None:
        if not batch.inputs.is_floating_point():
            return
        has_gaps = isinstance(self.model, SSMN) and self.model.config.missing == "mask"
        data = (batch.inputs, batch.targets)
        if not all(bool((~x.isinf() if has_gaps else x.isfinite()).all()) for x in data):
            raise TrainingError(
                f"train: the data of step {self.step + 1} is not finite (in {batch.source}); fill the gaps in, leave "
                f"the rows out, or let model.missing='mask' (for NaN). The last checkpoint is kept."
            )

    def _check_finite(self, what: str, value: float, batch: Batch) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"train: the {what} is {value} at step {self.step + 1} (data: {batch.source}). The last checkpoint is "
                f"kept: go on from it with --resume and a lower train.learning_rate."
            )

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on."""
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for optimizer in self.optimizers:
            for name, weight in self.named.items():
                for key, value in optimizer.state.get(weight, {}).items():
                    tensors[f"optimizer.{key}.{name}"] = value
        if self.state is not None:
            tensors |= {f"stream.{name}": value for name, value in self.state.named_tensors().items()}
        if self.sparse is not None:
            tensors |= self.sparse.tensors()
        tensors["random"] = torch.get_rng_state()
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

    def load(self, arrays: dict[str, np.ndarray], step: int) -> None:
        """The reverse of `tensors`."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.model.load_state_dict(_under("model.", tensors))
        for optimizer in self.optimizers:
            mine = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
            keys = _ADAM_KEYS if isinstance(optimizer, torch.optim.AdamW) else _MUON_KEYS
            for name, weight in self.named.items():
                if id(weight) in mine:
                    optimizer.state[weight] = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
        if self.sparse is not None:
            self.sparse.load(tensors)
        stream = _under("stream.", tensors)
        if stream:
            batch_size = stream["position"].shape[0]
            self.state = self.model.init_state(batch_size).with_tensors(stream)
        torch.set_rng_state(tensors["random"])
        self.step = step


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _open_source(config: TrainConfig, folder: Path, resume: bool, corpora: tuple[Corpus, Corpus] | None) -> _Source:
    if config.task is not None:
        return _task_source(config.task, config)
    assert config.data is not None
    corpus, other = corpora or _read_corpora(config.data, config.seed, folder / TOKENIZER_FILE if resume else None)
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

    return _Source(
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


def _task_source(task: Task, config: TrainConfig) -> _Source:
    return _Source(
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


def _restore(trainer: _Trainer, folder: Path, config: TrainConfig, source: _Source) -> None:
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
    trainer: _Trainer,
    config: TrainConfig,
    source: _Source,
    folder: Path,
    on_step: Callable[[Progress], bool | None] | None,
    around_step: Callable[[Stack, int], contextlib.AbstractContextManager[Any]] | None,
) -> TrainResult:
    settings, figures = config.train, {}
    with _Log(folder, trainer.step, settings.tensorboard) as log, interruptible() as interrupted:
        window = _Window(trainer.step, settings.steps)
        while trainer.step < settings.steps and not interrupted.is_set():
            batch = source.batch(trainer.step)
            around = None if around_step is None else around_step(trainer.model, trainer.step + 1)
            with around or contextlib.nullcontext():
                output, loss, norm, rate = trainer.advance(batch)
            is_logged = trainer.step % settings.log_every == 0 or trainer.step == settings.steps
            progress = window.add(trainer.step, batch, output, loss.item(), norm, rate)
            if is_logged:
                rate = {} if trainer.sparse is None else {"write_rate": trainer.sparse.rate}
                log.write(dataclasses.asdict(progress) | rate)
                window = _Window(trainer.step, settings.steps)
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


def _save(trainer: _Trainer, config: TrainConfig, source: _Source, folder: Path) -> None:
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


class _Window:
    """Means and speed since the last log line."""

    def __init__(self, first: int, steps: int):
        self.first, self.steps = first, steps
        self.begun = time.perf_counter()
        self.loss = self.nats = 0.0
        self.tokens = self.bytes = 0

    def add(
        self, step: int, batch: Batch, output: Tensor | Prediction, loss: float, norm: float, rate: float
    ) -> Progress:
        count = batch.inputs.shape[0] * batch.inputs.shape[1]
        self.loss += loss
        self.nats += loss * count
        self.tokens += count
        self.bytes += batch.target_bytes or 0
        seconds, done = time.perf_counter() - self.begun, step - self.first
        mean = self.loss / done
        if self.bytes:
            figure, value = "bits_per_byte", self.nats / math.log(2) / self.bytes
        elif batch.mask is not None:
            total, answers = measures_of(output, batch)["accuracy"]
            figure, value = "accuracy", total / answers
        else:
            figure, value = "loss", mean
        speed = self.tokens / seconds
        return Progress(
            step, self.steps, mean, figure, value, rate, norm, speed, (self.steps - step) * seconds / done
        )  # fmt: skip


class _Log:
    """`log.jsonl`, and TensorBoard's event file when it is wanted or installed."""

    def __init__(self, folder: Path, step: int, tensorboard: bool | None):
        path = folder / LOG_FILE
        if path.exists():
            # Lines after the checkpoint belong to steps that are about to be done again.
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            atomic_write(path, "".join(f"{line}\n" for line in lines).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        is_installed = importlib.util.find_spec("tensorboard") is not None
        if tensorboard and not is_installed:
            raise MissingExtraError('train: train.tensorboard=true needs: pip install "sparse-stream[train]"')
        if is_installed and tensorboard is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, line["step"])

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the process was killed
        return math.inf


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
