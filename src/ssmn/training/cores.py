"""What carries an agent's memory: the protocol of a recurrent core, and the GRU and the LSTM under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ssmn.layers.checks import check_setting
from ssmn.state import State, register_state

GatedKind = Literal["gru", "lstm"]


class RecurrentCore(Protocol):
    """Anything that is called like an `SSMN`: `(y [B, T, output_dim], state) = core(x [B, T, input_dim], state)`.

    `reset [B, T]` is true where everything is fresh before a step; a state is a value with the verbs of
    `ssmn.state.State`, rows on axis 0.
    """

    def __call__(self, x: Tensor, state: Any = None, *, reset: Tensor | None = None) -> tuple[Tensor, Any]: ...

    def init_state(self, batch_size: int) -> Any: ...

    def state_dict(self) -> Any: ...

    def parameters(self) -> Any: ...


@register_state("gated")
@dataclass(frozen=True, eq=False, repr=False)
class GatedState(State):
    """What a GRU or an LSTM remembers."""

    hidden: Annotated[Tensor, "B D"]
    """[B, D]."""
    cell: Annotated[Tensor, "B D"] | None = None
    """[B, D], of an LSTM alone."""


class GatedCore(nn.Module):
    """Torch's GRU or LSTM between two linear maps: y = W_o rnn(silu(W_i x)).

    GRU: Cho et al., 2014. LSTM: Hochreiter and Schmidhuber, 1997, its forget gate open at the start.

    Args:
        kind: `gru` or `lstm`.
        input_dim: Features per step that come in.
        output_dim: Features per step that go out.
        hidden_dim: D, units of the recurrent layer.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> import torch
        >>> from ssmn.training.cores import GatedCore
        >>> core = GatedCore.of_size("gru", 3, 5, parameters=1000)
        >>> y, state = core(torch.randn(2, 7, 3), reset=torch.rand(2, 7) < 0.3)
        >>> y.shape, state.hidden.shape
        (torch.Size([2, 7, 5]), torch.Size([2, 12]))
    """

    def __init__(self, kind: GatedKind, input_dim: int, output_dim: int, hidden_dim: int) -> None:
        super().__init__()
        owner = type(self).__name__
        check_setting(owner, "kind", kind, kind in get_args(GatedKind), f"one of {', '.join(get_args(GatedKind))}")
        for name, value in (("input_dim", input_dim), ("output_dim", output_dim), ("hidden_dim", hidden_dim)):
            check_setting(owner, name, value, value >= 1, "at least 1")
        self.kind: GatedKind = kind
        self.input = nn.Linear(input_dim, hidden_dim)
        self.rnn: Any = (nn.GRU if kind == "gru" else nn.LSTM)(hidden_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, output_dim)
        if kind == "lstm":
            with torch.no_grad():
                for name, value in (("bias_hh_l0", 1.0), ("bias_ih_l0", 0.0)):
                    getattr(self.rnn, name)[hidden_dim : 2 * hidden_dim] = value

    @classmethod
    def of_size(cls, kind: GatedKind, input_dim: int, output_dim: int, parameters: int) -> Self:
        """The core whose number of parameters comes nearest to `parameters`."""
        gates = 3 if kind == "gru" else 4

        def count(width: int) -> int:
            return width * (input_dim + 1 + output_dim + 2 * gates * (width + 1)) + output_dim

        width = 1
        while count(width + 1) <= parameters:
            width += 1
        return cls(kind, input_dim, output_dim, min((width, width + 1), key=lambda w: abs(count(w) - parameters)))

    def init_state(self, batch_size: int) -> GatedState:
        """A fresh state for `batch_size` streams: all zeros."""
        zeros = self.input.weight.new_zeros(batch_size, self.rnn.hidden_size)
        return GatedState(zeros, zeros.clone() if self.kind == "lstm" else None)

    def forward(
        self, x: Tensor, state: GatedState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, GatedState]:
        """Reads the next T steps of B streams.

        Args:
            x: [B, T, input_dim].
            state: The streams so far; None = fresh.
            reset: [B, T] bool, True = fresh before this step.

        Returns:
            (y [B, T, output_dim], state).
        """
        rows, time = x.shape[:2]
        state = self.init_state(rows) if state is None else state
        if not time:
            return x.new_zeros(rows, 0, self.output.out_features), state
        hidden = functional.silu(self.input(x))
        if reset is None:
            reset = torch.zeros(rows, time, dtype=torch.bool, device=x.device)
        starts = reset.clone()
        starts[:, 0] = True
        carried = state.map(lambda tensor: torch.where(reset[:, :1], 0.0, tensor))
        if int(starts.sum()) == rows:
            seen, last = self._run(hidden, carried)
        else:
            seen, last = self._run_pieces(hidden, carried, starts)
        return self.output(seen), last

    def _run(self, hidden: Any, state: GatedState) -> tuple[Any, GatedState]:
        before = tuple(tensor.unsqueeze(0).contiguous() for tensor in state.named_tensors().values())
        seen, after = self.rnn(hidden, before if self.kind == "lstm" else before[0])
        after = after if self.kind == "lstm" else (after,)
        return seen, GatedState(*(tensor[0] for tensor in after))

    def _run_pieces(self, hidden: Tensor, carried: GatedState, starts: Tensor) -> tuple[Tensor, GatedState]:
        """Every piece between two resets as a row of its own, so that torch's kernel runs once over all of them."""
        rows, time = starts.shape
        begins = starts.flatten().nonzero()[:, 0]
        piece = starts.flatten().cumsum(0) - 1
        within = torch.arange(rows * time, device=hidden.device) - begins[piece]
        lengths = torch.diff(begins, append=begins.new_tensor([rows * time]))
        padded = hidden.new_zeros(len(begins), int(lengths.max()), hidden.shape[-1])
        padded = padded.index_put((piece, within), hidden.flatten(0, 1))
        firsts = begins % time == 0
        before = carried.map(lambda t: t.new_zeros(len(begins), t.shape[1]).index_put((firsts,), t))
        packed = pack_padded_sequence(padded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        seen, last = self._run(packed, before)
        seen = pad_packed_sequence(seen, batch_first=True)[0]
        return seen[piece, within].unflatten(0, (rows, time)), last.select(piece[time - 1 :: time])
