"""The Text-native model: tokens in, logits out."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn.config import Plasticity, StackConfig, TextSSMNConfig
from ssmn.errors import DtypeError, RangeError, ShapeError, StateError
from ssmn.layers.encoder import SemanticEncoder
from ssmn.layers.output import OutputMemory
from ssmn.models.stack import Stack
from ssmn.ops.common import shape_text
from ssmn.state import EncoderState, OutputMemoryState, State, StreamState


class TextSSMN(Stack):
    """A sparse-stream memory network over tokens.

    With tied embeddings a recalled embedding votes for its own token in the output.

    Args:
        config: A `TextSSMNConfig`.

    Example:
        >>> import torch, ssmn
        >>> lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=50))
        >>> logits, state = lm(torch.randint(50, (2, 9)))
        >>> logits.shape, state.position
        (torch.Size([2, 9, 50]), tensor([9, 9]))
    """

    config_class: ClassVar[type[StackConfig]] = TextSSMNConfig
    config: TextSSMNConfig

    def __init__(self, config: TextSSMNConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std or 1 / math.sqrt(config.hidden_dim))
        self.encoder = SemanticEncoder(config.hidden_dim) if config.semantic_encoder else None
        self.output = None if config.tie_embeddings else nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.output_memory = (
            OutputMemory(
                config.vocab_size, config.hidden_dim, config.output_eta, config.output_decay, config.output_switch
            )
            if config.output_memory
            else None
        )

    def _init_front(self, batch_size: int) -> State | None:
        return None if self.encoder is None else self.encoder.init_state(batch_size)

    def _init_head(self, batch_size: int) -> State | None:
        memory, weight = self.output_memory, self.embedding.weight
        return None if memory is None else memory.init_state(batch_size, weight.dtype, weight.device)

    def forward(
        self,
        input_ids: Tensor,
        state: StreamState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Reads the next T tokens of B streams.

        Args:
            input_ids: [B, T] integers in [0, vocab_size).
            state: The streams so far; None = fresh. Never written into.
            mask: [B, T] bool, True = open. A closed step changes nothing and its logits are 0.
            reset: [B, T] bool, True = the whole state is fresh before this step.
            cu_seqlens: [N + 1] boundaries of segments packed into one row (B = 1); the state then has N rows.
            elapsed: [B, T], time since the step before (1 by default).
            plasticity: How strongly to learn and forget in this call; None = as trained.

        Returns:
            (logits [B, T, vocab_size] for the next token, state).

        Raises:
            ShapeError, DtypeError, RangeError, StateError: An argument does not fit; the message names it.
        """
        hidden, state = self.hidden(
            input_ids, state, mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity
        )
        logits = self.logits(hidden)
        if self.output_memory is not None:
            if not isinstance(state.head, OutputMemoryState):
                raise StateError("TextSSMN: the state has no part for the output memory; use model.init_state.")
            logits, head = self.output_memory(
                logits, hidden, input_ids, state.head,
                mask=mask, reset=reset, cu_seqlens=cu_seqlens, elapsed=elapsed, plasticity=plasticity,
            )  # fmt: skip
            state = dataclasses.replace(state, head=head)
        return (logits if mask is None else torch.where(mask.unsqueeze(-1), logits, 0.0)), state

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., D], what `hidden` returns or some of it, to [.., vocab_size]."""
        return functional.linear(hidden, self.embedding.weight) if self.output is None else self.output(hidden)

    def hidden(
        self,
        input_ids: Tensor,
        state: StreamState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        elapsed: Tensor | None = None,
        plasticity: Plasticity | None = None,
    ) -> tuple[Tensor, StreamState]:
        """What the logits are made from: (normalised hidden vectors [B, T, D], state). Arguments as in `forward`.

        An output memory neither sees nor learns from what is read this way: its part of the state stays as it is.
        """
        if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
            came = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise DtypeError(f"TextSSMN: input_ids is {came}; wanted an int64 or int32 tensor [B, T].")
        if input_ids.dim() != 2:
            raise ShapeError(f"TextSSMN: input_ids has shape {shape_text(input_ids)}; wanted [B, T].")
        state = self._check_steps(input_ids, state, mask, reset, cu_seqlens, elapsed, plasticity)
        if mask is not None:
            input_ids = torch.where(mask, input_ids, 0)
        if not torch.compiler.is_compiling() and input_ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(input_ids))
            if low < 0 or high >= self.config.vocab_size:
                raise RangeError(
                    f"TextSSMN: input_ids lie in [{low}, {high}]; wanted [0, {self.config.vocab_size - 1}] "
                    "(vocab_size − 1); encode with the tokenizer that was saved with the model."
                )
        x, front = self.embedding(input_ids), None
        if self.encoder is not None:
            if not isinstance(state.front, EncoderState):
                raise StateError("TextSSMN: the state has no part for the semantic encoder; use model.init_state.")
            x, front = self.encoder(x, state.front, mask=mask, reset=reset, cu_seqlens=cu_seqlens)
        return self._run(x, state, front, mask, reset, cu_seqlens, elapsed, plasticity)
