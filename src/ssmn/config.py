"""Frozen, checked configurations and the plasticity settings. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from ssmn.errors import ConfigError, RangeError, ShapeError

UpdateRule = Literal["hebbian", "delta", "erase"]
Pairing = Literal["previous", "same"]
Initialisation = Literal["associative", "standard"]
Backend = Literal["auto", "reference", "chunked", "native"]
Missing = Literal["error", "mask"]
Normalise = Literal["none", "running"]
Head = Literal["point", "gaussian", "quantile"]
Readout = Literal["none", "delta", "rls"]
ReadoutFeatures = Literal["hidden", "inputs", "both"]

_LAYER_TYPES: set[str] = {"static", "plastic", "lru", "amn", "hopfield", "ntm"}

SLOTTED = ("hopfield", "ntm")
"""Layer types whose memory has `memory_slots` rows."""

MAX_SIZE = 1 << 20
"""Of a width or a depth: beyond it a configuration is a slip or a damaged file, and would fill the memory as a list."""
MAX_MEMORY_HEAD_DIM = 256

READ_FLOOR = 0.2
"""A read that is short beside this share of the write strength in force is faded, not blown up to unit length."""

THOUGHT_EPS = 1e-2
"""Epsilon of the norm of the chat's thoughts; a small one would blow up what a faded read left."""

OUTPUT_THRESHOLD = 1e-4
"""Prediction errors up to this are not written into the output memory; larger ones are shortened by it."""

OUTPUT_SWITCH = 0.1
"""Weight that the plain and the corrected prediction share anew at every step: neither is ever given up for good."""

LEAST_FORGET = 1e-6
"""Least share that `rls` forgets: float32 sums of more than some million steps would take nothing up any more."""


def register_layer_type(name: str) -> None:
    """Makes `name` acceptable in `layer_types` (the block table must know how to build it)."""
    _LAYER_TYPES.add(name)


def middle_of(quantiles: tuple[float, ...]) -> int:
    """The place of the quantile that is nearest to the median."""
    return min(range(len(quantiles)), key=lambda place: abs(quantiles[place] - 0.5))


def plastic_positions(num_layers: int, plastic_ratio: float) -> tuple[int, ...]:
    """Indices of the plastic layers: evenly spread, never the last layer of a deeper stack."""
    count = max(1, round(plastic_ratio * num_layers))
    last = max(0, num_layers - 2)
    return tuple(sorted({min(last, (2 * j + 1) * num_layers // (2 * count)) for j in range(count)}))


def _refuse(owner: str, name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{owner}: {name}={value!r}; wanted {wanted}.")


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """What the Standard and the Text-native model share: the stack of static and plastic blocks."""

    kind: ClassVar[str] = "stack"

    hidden_dim: int = 256
    """D, the width of the residual stream."""
    num_layers: int = 10
    """L, the number of blocks."""
    num_heads: int = 4
    """Query heads of the window attention; must divide `hidden_dim` into even head widths."""
    num_kv_heads: int | None = None
    """Key/value heads of the window attention (grouped); must divide `num_heads`. None = `num_heads`."""
    window_size: int = 512
    """W, how many positions a query sees, the current one included."""
    rope_theta: float | None = 10_000.0
    """Base of the rotary position angles; None switches rotary positions off."""
    attention_sinks: bool = False
    """Adds one learned logit per query head to the softmax denominator."""
    plastic_ratio: float = 0.2
    """Share of plastic blocks, used when `layer_types` is not given."""
    layer_types: tuple[str, ...] | None = None
    """Kind of every block; given explicitly it wins over `plastic_ratio`; stored expanded."""
    memory_heads: int | None = None
    """H of the memory. None = the smallest divisor of `hidden_dim` that gives heads of at most 256."""
    update_rule: UpdateRule = "delta"
    """`hebbian` (the seed's), `delta` (error-correcting) or `erase` (separate erase strength)."""
    pairing: Pairing = "previous"
    """Keys come from the previous hidden vector (`previous`, an induction head) or the same one."""
    plasticity_eta: float = 0.5
    """η, base write strength in [0, 1]; data dependence swings it between 0 and twice this value."""
    decay_lambda: float | tuple[float, ...] | None = None
    """λ in [0, 1) per step. None = 1e-4 for one head, log-spaced 3e-2 to 1e-5 for several; stored per head."""
    write_threshold: float = 0.0
    """Writes whose importance (η before any scaling) is below this are skipped; 0 = off."""
    chat_rounds: int = 0
    """R, rounds of internal recurrent chat: extra reads that answer (R + 1)-hop questions."""
    memory_slots: int = 128
    """N, rows of the memory of `hopfield` and `ntm` layers."""
    ffn_dim: int | None = None
    """Inner width of the feed-forward. None = 8/3 of `hidden_dim`, rounded up to a multiple of 8."""
    norm_eps: float = 1e-6
    """Epsilon of the blocks' RMSNorm."""
    initialisation: Initialisation = "associative"
    """`associative` ties what is read to what was stored; `standard` is for ablation."""

    def __post_init__(self) -> None:
        self._check_types()
        self._derive()
        self._check()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        owner = type(self).__name__
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if value is None and "None" in kind:
                continue
            if kind.startswith("int") and (not isinstance(value, int) or isinstance(value, bool)):
                raise _refuse(owner, field.name, value, "an integer")
            if kind == "bool" and not isinstance(value, bool):
                raise _refuse(owner, field.name, value, "true or false")
            if kind.startswith("float"):
                numbers = value if isinstance(value, (tuple, list)) and "tuple" in kind else (value,)
                for number in numbers:
                    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                        raise _refuse(owner, field.name, value, "a finite number")
        for name, choices in (("update_rule", UpdateRule), ("pairing", Pairing), ("initialisation", Initialisation)):
            if getattr(self, name) not in get_args(choices):
                raise _refuse(owner, name, getattr(self, name), f"one of {', '.join(get_args(choices))}")

    def _derive(self) -> None:
        owner = type(self).__name__
        for name in ("hidden_dim", "num_layers", "num_heads", "window_size"):
            if getattr(self, name) < 1:
                raise _refuse(owner, name, getattr(self, name), "at least 1")
        for name in ("hidden_dim", "num_layers"):
            if getattr(self, name) > MAX_SIZE:
                raise _refuse(owner, name, getattr(self, name), f"at most {MAX_SIZE:,}")
        if self.layer_types is None:
            if not 0.0 < self.plastic_ratio <= 1.0:
                raise _refuse(
                    owner, "plastic_ratio", self.plastic_ratio,
                    "a share in (0, 1]; for a model without memory pass layer_types=('static',) * num_layers",
                )  # fmt: skip
            plastic = plastic_positions(self.num_layers, self.plastic_ratio)
            self._set("layer_types", tuple("plastic" if i in plastic else "static" for i in range(self.num_layers)))
        else:
            if isinstance(self.layer_types, str):
                raise _refuse(owner, "layer_types", self.layer_types, "a tuple with one name per layer")
            self._set("layer_types", tuple(self.layer_types))
        if self.num_kv_heads is None:
            self._set("num_kv_heads", self.num_heads)
        if self.memory_heads is None:
            width = next(k for k in range(MAX_MEMORY_HEAD_DIM, 0, -1) if self.hidden_dim % k == 0)
            self._set("memory_heads", self.hidden_dim // width)
        elif self.memory_heads < 1 or self.hidden_dim % self.memory_heads:
            raise _refuse(owner, "memory_heads", self.memory_heads, f"a divisor of hidden_dim={self.hidden_dim}")
        assert self.memory_heads is not None
        if self.decay_lambda is None:
            self._set("decay_lambda", default_decay_lambda(self.memory_heads))
        elif isinstance(self.decay_lambda, (int, float)):
            self._set("decay_lambda", (float(self.decay_lambda),) * self.memory_heads)
        else:
            self._set("decay_lambda", tuple(float(value) for value in self.decay_lambda))
        if self.ffn_dim is None:
            self._set("ffn_dim", math.ceil(self.hidden_dim * 8 / 3 / 8) * 8)

    def _check(self) -> None:
        owner = type(self).__name__
        assert self.layer_types is not None and self.num_kv_heads is not None
        assert isinstance(self.decay_lambda, tuple) and self.ffn_dim is not None
        if len(self.layer_types) != self.num_layers:
            raise _refuse(owner, "layer_types", self.layer_types, f"num_layers={self.num_layers} names")
        for name in self.layer_types:
            if name not in _LAYER_TYPES:
                raise _refuse(owner, "layer_types", name, f"names out of {', '.join(sorted(_LAYER_TYPES))}")
        if self.hidden_dim % self.num_heads:
            raise _refuse(owner, "num_heads", self.num_heads, f"a divisor of hidden_dim={self.hidden_dim}")
        if self.rope_theta is not None:
            if self.rope_theta <= 0:
                raise _refuse(owner, "rope_theta", self.rope_theta, "a positive number or None")
            if (self.hidden_dim // self.num_heads) % 2:
                raise _refuse(
                    owner, "num_heads", self.num_heads,
                    f"even head widths for rotary positions (hidden_dim / num_heads is "
                    f"{self.hidden_dim // self.num_heads}); or pass rope_theta=None",
                )  # fmt: skip
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise _refuse(owner, "num_kv_heads", self.num_kv_heads, f"a divisor of num_heads={self.num_heads}")
        if len(self.decay_lambda) != self.memory_heads:
            raise _refuse(owner, "decay_lambda", self.decay_lambda, f"one value, or memory_heads={self.memory_heads}")
        for value in self.decay_lambda:
            if not 0.0 <= value < 1.0:
                raise _refuse(owner, "decay_lambda", value, "a share in [0, 1) lost per step")
        for name in ("plasticity_eta", "write_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise _refuse(owner, name, getattr(self, name), "a number in [0, 1]")
        if self.chat_rounds < 0:
            raise _refuse(owner, "chat_rounds", self.chat_rounds, "0 or more")
        if self.memory_slots < 1:
            raise _refuse(owner, "memory_slots", self.memory_slots, "at least 1")
        if self.ffn_dim < 1:
            raise _refuse(owner, "ffn_dim", self.ffn_dim, "at least 1")
        if self.norm_eps <= 0:
            raise _refuse(owner, "norm_eps", self.norm_eps, "a positive number")

    def to_dict(self) -> dict[str, Any]:
        """Plain values (JSON, TOML), with the kind of model under `kind`; everything derived is expanded.

        `memory_slots` is left out where no layer has any: such a model keeps its fingerprint.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not set(self.layer_types or ()) & set(SLOTTED):
            del values["memory_slots"]
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; refuses unknown keys and names the nearest known one."""
        values = dict(values)
        kind = values.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ConfigError(f"{cls.__name__}: kind={kind!r}; wanted {cls.kind!r}.")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
                raise ConfigError(f"{cls.__name__}: unknown setting {key!r}; {hint}")
        required = [f.name for f in dataclasses.fields(cls)
                    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]  # fmt: skip
        absent = [name for name in required if name not in values]
        if absent:
            raise ConfigError(f"{cls.__name__}: missing {', '.join(absent)}; these have no default, so set them.")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A named size (`tiny`, `small`, `base`), with any field overridden."""
        if name not in PRESETS:
            raise ConfigError(f"{cls.__name__}: preset={name!r}; wanted one of {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **overrides})


@dataclass(frozen=True, kw_only=True)
class SSMNConfig(StackConfig):
    """The Standard model: a stream of continuous vectors in, a stream of vectors out."""

    kind: ClassVar[str] = "standard"

    input_dim: int
    """Features per step that come in."""
    output_dim: int
    """Features per step that go out."""
    missing: Missing = "error"
    """What a NaN in the input is: `error`, or `mask`: a missing feature (the model sees 0 and a mark, and nothing
    learns from it); a row of nothing but NaN is absent, and its elapsed time is added to the next present row's."""
    normalise: Normalise = "none"
    """`running`: inputs are standardised by an exponentially weighted mean and deviation per column, kept in the state,
    and outputs are mapped back with those of the columns that they speak of."""
    norm_rate: float = 0.01
    """Rate of these averages in (0, 1]: plain averages until 1 / rate values were seen; level shifts are followed
    within about 1 / rate steps."""
    targets: tuple[int, ...] | None = None
    """Which input column each output speaks of (repeats are fine). None = the first `output_dim`; () = of none of them:
    outputs are never mapped back."""
    head: Head = "point"
    """`point`: one number per output; `gaussian`: mean and standard deviation; `quantile`: one per quantile."""
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Rising shares in (0, 1), for the quantile head."""
    static_dim: int = 0
    """Features of a whole stream, given to every call as `static`; they are not normalised."""
    future_dim: int = 0
    """Features of the step that is predicted, known beforehand, given as `future`; they are not normalised."""
    readout: Readout = "none"
    """A plastic read-out beside the output that learns from `target` without back-propagation: `delta` (normalised LMS)
    or `rls` (recursive least squares)."""
    readout_features: ReadoutFeatures = "hidden"
    """What the read-out sees beside a constant: the last hidden vector, the (normalised) inputs, or both."""
    readout_eta: float = 0.5
    """η of the rule `delta`, in [0, 1]: the share of an error that is gone when the same features come again."""
    readout_forget: float = 0.002
    """Share of what the read-out has learned that is forgotten per learning step, in [0, 1)."""
    readout_ridge: float = 0.1
    """Ridge of the rule `rls` (> 0): so many steps' worth of evidence that the model's own output is right as it is."""

    @property
    def target_columns(self) -> tuple[int, ...]:
        """The input column of each output; empty if the outputs speak of none."""
        return tuple(range(self.output_dim)) if self.targets is None else self.targets

    @property
    def output_parts(self) -> int:
        """Numbers per output: 1, 2 (mean and deviation) or one per quantile."""
        return {"point": 1, "gaussian": 2, "quantile": len(self.quantiles)}[self.head]

    def to_dict(self) -> dict[str, Any]:
        """As for every model; settings of what is switched off are left out.

        So a model without them has the fingerprint that it had before there were such things.
        """
        values = super().to_dict()
        off = {
            "missing": self.missing == "error",
            "normalise norm_rate": self.normalise == "none",
            "targets": self.targets is None,
            "head": self.head == "point",
            "quantiles": self.head != "quantile",
            "static_dim": not self.static_dim,
            "future_dim": not self.future_dim,
            "readout readout_features readout_forget": self.readout == "none",
            "readout_eta": self.readout != "delta",
            "readout_ridge": self.readout != "rls",
        }
        for names, is_off in off.items():
            for name in names.split() if is_off else ():
                del values[name]
        return values

    def _check(self) -> None:
        super()._check()
        owner = type(self).__name__
        for name in ("input_dim", "output_dim"):
            if getattr(self, name) < 1:
                raise _refuse(owner, name, getattr(self, name), "at least 1")
        for name in ("static_dim", "future_dim"):
            if getattr(self, name) < 0:
                raise _refuse(owner, name, getattr(self, name), "0 or more")
        kinds = (
            ("missing", Missing), ("normalise", Normalise), ("head", Head), ("readout", Readout),
            ("readout_features", ReadoutFeatures),
        )  # fmt: skip
        for name, choices in kinds:
            if getattr(self, name) not in get_args(choices):
                raise _refuse(owner, name, getattr(self, name), f"one of {', '.join(get_args(choices))}")
        self._check_targets(owner)
        numbers = isinstance(self.quantiles, tuple) and all(isinstance(share, float) for share in self.quantiles)
        shares = self.quantiles if numbers else ()
        if not shares or not all(low < high for low, high in itertools.pairwise((0.0, *shares, 1.0))):
            raise _refuse(owner, "quantiles", self.quantiles, "rising shares in (0, 1), at least one")
        if not 0.0 < self.norm_rate <= 1.0:
            raise _refuse(owner, "norm_rate", self.norm_rate, "a number in (0, 1]")
        if not 0.0 <= self.readout_eta <= 1.0:
            raise _refuse(owner, "readout_eta", self.readout_eta, "a number in [0, 1]")
        if not 0.0 <= self.readout_forget < 1.0:
            raise _refuse(owner, "readout_forget", self.readout_forget, "a share in [0, 1) lost per step")
        if self.readout_ridge <= 0:
            raise _refuse(owner, "readout_ridge", self.readout_ridge, "a positive number")

    def _check_targets(self, owner: str) -> None:
        if self.targets is not None:
            columns = self.targets if isinstance(self.targets, tuple) else (None,)
            good = all(type(column) is int and 0 <= column < self.input_dim for column in columns)
            if not good or len(columns) not in (0, self.output_dim):
                raise _refuse(
                    owner, "targets", self.targets,
                    f"output_dim={self.output_dim} input columns in [0, {self.input_dim - 1}], or () for none",
                )  # fmt: skip
        elif self.output_dim > self.input_dim and (self.normalise != "none" or self.readout != "none"):
            raise _refuse(
                owner, "targets", None,
                f"the input column of each of the {self.output_dim} outputs, since there are more outputs than inputs "
                f"(input_dim={self.input_dim}); or () if they speak of none",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextSSMNConfig(StackConfig):
    """The Text-native model: token numbers in, logits over the vocabulary out."""

    kind: ClassVar[str] = "text"

    vocab_size: int
    """Number of tokens."""
    tie_embeddings: bool = True
    """Output weights = token embeddings, so that a recalled embedding votes for its own token."""
    semantic_encoder: bool = True
    """Mixes the last four tokens' embeddings into a thought embedding before the stack; docs/text.md says what it
    gains."""
    embedding_std: float | None = None
    """Standard deviation of the initial embeddings; None = 1/√D."""
    output_memory: bool = False
    """Corrects the logits by a plastic memory of prediction errors; it has no weights, so any model can have one."""
    output_eta: float = 2.0
    """η of the output memory (≥ 0): how far an error moves the logit of its token for the same hidden vector."""
    output_decay: float = 0.0
    """λ of the output memory in [0, 1): the share of it that is lost per step."""
    output_switch: float = OUTPUT_SWITCH
    """Weight in [0, 1] that the plain and the corrected prediction share anew at every step, before what each said of
    the last token settles whom to trust how much."""

    def to_dict(self) -> dict[str, Any]:
        """As for every model; the output memory's settings are there only if it is on.

        So a model without one has the fingerprint that it had before there was such a thing.
        """
        values = super().to_dict()
        if not self.output_memory:
            for name in ("output_memory", "output_eta", "output_decay", "output_switch"):
                del values[name]
        return values

    def _check(self) -> None:
        super()._check()
        if self.output_eta < 0:
            raise _refuse(type(self).__name__, "output_eta", self.output_eta, "0 or more")
        if not 0.0 <= self.output_decay < 1.0:
            raise _refuse(type(self).__name__, "output_decay", self.output_decay, "a share in [0, 1) lost per step")
        if not 0.0 <= self.output_switch <= 1.0:
            raise _refuse(type(self).__name__, "output_switch", self.output_switch, "a share in [0, 1]")
        if self.vocab_size < 1:
            raise _refuse(type(self).__name__, "vocab_size", self.vocab_size, "at least 1")
        if self.embedding_std is not None and self.embedding_std <= 0:
            raise _refuse(type(self).__name__, "embedding_std", self.embedding_std, "a positive number or None")


def default_decay_lambda(memory_heads: int) -> tuple[float, ...]:
    """λ per head: 1e-4 for one, else spread evenly on a log scale from 3e-2 down to 1e-5."""
    if memory_heads == 1:
        return (1e-4,)
    high, low = math.log(3e-2), math.log(1e-5)
    return tuple(math.exp(high + (low - high) * i / (memory_heads - 1)) for i in range(memory_heads))


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_dim": 64, "num_layers": 5, "num_heads": 2, "window_size": 64},
    "small": {"hidden_dim": 256, "num_layers": 5, "num_heads": 4, "window_size": 128},
    "base": {"hidden_dim": 512, "num_layers": 10, "num_heads": 8, "window_size": 512},
}
"""Sizes for `SSMNConfig.preset` and `TextSSMNConfig.preset`."""

_CONFIG_KINDS: dict[str, type[StackConfig]] = {"standard": SSMNConfig, "text": TextSSMNConfig}


def config_from_dict(values: Mapping[str, Any]) -> StackConfig:
    """Builds the configuration that `values["kind"]` names (`standard` or `text`)."""
    kind = values.get("kind")
    if kind not in _CONFIG_KINDS:
        raise ConfigError(f"config: kind={kind!r}; wanted one of {', '.join(_CONFIG_KINDS)}.")
    return _CONFIG_KINDS[kind].from_dict(values)


PLASTICITY_PER_ROW = (
    "eta_scale", "decay_scale", "plasticity_eta", "decay_lambda", "write_threshold", "output_eta", "output_decay",
)  # fmt: skip
"""Fields of `Plasticity` that every row of a batch may have for itself."""


@dataclass(frozen=True, kw_only=True)
class Plasticity:
    """How strongly the memory learns and forgets in one call; the weights stay as they are.

    Each field is a number, or one number per batch row (a sequence or a 1-d tensor).

    Two things to know. `plasticity_eta=0` stops writing while decay goes on (the seed's formula);
    `frozen=True` closes every gate, and the memory stays bit-identical. With the `hebbian` rule a
    constant η from a fresh state has no effect, since the read is normalised: only λ, and η
    relative to what is already stored, matter. With `delta` η is a true learning rate.

    Example:
        >>> import ssmn
        >>> ssmn.Plasticity(decay_scale=0.1).decay_scale
        0.1
    """

    eta_scale: Any = 1.0
    """Factor on η (≥ 0); the product is capped at 1."""
    decay_scale: Any = 1.0
    """Factor on log(1 − λ) (≥ 0); about a factor on λ."""
    plasticity_eta: Any = None
    """Replaces the base η, in [0, 1]; the data dependence is kept."""
    decay_lambda: Any = None
    """Replaces the base λ of every head, in [0, 1); the data dependence is kept."""
    write_threshold: Any = None
    """Replaces the model's write threshold, in [0, 1]."""
    chat_rounds: int | None = None
    """Rounds of internal chat in this call, at most the model's: the first ones, their reads weighed as among
    themselves; None = all. One number for the whole call."""
    output_eta: Any = None
    """Replaces η of the output memory (≥ 0), if the model has one; 0 stops its writing, not its decay."""
    output_decay: Any = None
    """Replaces λ of the output memory, in [0, 1)."""
    frozen: bool = False
    """Closes every gate: nothing is written and nothing decays."""

    def __post_init__(self) -> None:
        limits = {
            "eta_scale": (0.0, math.inf),
            "decay_scale": (0.0, math.inf),
            "plasticity_eta": (0.0, 1.0),
            "decay_lambda": (0.0, 1.0),
            "write_threshold": (0.0, 1.0),
            "output_eta": (0.0, math.inf),
            "output_decay": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is None and name not in ("eta_scale", "decay_scale"):
                continue
            for number in _numbers(value):
                is_decay = name in ("decay_lambda", "output_decay")
                outside = not low <= number <= high or (is_decay and number == 1.0)
                if not math.isfinite(number) or outside:
                    end = ")" if is_decay or high == math.inf else "]"
                    raise RangeError(f"Plasticity: {name}={value!r}; wanted finite numbers in [{low:g}, {high:g}{end}.")
        rounds = self.chat_rounds
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0):
            raise RangeError(f"Plasticity: chat_rounds={rounds!r}; wanted a whole number of at least 0, or None.")
        if not isinstance(self.frozen, bool):
            raise RangeError(f"Plasticity: frozen={self.frozen!r}; wanted true or false.")

    def per_row(self, rows: int) -> list[Plasticity]:
        """The setting of each of `rows` streams, in plain numbers.

        Raises:
            ShapeError: A field has another number of values than there are rows.
        """
        columns = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = [value] if value is None or isinstance(value, int) else _numbers(value)
            if len(values) not in (1, rows):
                raise ShapeError(
                    f"Plasticity: {field.name} has {len(values)} numbers; wanted one, or one per row ({rows})."
                )
            columns[field.name] = values if len(values) == rows else [*values] * rows
        return [Plasticity(**{name: column[row] for name, column in columns.items()}) for row in range(rows)]


def _numbers(value: Any) -> Sequence[float]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = value if isinstance(value, (list, tuple)) else [value]
    try:
        return [float(item) for item in values]
    except (TypeError, ValueError):
        return [math.nan]


LONG_TERM = Plasticity(plasticity_eta=0.05, decay_lambda=1e-4)
"""The seed's long-term setting: writes firmly, forgets slowly."""

SHORT_TERM = Plasticity(plasticity_eta=0.001, decay_lambda=0.01)
"""The seed's short-term setting: writes lightly, forgets within some hundred steps."""
