"""What `ssmn watch` and `ssmn dashboard` share: a model, a source, and how sessions of them are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ssmn.config import SSMNConfig
from ssmn.errors import RangeError
from ssmn.live.feeds import Source, source_for
from ssmn.live.reading import Reading
from ssmn.live.session import Session
from ssmn.models.stack import Stack
from ssmn.probes import state_maps, writers
from ssmn.state import StreamState

if TYPE_CHECKING:
    from ssmn.training import Tokenizer

WATCHABLE = 400.0
"""Steps a second at most of a source that does not arrive by itself, unless told otherwise: slow enough to follow."""


@dataclass(frozen=True)
class Setup:
    """A model and what it is to read.

    Example:
        >>> import ssmn
        >>> from ssmn.live.command import Setup
        >>> model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=1, output_dim=1)).eval()
        >>> setup = Setup.of(model, None, None, speed=None)
        >>> setup.about["source"], setup.about["kind"], setup.speed
        ("a machine's temperature", 'standard', 400.0)
    """

    model: Stack
    tokenizer: Tokenizer | None
    source: Source
    speed: float | None
    """Steps a second at most; None = as fast as it goes."""
    state: StreamState | None = None
    """Where sessions start; None = afresh."""

    @classmethod
    def of(
        cls,
        model: Stack,
        tokenizer: Tokenizer | None,
        where: str | None,
        *,
        speed: float | None,
        state: StreamState | None = None,
    ) -> Setup:
        """The set-up that a command line asks for.

        Args:
            model: Text or Standard.
            tokenizer: Of a text model.
            where: As for `source_for`.
            speed: Steps a second at most; 0 = as fast as it goes; None = that for what arrives by itself, else
                `WATCHABLE`.
            state: Where sessions start.

        Raises:
            RangeError, FileError: The source is none that can be watched.
        """
        if speed is not None and speed < 0:
            raise RangeError(f"--speed {speed:g}: wanted steps a second, or 0 for as fast as it goes.")
        source = source_for(where, model.config, tokenizer)
        limit = (None if source.live else WATCHABLE) if speed is None else speed or None
        return cls(model, tokenizer, source, limit, state)

    def session(self, idle_seconds: float | None = None) -> Session:
        """A new session, not started."""
        reading = Reading(self.model, self.source.reader(), self.tokenizer, self.state)
        return Session(reading, label=self.source.name, speed=self.speed, idle_seconds=idle_seconds)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a page says of model and source: their names, which settings have an effect, and what is as trained."""
        config, found, shown = self.model.config, writers(self.model), state_maps(self.model.init_state(1))
        sizes = [f"{found.title} ({' × '.join(map(str, found.values.shape[1:]))})" for found in shown.values()]
        told = [f"{sizes.count(size)} × {size}" if sizes.count(size) > 1 else size for size in dict.fromkeys(sizes)]
        settings = ["eta_scale", "decay_scale", "write_threshold"] if found else []
        if found or not set(config.layer_types or ()) <= {"static", "lru"}:
            settings.append("frozen")
        first = next(iter(found.values()), None)
        is_rows = isinstance(config, SSMNConfig)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        size = f"{parameters / 1e6:.2g} M" if parameters >= 1e5 else f"{parameters:,}"
        return {
            "kind": config.kind,
            "model": f"{'Standard' if is_rows else 'Text'} model, {size} parameters, {', '.join(told)}",
            "source": self.source.name,
            "settings": settings,
            "eta": None if first is None else first.importance.plasticity_eta,
            "decay": list(config.to_dict()["decay_lambda"]),
            "threshold": None if first is None else first.write_threshold,
            "layers": list(shown),
        }
