"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssmn.errors import DtypeError, RangeError


class StopStrings:
    """Lets a text through up to the first stop string, however the pieces cut it.

    What may yet turn out to be the beginning of a stop string is held back.

    Args:
        stops: The strings to stop at.

    Raises:
        DtypeError, RangeError: One of them is not a string, or empty.

    Example:
        >>> from ssmn.generation import StopStrings
        >>> stops = StopStrings(["\\n\\n"])
        >>> [stops.push(piece) for piece in ("one\\n", "two\\n", "\\nthree")]
        ['one', '\\ntwo', '']
        >>> stops.found
        '\\n\\n'
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, bytes) or not isinstance(stops, Iterable):
            raise DtypeError(f"generate: stop is {type(stops).__name__}; wanted a string, or a list of strings.")
        stops = [stops] if isinstance(stops, str) else list(stops)
        for stop in stops:
            if not isinstance(stop, str):
                raise DtypeError(f"generate: a stop string is {type(stop).__name__}; wanted str.")
            if not stop:
                raise RangeError("generate: a stop string is empty; wanted at least one character.")
        self._stops = stops
        self.found: str | None = None
        """The stop string that was met; nothing comes through after it."""
        self.held = ""
        """What is held back."""

    def push(self, text: str) -> str:
        """The part of the text so far that can be given out now."""
        if self.found is not None:
            return ""
        text = self.held + text
        # The one that is complete first, as if the text came by characters; of several the longest.
        met = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if met:
            _, start, self.found = min(met)
            self.held = ""
            return text[:start]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        end = len(text) - held
        self.held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back, now that nothing more comes."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
