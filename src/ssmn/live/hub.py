"""The sessions of all visitors, each visible to its owner alone, within limits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ssmn.errors import RangeError, StateError
from ssmn.live.session import Session


@dataclass(frozen=True)
class Limits:
    """What a dashboard allows."""

    sessions: int = 8
    """Sessions in all."""
    viewers: int = 4
    """Open event streams of one session."""
    body_bytes: int = 1 << 16
    """Largest body of a request."""
    idle_seconds: float = 60.0
    """A session that nobody looks at stops reading after this, and may then be closed to make room for another."""

    def __post_init__(self) -> None:
        for name in ("sessions", "viewers", "body_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RangeError(f"Limits: {name}={value!r}; wanted a whole number of at least 1.")
        if not self.idle_seconds > 0:
            raise RangeError(f"Limits: idle_seconds={self.idle_seconds!r}; wanted more than 0.")


class FullError(StateError):
    """A limit on sessions or viewers is reached."""


class Hub:
    """Sessions by owner and id.

    Args:
        make: A new session, not started.
        limits: How many there may be.

    Example:
        >>> from ssmn.live import Hub
        >>> def make(): ...
        >>> Hub(make).list("somebody")
        []
    """

    def __init__(self, make: Callable[[], Session], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._make = make
        self._lock = threading.Lock()
        self._sessions: dict[str, tuple[str, Session]] = {}

    def create(self, owner: str) -> Session:
        """A new session, running.

        Raises:
            FullError: There are too many that somebody looks at.
        """
        return self._add(owner, self._make)

    def fork(self, owner: str, session_id: str) -> Session:
        """A second session from the state of one, running.

        Raises:
            StateError: The owner has no such session.
            FullError: There are too many that somebody looks at.
        """
        return self._add(owner, self.get(owner, session_id).fork)

    def get(self, owner: str, session_id: str) -> Session:
        """The owner's session; of another's it is not said that there is one.

        Raises:
            StateError: The owner has no such session.
        """
        found = self._sessions.get(session_id)
        if found is None or found[0] != owner:
            raise StateError("session: there is none of that name; GET /api/sessions lists yours.")
        return found[1]

    def list(self, owner: str) -> list[Session]:
        """The owner's sessions, oldest first."""
        with self._lock:
            return [session for theirs, session in self._sessions.values() if theirs == owner]

    def remove(self, owner: str, session_id: str) -> None:
        """Closes a session.

        Raises:
            StateError: The owner has no such session.
        """
        session = self.get(owner, session_id)
        with self._lock:
            self._sessions.pop(session_id, None)
        session.close()

    def close(self) -> None:
        """Closes all sessions."""
        with self._lock:
            sessions, self._sessions = [session for _, session in self._sessions.values()], {}
        for session in sessions:
            session.close()

    def _add(self, owner: str, make: Callable[[], Session]) -> Session:
        left: Session | None = None
        with self._lock:
            if len(self._sessions) >= self.limits.sessions:
                unseen = max(self._sessions.values(), key=lambda pair: pair[1].unseen_seconds)[1]
                if unseen.unseen_seconds <= self.limits.idle_seconds:
                    raise FullError(
                        f"session: there are {self.limits.sessions} already, and somebody looks at each; close one."
                    )
                left = self._sessions.pop(unseen.id)[1]
            made = make()
            self._sessions[made.id] = owner, made
        if left is not None:
            left.close()
        return made.start()
