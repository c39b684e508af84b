"""Layers of the continuous Hopfield network over sets: association, pooling, lookup of learned patterns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssmn.errors import ShapeError
from ssmn.layers.checks import check_dtype, check_setting
from ssmn.layers.memory import unit
from ssmn.ops.common import shape_text
from ssmn.relatives.hopfield.continuous import retrieve


class HopfieldAssociation(nn.Module):
    """State patterns are associated with stored patterns: attention by retrieval, in one or several updates.

    Per head q = l2(W_q r), k = l2(W_k y), ξ ← Kᵀ softmax(β K ξ) from ξ = q, and the last update reads W_v y:
    z = W_o softmax(β K ξ) V. β > 0 is learned, one for each head. With keys of unit length β = √d weighs as attention
    with its 1/√d does, for d features of unit variance (Ramsauer et al., 2020, layer `Hopfield`; theirs normalises the
    patterns and not the projections).

    Args:
        state_dim: Features of a state pattern.
        stored_dim: Features of a stored pattern.
        hidden_dim: Width of all heads together.
        output_dim: Features that come out.
        num_heads: Must divide `hidden_dim`.
        update_steps: Updates, the last read included.
        tolerance: Stops when no query moves further; 0 = always `update_steps`.
        beta: Where β starts; None = √(hidden_dim / num_heads).

    Raises:
        ConfigError: A setting does not fit; the message names it.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import HopfieldAssociation
        >>> layer = HopfieldAssociation(state_dim=5, stored_dim=7, hidden_dim=16, output_dim=3, num_heads=2)
        >>> layer(torch.randn(2, 4, 5), torch.randn(2, 9, 7)).shape
        torch.Size([2, 4, 3])
    """

    def __init__(
        self,
        state_dim: int,
        stored_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        num_heads: int = 1,
        update_steps: int = 1,
        tolerance: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("state_dim", state_dim), ("stored_dim", stored_dim), ("output_dim", output_dim)):
            check_setting(owner, name, value, value >= 1, "at least 1")
        self.log_beta = initial_beta(owner, hidden_dim, num_heads, beta)
        check_setting(owner, "update_steps", update_steps, update_steps >= 1, "at least 1")
        check_setting(owner, "tolerance", tolerance, tolerance >= 0, "a distance of at least 0")
        self.num_heads, self.update_steps, self.tolerance = num_heads, update_steps, tolerance
        self.query = nn.Linear(state_dim, hidden_dim, bias=False)
        self.key = nn.Linear(stored_dim, hidden_dim, bias=False)
        self.value = nn.Linear(stored_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, output_dim)

    @property
    def beta(self) -> Tensor:
        """[H], the inverse temperature of each head."""
        return self.log_beta.exp()

    def forward(self, state_patterns: Tensor, stored: Tensor, mask: Tensor | None = None) -> Tensor:
        """Associates.

        Args:
            state_patterns: [B, S, state_dim], what asks.
            stored: [B, P, stored_dim], a set: its order does not matter.
            mask: [B, P] bool, True = there; an empty set is read as zeros.

        Returns:
            [B, S, output_dim].

        Raises:
            ShapeError, DtypeError: An argument does not fit; the message names it.
        """
        owner = type(self).__name__
        sets = (("state_patterns", state_patterns, self.query), ("stored", stored, self.key))
        for name, tensor, layer in sets:
            if tensor.dim() != 3 or tensor.shape[-1] != layer.in_features or len(tensor) != len(stored):
                raise ShapeError(
                    f"{owner}: {name} has shape {shape_text(tensor)}; wanted [B, .., {layer.in_features}] with "
                    f"B={len(stored)}."
                )
            check_dtype(owner, name, tensor, layer.weight)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != stored.shape[:2]):
            raise ShapeError(f"{owner}: mask is {mask.dtype} {shape_text(mask)}; wanted bool {list(stored.shape[:2])}.")
        found = retrieve(
            unit(self._heads(self.query(state_patterns))),
            unit(self._heads(self.key(stored))),
            values=self._heads(self.value(stored)),
            beta=self.beta[:, None, None],
            mask=None if mask is None else mask.unsqueeze(1).expand(-1, self.num_heads, -1),
            max_steps=self.update_steps,
            tolerance=self.tolerance,
        )
        return self.output(found.pattern.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, X, hidden] to [B, H, X, d]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class HopfieldPooling(nn.Module):
    """A set as one vector: learned state patterns ask the set for what matters (multiple-instance learning).

    Args:
        input_dim: Features of a member of the set.
        hidden_dim: Width of all heads together.
        output_dim: Features that come out for each query.
        num_queries: Learned state patterns.
        num_heads, update_steps, tolerance, beta: As for `HopfieldAssociation`.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import HopfieldPooling
        >>> pool = HopfieldPooling(input_dim=7, hidden_dim=16, output_dim=3)
        >>> pool(torch.randn(2, 9, 7), torch.arange(9) < torch.tensor([[9], [4]])).shape
        torch.Size([2, 1, 3])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        num_queries: int = 1,
        num_heads: int = 1,
        update_steps: int = 1,
        tolerance: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        check_setting(type(self).__name__, "num_queries", num_queries, num_queries >= 1, "at least 1")
        self.association = HopfieldAssociation(
            hidden_dim, input_dim, hidden_dim, output_dim,
            num_heads=num_heads, update_steps=update_steps, tolerance=tolerance, beta=beta,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_dim))

    def forward(self, members: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pools.

        Args:
            members: [B, P, input_dim].
            mask: [B, P] bool, True = there.

        Returns:
            [B, num_queries, output_dim].

        Raises:
            ShapeError, DtypeError: An argument does not fit; the message names it.
        """
        return self.association(self.queries.expand(len(members), -1, -1), members, mask)


class HopfieldLookup(nn.Module):
    """Asks learned patterns: a table of prototypes that is trained with everything else.

    Args:
        input_dim: Features of what asks.
        hidden_dim: Width of all heads together, and of the stored patterns.
        output_dim: Features that come out.
        num_patterns: Learned stored patterns.
        num_heads, update_steps, tolerance, beta: As for `HopfieldAssociation`.

    Example:
        >>> import torch
        >>> from ssmn.relatives.hopfield import HopfieldLookup
        >>> HopfieldLookup(input_dim=7, hidden_dim=16, output_dim=3, num_patterns=20)(torch.randn(2, 5, 7)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_patterns: int,
        *,
        num_heads: int = 1,
        update_steps: int = 1,
        tolerance: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        check_setting(type(self).__name__, "num_patterns", num_patterns, num_patterns >= 1, "at least 1")
        self.association = HopfieldAssociation(
            input_dim, hidden_dim, hidden_dim, output_dim,
            num_heads=num_heads, update_steps=update_steps, tolerance=tolerance, beta=beta,
        )  # fmt: skip
        self.patterns = nn.Parameter(torch.randn(num_patterns, hidden_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, input_dim] to [B, S, output_dim].

        Raises:
            ShapeError, DtypeError: `x` does not fit.
        """
        return self.association(x, self.patterns.expand(len(x), -1, -1))


def initial_beta(owner: str, hidden_dim: int, num_heads: int, beta: float | None) -> nn.Parameter:
    """The logarithm of β [H] where it starts, after a check of the heads."""
    check_setting(owner, "hidden_dim", hidden_dim, hidden_dim >= 1, "at least 1")
    divides = num_heads >= 1 and hidden_dim % num_heads == 0
    check_setting(owner, "num_heads", num_heads, divides, f"a divisor of hidden_dim={hidden_dim}")
    start = math.sqrt(hidden_dim / num_heads) if beta is None else beta
    check_setting(owner, "beta", beta, 0 < start < math.inf, "a finite inverse temperature above 0, or None")
    return nn.Parameter(torch.full((num_heads,), math.log(start)))
