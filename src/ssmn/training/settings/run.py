"""Everything that decides a training run, and the checks that name a bad setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssmn.config import PRESETS, SSMNConfig, StackConfig, TextSSMNConfig
from ssmn.errors import ConfigError
from ssmn.training.settings.values import build, convert, refuse_unknown, section
from ssmn.training.tasks import TASKS, Task

ComputeDtype = Literal["auto", "float32", "bfloat16"]
Optimizer = Literal["adamw", "muon"]
WriteTraining = Literal["penalty", "multiplier", "annealing"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training stream comes from: exactly one of `text` and `series`."""

    text: str | None = None
    """A text file, or a folder of them."""
    series: str | None = None
    """A CSV file, or a folder of them: a row per step; the Standard model predicts the next row."""
    pattern: str = "**/*"
    """Which files of a folder."""
    shuffle: bool = False
    """Reads a folder's files in an order drawn from the seed: then a part of a sorted corpus stands for all of it."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe` (trained on this text), or the path of a tokenizer.json."""
    vocab_size: int = 1024
    """Tokens of a trained `bpe` tokenizer."""
    held_out: float = 0.05
    """Last share of the stream that is kept for evaluation, unless `validation` is given."""
    validation: str | None = None
    """A file or folder to evaluate on, of the kind of `text` or `series`; then the whole stream is trained on."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.series is None):
            raise ConfigError("data: wanted exactly one of data.text and data.series.")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"data: held_out={self.held_out!r}; wanted a share in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """How the weights are trained."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Rows of a batch, or parallel streams of a text."""
    piece_length: int = 256
    """Steps of a stream between two cuts of the gradient; tasks use whole rows."""
    fresh_rate: float = 0.05
    """Share of a stream's pieces that begin with a fresh state, so that the model also learns to begin."""
    carried_pieces: int = 0
    """Pieces of a stretch: each is read from a fresh state, and the stretches of a corpus are shuffled, so that a batch
    sees many texts; 1 = pieces that stand alone, 0 = a row is one stream to the end."""
    optimizer: Optimizer = "adamw"
    """`muon`: inner matrices by Muon, at AdamW's step size; embeddings and all else by AdamW."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    final_rate: float = 0.1
    """Share of the peak that is left at the end of the cosine schedule."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging factors."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    compute_dtype: ComputeDtype = "float32"
    """`bfloat16` computes matrix products on bfloat16 copies; weights, optimizer and state stay float32. `auto`: where
    the processor has instructions for it (elsewhere it is many times slower than float32)."""
    write_rate: float | None = None
    """Target share of steps that the memory writes, with model.write_threshold above 0; None = as it likes."""
    write_training: WriteTraining = "penalty"
    """How the target is reached: see `ssmn.training.sparse`."""
    write_rate_weight: float = 1.0
    """Weight of the target beside the loss."""
    log_every: int = 10
    """Steps between two lines of the log."""
    evaluate_every: int = 0
    """Steps between two evaluations on held-out data; 0 = only at the end."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; 0 = only at the end and on Ctrl-C."""
    tensorboard: bool | None = None
    """Writes a TensorBoard log; None = if tensorboard is installed."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"train: {name}={getattr(self, name)!r}; wanted at least {least}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0 and self.clip_norm > 0):
            raise ConfigError(
                f"train: learning_rate={self.learning_rate!r}, clip_norm={self.clip_norm!r}; wanted positive numbers."
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"train: betas={self.betas!r}; wanted two numbers in [0, 1).")
        if not 0.0 <= self.fresh_rate <= 1.0:
            raise ConfigError(f"train: fresh_rate={self.fresh_rate!r}; wanted a share in [0, 1].")
        if self.write_rate is not None and not 0.0 < self.write_rate <= 1.0:
            raise ConfigError(f"train: write_rate={self.write_rate!r}; wanted a share in (0, 1], or none.")
        if not 0.0 <= self.final_rate <= 1.0:
            raise ConfigError(f"train: final_rate={self.final_rate!r}; wanted a share in [0, 1].")

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0): a linear rise, then half a cosine."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_rate + (1.0 - self.final_rate) * cosine)


_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "piece_length": 1,
    "carried_pieces": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "write_rate_weight": 0,
    "log_every": 1,
    "evaluate_every": 0,
    "checkpoint_every": 0,
}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One figure that a trained task model is asked for, and the goal it has to meet."""

    task: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the task that differ from training."""
    batches: int = 8
    """Batches to average over."""
    batch_size: int = 32
    """Rows of each."""
    untrained: bool = False
    """Measures the fresh weights, before training."""
    frozen: bool = False
    """Closes every gate of the memory: nothing is written."""
    write_threshold: float | None = None
    """Skips writes whose importance is below this."""
    decay_scale: float = 1.0
    """Factor on how fast the memory forgets."""
    at_least: float | None = None
    """Goal: the figure is not below this."""
    at_most: float | None = None
    """Goal: the figure is not above this."""

    def __post_init__(self) -> None:
        if self.batches < 1 or self.batch_size < 1:
            raise ConfigError(
                f"evaluate: batches={self.batches}, batch_size={self.batch_size}; wanted at least 1 of each."
            )

    def is_met(self, figure: float) -> bool:
        """Whether the figure meets the goal (NaN never does)."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= figure <= high


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Made by `load_settings` or `TrainConfig.from_dict`.

    Example:
        >>> from ssmn.training import TrainConfig
        >>> config = TrainConfig.from_dict({"task": {"name": "mqar", "pairs": 8}, "train": {"steps": 20}})
        >>> config.task.pairs, config.train.steps
        (8, 20)
    """

    seed: int = 0
    """Seed of the initial weights and of the task's batches."""
    data: DataConfig | None = None
    """The stream, or None for a task."""
    task: Task | None = None
    """The task, or None for a stream."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the model; sizes that follow from the data may be left out; `preset` names a size."""
    train: OptimisationConfig = field(default_factory=OptimisationConfig)
    """How the weights are trained."""
    evaluate: Mapping[str, Examination] = field(default_factory=dict)
    """Named figures for `ssmn eval --config`."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.task is None):
            raise ConfigError("settings: wanted exactly one of a [data] and a [task] section.")
        if self.seed < 0:
            raise ConfigError(f"settings: seed={self.seed}; wanted 0 or more.")
        if self.evaluate and self.task is None:
            raise ConfigError("settings: [evaluate] sections belong to a task; use `ssmn eval --text` for text.")
        if "preset" in self.model and self.model["preset"] not in PRESETS:
            raise ConfigError(f"model: preset={self.model['preset']!r}; wanted one of {', '.join(PRESETS)}.")
        if self.data is not None:
            self._check_model(self.data)

    def _check_model(self, data: DataConfig) -> None:
        """Refuses a wrong setting of the model before the data is read and a tokenizer trained."""
        if data.text is not None:
            self.model_config(kind="text", vocab_size=self.model.get("vocab_size", 1))
        else:
            # How many columns there are is not known yet, and much depends on it: the names alone.
            known = [setting.name for setting in dataclasses.fields(SSMNConfig)]
            refuse_unknown("model", self.model, ["kind", "preset", *known])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Builds and checks the settings; an unknown one is refused with the nearest known name.

        Raises:
            ConfigError: A setting is unknown, of the wrong type, or out of range.
        """
        known = [setting.name for setting in dataclasses.fields(cls)]
        for name in set(values) - set(known):
            if near := [place for place, names in _SECTIONS.items() if name in names]:
                raise ConfigError(f"settings: unknown setting {name!r}; did you mean {f'{near[0]}.{name}'!r}?")
        refuse_unknown("settings", values, known)
        sections = {name: section(name, values[name]) for name in values if name != "seed"}
        settings: dict[str, Any] = {"seed": convert("settings: seed", values.get("seed", 0), int)}
        if "data" in sections:
            settings["data"] = build(DataConfig, "data", sections["data"])
        if "task" in sections:
            settings["task"] = task_from_dict(sections["task"])
        if "train" in sections:
            settings["train"] = build(OptimisationConfig, "train", sections["train"])
        if "model" in sections:
            settings["model"] = sections["model"]
        if "evaluate" in sections:
            settings["evaluate"] = {
                name: build(Examination, f"evaluate.{name}", section(f"evaluate.{name}", table))
                for name, table in sections["evaluate"].items()
            }
        config = cls(**settings)
        for name, examination in config.evaluate.items():
            config.examined_task(name, examination)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes; settings that are None are left out."""
        values: dict[str, Any] = {"seed": self.seed}
        if self.data is not None:
            values["data"] = dataclasses.asdict(self.data)
        if self.task is not None:
            values["task"] = {"name": self.task.name, **dataclasses.asdict(self.task)}
        # TOML has no null: a model setting that is switched off is written as "none".
        values["model"] = {name: "none" if value is None else value for name, value in self.model.items()}
        values["train"] = dataclasses.asdict(self.train)
        if self.evaluate:
            values["evaluate"] = {name: dataclasses.asdict(item) for name, item in self.evaluate.items()}
        return _without_none(values)

    def model_config(self, **from_data: Any) -> StackConfig:
        """The model's configuration, completed by what the data or the task decides.

        Args:
            **from_data: `kind` and the sizes, for a stream; a task knows its own.

        Raises:
            ConfigError: A model setting is unknown or impossible, or contradicts the data.
        """
        decided = from_data if self.task is None else self.task.model_settings()
        given = {name: None if value == "none" else value for name, value in self.model.items()}
        preset = given.pop("preset", None)
        size = {} if preset is None else PRESETS[preset]
        for name, value in decided.items():
            if given.setdefault(name, value) != value:
                raise ConfigError(f"model: {name}={given[name]!r}, but the data needs {value!r}; leave it out.")
        config_class = TextSSMNConfig if decided["kind"] == "text" else SSMNConfig
        return config_class.from_dict({**size, **given})

    def examined_task(self, name: str, examination: Examination) -> Task:
        """The task as one examination sets it."""
        assert self.task is not None
        values = {"name": self.task.name, **dataclasses.asdict(self.task)}
        return task_from_dict({**values, **examination.task}, where=f"evaluate.{name}.task")


_SECTIONS = {
    "data": {setting.name for setting in dataclasses.fields(DataConfig)},
    "train": {setting.name for setting in dataclasses.fields(OptimisationConfig)},
    "model": {setting.name for config in (SSMNConfig, TextSSMNConfig) for setting in dataclasses.fields(config)},
}
"""The settings of each section, for one that was given without its section."""


def task_from_dict(values: Mapping[str, Any], where: str = "task") -> Task:
    """Builds the task that `values["name"]` names."""
    if values.get("name") not in TASKS:
        raise ConfigError(f"{where}: name={values.get('name')!r}; wanted one of {', '.join(TASKS)}.")
    return build(TASKS[values["name"]], where, {key: value for key, value in values.items() if key != "name"})


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }
