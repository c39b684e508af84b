"""Hugging Face transformers: `TextSSMN` as an `AutoModelForCausalLM` (needs `pip install "sparse-stream[hf]"`).

Importing this module registers the model under the type "ssmn". There is no second model and no cache class of
ours: the weights are those of `TextSSMN`, and its `StreamState` lies, tensor by tensor, in transformers' own
`DynamicCache`: keys and values in the sliding-window layers, everything else as recurrent states.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import tokenizers
import torch
from torch import Tensor, nn

from ssmn.config import Plasticity, TextSSMNConfig
from ssmn.errors import ConfigError, MissingExtraError, ShapeError, StateError
from ssmn.layers.blocks import Block
from ssmn.models import TextSSMN
from ssmn.state import State, StreamState, WindowState
from ssmn.training.tokenizer import Tokenizer

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        DynamicCache,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.cache_utils import Cache, LinearAttentionAndSlidingWindowAttentionLayer
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
    from transformers.utils.generic import can_return_tuple
    from transformers.utils.output_capturing import capture_outputs
except ImportError as error:
    raise MissingExtraError(
        f"ssmn.interfaces.hf: {error}; it needs transformers 5.20 or newer: pip install 'sparse-stream[hf]'"
    ) from error

_RENAMED = {"layer_types": "block_types"}
"""`layer_types` means something else to transformers: what kind of cache each layer needs."""

_ABSENT = ("output_memory", "output_eta", "output_decay", "output_switch")
"""Settings of what this adapter does not run: an output memory learns at every step, and not only at those kept."""

_SETTINGS = {
    _RENAMED.get(field.name, field.name): field.name
    for field in dataclasses.fields(TextSSMNConfig)
    if field.name not in _ABSENT
}
"""The settings by their names here, and what `TextSSMNConfig` calls them."""

_STATE_SLOTS = 8
"""Tensors that a layer of the cache has room for, beside keys and values; empty ones cost nothing."""


class SSMNTextConfig(PreTrainedConfig):
    """A `TextSSMNConfig` as transformers wants it: the same settings, checked in the same way, under the same names.

    Only `layer_types` is called `block_types` here. transformers' usual names (`hidden_size`, `num_hidden_layers`,
    `sliding_window`, ..) are understood as well.

    Args:
        values: Settings of `TextSSMNConfig` (`vocab_size` is 256 unless given, one token for each byte); `use_cache`;
            `bos_token_id`, `eos_token_id`, `pad_token_id`; and what every configuration of transformers takes.

    Raises:
        ConfigError: A setting is misspelt, impossible, or inconsistent with another.

    Example:
        >>> from ssmn.interfaces.hf import SSMNTextConfig
        >>> config = SSMNTextConfig(vocab_size=100, hidden_size=32, num_layers=3, num_heads=2, window_size=8)
        >>> config.hidden_dim, config.block_types, config.to_ssmn().window_size
        (32, ['static', 'plastic', 'static'], 8)
    """

    model_type = "ssmn"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    attribute_map: ClassVar = {
        "hidden_size": "hidden_dim",
        "intermediate_size": "ffn_dim",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "num_kv_heads",
        "rms_norm_eps": "norm_eps",
        "sliding_window": "window_size",
        "tie_word_embeddings": "tie_embeddings",
    }
    number_of_conv_states: ClassVar[int] = _STATE_SLOTS

    def __init__(self, **values: Any) -> None:
        names = {**self.attribute_map, **_RENAMED}
        values = {names.get(name, name): value for name, value in values.items()}
        known = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        for name in values.keys() - _SETTINGS.keys() - known:
            if near := difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.9):
                raise ConfigError(f"SSMNTextConfig: unknown setting {name!r}; did you mean {near[0]!r}?")
        _refuse_output_memory(bool(values.get("output_memory")))
        given = {_SETTINGS[name]: values.pop(name) for name in values.keys() & _SETTINGS.keys()}
        checked = _plain(TextSSMNConfig.from_dict({"vocab_size": 256, **given}))
        for name in _SETTINGS:
            setattr(self, name, checked[name])
        self.use_cache = values.pop("use_cache", True)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, name, values.pop(name, None))
        super().__init__(**values)

    @property
    def layer_types(self) -> list[str]:
        """The kind of cache that each block needs, in transformers' words."""
        kinds = ["hybrid_sliding" if kind == "static" else "linear_attention" for kind in self.block_types]
        if "static" not in self.block_types:
            kinds[0] = "hybrid_sliding"  # a cache without any would not know how much it has read
        return kinds

    @classmethod
    def from_ssmn(cls, config: TextSSMNConfig) -> Self:
        """The same settings.

        Raises:
            ConfigError: The model has an output memory, which this adapter does not run.
        """
        _refuse_output_memory(config.output_memory)
        return cls(**_plain(config))

    def to_ssmn(self) -> TextSSMNConfig:
        """The same settings, checked again, since attributes here can be set."""
        return TextSSMNConfig.from_dict({original: getattr(self, name) for name, original in _SETTINGS.items()})


def _plain(config: TextSSMNConfig) -> dict[str, Any]:
    """The settings by their names here, as JSON has them."""
    values = {name: getattr(config, original) for name, original in _SETTINGS.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class CheckpointedBlock(GradientCheckpointingLayer, Block):
    """A block whose activations can be computed again in the backward pass instead of being kept."""


class SSMNForCausalLM(PreTrainedModel, GenerationMixin):
    """`TextSSMN` as a causal language model of transformers.

    `generate` (greedy, sampling, beams), `Trainer`, `pipeline("text-generation")`, `save_pretrained` and
    `from_pretrained` are transformers' own. The cache has a fixed size, however long the stream; it cannot be cut
    back, so assisted generation is refused.

    Args:
        config: An `SSMNTextConfig`.

    Example:
        >>> import torch, ssmn
        >>> from ssmn.interfaces.hf import SSMNForCausalLM
        >>> config = ssmn.TextSSMNConfig(vocab_size=50, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> model = SSMNForCausalLM.from_ssmn(ssmn.TextSSMN(config).eval())
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape
        torch.Size([1, 7])
    """

    config_class = SSMNTextConfig
    config: SSMNTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules: ClassVar = ["CheckpointedBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embedding.weight"}
    _can_record_outputs: ClassVar = {"hidden_states": Block}
    if TYPE_CHECKING:  # its own annotation asks for attributes that models of transformers do not have either
        generate: Any

    def __init__(self, config: SSMNTextConfig) -> None:
        super().__init__(config)
        # Where embeddings and output are separate, the output is `lm_head`, as everywhere in transformers.
        self.model = TextSSMN(dataclasses.replace(config.to_ssmn(), tie_embeddings=True))
        for block in self.model.blocks:
            block.__class__ = CheckpointedBlock
        self.lm_head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_ssmn(cls, lm: TextSSMN) -> Self:
        """The same model for transformers; the weights are shared, not copied."""
        with torch.device("meta"):
            model = cls(SSMNTextConfig.from_ssmn(lm.config))
        weights = lm.state_dict()
        output = weights.pop("output.weight", lm.embedding.weight)
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        model.load_state_dict({**named, "lm_head.weight": output}, assign=True)
        model.tie_weights()
        model.config.dtype = model.dtype
        for module in model.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]
        return model.train(lm.training)

    def to_ssmn(self) -> TextSSMN:
        """The same model for `ssmn`; the weights are shared, not copied."""
        with torch.device("meta"):
            lm = TextSSMN(self.config.to_ssmn())
        weights = self.model.state_dict()
        if lm.output is not None:
            weights["output.weight"] = self.lm_head.weight
        lm.load_state_dict(weights, assign=True)
        return lm.train(self.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        plasticity: Plasticity | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Reads the next T tokens of B streams.

        Args:
            input_ids: [B, T] integers in [0, vocab_size).
            attention_mask: [B, at least T], 0 = padding, on any side; the last T columns count. Padding leaves the
                state as it is, and its logits are those of the step before it, so that `generate` goes on from a text
                that is padded on the right; before the first step of a row they are 0.
            position_ids: [B, T], used only to find packed sequences: without attention_mask and cache, the state is
                fresh wherever the numbers do not count up by one. Positions themselves are part of the state.
            past_key_values: `DynamicCache(config=model.config)`; it is written into.
            labels: [B, T] the tokens themselves; they are shifted here, and -100 is left out of the loss.
            use_cache: Whether to return a cache; None = as configured, but not in training.
            logits_to_keep: Logits for this many last steps only (0 = all), or for the steps of an index tensor.
            plasticity: How strongly to learn and forget in this call, also through `generate`; None = as trained.
            kwargs: `output_hidden_states`, `return_dict`, and what the loss takes (`num_items_in_batch`, ..).

        Returns:
            `logits [B, T, vocab_size]`, and as asked for `loss`, `past_key_values` and `hidden_states`.

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise ShapeError(
                "SSMNForCausalLM: inputs_embeds was given; wanted input_ids, since a stream is made of tokens "
                "(ssmn.SSMN reads vectors)."
            )
        outputs = self._read(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            self.config.use_cache and not self.training if use_cache is None else use_cache,
            plasticity,
            output_hidden_states=kwargs.pop("output_hidden_states", self.config.output_hidden_states),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state
        assert hidden is not None
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    @capture_outputs
    def _read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool,
        plasticity: Plasticity | None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        packs = cache is None
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        state = None if cache is None else self._stream_state(cache)
        mask = reset = None
        if isinstance(input_ids, Tensor) and input_ids.dim() == 2:
            if attention_mask is not None:
                mask = _open_steps(attention_mask, input_ids)
            elif position_ids is not None and packs:
                reset = _sequence_starts(position_ids, input_ids)
        hidden, state = self.model.hidden(input_ids, state, mask=mask, reset=reset, plasticity=plasticity)  # type: ignore[arg-type]
        if cache is not None:
            _fill(cache, state, hidden.shape[1])
        if mask is not None:
            hidden = _filled(hidden, mask)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)

    def stream_state(self, past_key_values: Cache) -> StreamState | None:
        """The state of the streams that a cache has read, to save, fork or go on with in `ssmn`; None = fresh."""
        state = self._stream_state(past_key_values)
        return None if state is None else state.clone()

    def cache_of(self, state: StreamState) -> DynamicCache:
        """A cache that goes on from `state`, for `forward` and `generate`, which then take the new tokens only."""
        cache = DynamicCache(config=self.config)
        _fill(cache, state, 0)
        return cache

    def _stream_state(self, cache: Cache) -> StreamState | None:
        layers: list[Any] = getattr(cache, "layers", [])
        wanted = [type(layer) for layer in DynamicCache(config=self.config).layers]
        if [type(layer) for layer in layers] != wanted:
            raise StateError(
                f"SSMNForCausalLM: past_key_values has {len(layers)} layers of other kinds than this model's; "
                "wanted DynamicCache(config=model.config), or None."
            )
        if not layers[0].has_previous_state[0]:
            return None
        template = self.model.init_state(1)
        tensors: dict[str, Tensor] = {}
        for layer, names in zip(layers, _slots(layers, template), strict=True):
            for slot, name in enumerate(names):
                held = layer.recurrent_states[slot]
                # The cache is written in place, which back-propagation through this call must not see.
                tensors[name] = held.clone() if torch.is_grad_enabled() else held
        for number, (layer, part) in enumerate(zip(layers, template.layers, strict=True)):
            if _has_window(layer, part):
                position, room = tensors[f"layers.{number}.position"], cast("WindowState", part).keys.shape[1]
                tensors[f"layers.{number}.keys"] = _as_ring(layer.keys, position, room)
                tensors[f"layers.{number}.values"] = _as_ring(layer.values, position, room)
        return template.with_tensors(tensors)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embeddings."""
        self.model.embedding = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers: more or fewer tokens."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        self.model.config = dataclasses.replace(self.model.config, vocab_size=self.config.vocab_size)
        return embedding

    def initialize_weights(self) -> None:
        """Gives all weights that came from no file the values that a new `TextSSMN` would have."""
        modules = {name: x for name, x in self.named_modules() if not getattr(x, "_is_hf_initialized", False)}
        missing = {
            f"{owner}.{name}": parameter
            for owner, module in modules.items()
            for name, parameter in module.named_parameters(recurse=False)
            if not getattr(parameter, "_is_hf_initialized", False)
        }
        if missing:
            fresh = TextSSMN(self.config.to_ssmn())
            output = fresh.embedding if fresh.output is None else fresh.output
            weights: dict[str, Tensor] = {f"model.{name}": weight for name, weight in fresh.named_parameters()}
            weights["lm_head.weight"] = output.weight
            with torch.no_grad():
                for name, parameter in missing.items():
                    parameter.copy_(weights[name])
        for module in modules.values():
            module._is_hf_initialized = True  # type: ignore[assignment]


def _refuse_output_memory(is_on: bool) -> None:
    if is_on:
        raise ConfigError(
            "SSMNTextConfig: output_memory=True; wanted False: the adapter for transformers does not run it; load the "
            "model without it, or generate with ssmn.generate or `ssmn generate --output-memory`."
        )


def tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerFast:
    """A tokenizer for transformers from a `tokenizer.json` of ours; it encodes and decodes the same.

    Padding uses the tokenizer's own special token for it or, since ours have none, the token of the byte 0, which text
    does not need; with the attention mask that comes with it, padding is as if it were not there.

    Args:
        path: The file, or the folder of a model that `ssmn train` has written.

    Raises:
        FileError: The file is absent or is not a tokenizer.
    """
    path = Path(path)
    ours = Tokenizer.load(path / "tokenizer.json" if path.is_dir() else path)
    backend = tokenizers.Tokenizer.from_str(ours.to_json())
    if backend.decoder is None and ours.kind in ("bytes", "bpe"):
        backend.decoder = tokenizers.decoders.ByteLevel()
    zero = chr(0x100)  # stands for the byte 0 in byte-level vocabularies
    named = next((name for name in ours.special_tokens if "pad" in name.lower()), zero)
    pad = {} if backend.token_to_id(named) is None else {"pad_token": named}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # in a text, the padding token's own spelling is text
        **pad,
    )


def _open_steps(attention_mask: Tensor, input_ids: Tensor) -> Tensor | None:
    """[B, T] bool from a mask over past and new tokens; None if all are open."""
    batch, time = input_ids.shape
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < time:
        raise ShapeError(
            f"SSMNForCausalLM: attention_mask has shape {list(attention_mask.shape)}; wanted [{batch}, at least "
            f"{time}], one number for every token so far (0 = padding)."
        )
    mask = attention_mask[:, attention_mask.shape[1] - time :].to(torch.bool)
    return None if bool(mask.all()) else mask


def _filled(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B, T, D] with that of the last open step in place of every closed one; 0 before the first."""
    latest = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).cummax(1).values.unsqueeze(-1)
    return torch.where(latest >= 0, hidden.gather(1, latest.clamp(min=0).expand_as(hidden)), 0.0)


def _sequence_starts(position_ids: Tensor, input_ids: Tensor) -> Tensor | None:
    """[B, T] bool, True where a packed sequence begins; None if nothing is packed."""
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=-1) != 1
    return starts if bool(starts.any()) else None


def _has_window(layer: Any, part: State) -> bool:
    """Whether keys and values of a layer's state lie in its cache as keys and values."""
    return isinstance(part, WindowState) and isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer)


def _slots(layers: list[Any], state: StreamState) -> list[list[str]]:
    """The tensors that lie in each layer of a cache as recurrent states, by their names in the state.

    Those that belong to no layer are in the first one's.
    """
    slots: list[list[str]] = [[] for _ in layers]
    for name in state.named_tensors():
        part, _, rest = name.partition(".")
        number, _, field = rest.partition(".")
        owner = int(number) if part == "layers" else 0
        if part == "layers" and field in ("keys", "values") and _has_window(layers[owner], state.layers[owner]):
            continue
        slots[owner].append(name)
    assert max(map(len, slots)) <= _STATE_SLOTS
    return slots


def _fill(cache: Cache, state: StreamState, time: int) -> None:
    """Writes into a cache the state after `time` more steps."""
    tensors, layers = state.named_tensors(), cast("list[Any]", cache.layers)
    for number, (layer, part, names) in enumerate(zip(layers, state.layers, _slots(layers, state), strict=True)):
        for slot, name in enumerate(names):
            cache.update_recurrent_state(tensors[name], number, slot)
            layer.has_previous_state[slot] = True
        if _has_window(layer, part):
            window = cast("WindowState", part)
            room = window.keys.shape[1]
            columns = min(room, (0 if layer.keys is None else layer.keys.shape[-2]) + time) if time else room
            keys, values = (_in_order(ring, window.position, columns) for ring in (window.keys, window.values))
        elif isinstance(layer, LinearAttentionAndSlidingWindowAttentionLayer):  # it only counts
            keys = values = state.position.new_zeros(state.batch_size, 1, 0, 1, dtype=torch.float32)
        else:
            continue
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layer.cumulative_length += time


def _in_order(ring: Tensor, position: Tensor, columns: int) -> Tensor:
    """The newest entries of a ring [B, W − 1, H, D] as [B, H, columns, D], oldest first; zeros where none was."""
    age = torch.arange(columns, device=ring.device) - columns
    slot = torch.remainder(position.unsqueeze(1) + age, max(1, ring.shape[1]))
    return ring.gather(1, slot[:, :, None, None].expand(-1, -1, *ring.shape[2:])).transpose(1, 2)


def _as_ring(ordered: Tensor, position: Tensor, slots: int) -> Tensor:
    """The reverse of `_in_order`: [B, H, columns, D] to [B, slots, H, D]."""
    ordered = ordered.transpose(1, 2)
    newest = position.unsqueeze(1) - 1
    held = newest - torch.remainder(newest - torch.arange(slots, device=ordered.device), max(1, slots))
    column = (ordered.shape[1] - 1 - newest + held).clamp(min=0)[:, :, None, None]
    filled = (held >= 0)[:, :, None, None]
    return torch.where(filled, ordered.gather(1, column.expand(-1, -1, *ordered.shape[2:])), 0.0)


AutoConfig.register(SSMNTextConfig.model_type, SSMNTextConfig, exist_ok=True)
AutoModelForCausalLM.register(SSMNTextConfig, SSMNForCausalLM, exist_ok=True)
