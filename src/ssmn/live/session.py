"""A session: one reading in a thread of its own, with buttons, and a numbered series of updates that viewers follow."""

from __future__ import annotations

import json
import logging
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ssmn.config import Plasticity
from ssmn.errors import RangeError, SSMNError, StateError
from ssmn.live.numbers import distance, finite, memories_of
from ssmn.live.reading import Reading, with_settings
from ssmn.live.updates import Update, described, trail_point

T = TypeVar("T")

RATE = 21.0
"""Updates a second that a session aims at."""
RANK_SHARE = 0.01
"""Share of the thread's own time that may go into effective ranks; they are found anew as often as that allows."""
MOST_RANK_SECONDS = 2.0
"""Seconds after which they are found anew in any case."""
LEAST, FIRST, MOST = 32, 128, 2048
"""Steps of a piece; between them, as many as fit between two updates."""
KEPT_UPDATES = 256
"""Updates that a viewer who comes back can still get."""
TRAIL = 400
"""Points of the lines that a new viewer gets; when there are more, every second one is dropped."""
PATIENCE = 0.3
"""Seconds without input after which a session says that it waits."""
COMMAND_SECONDS = 30.0
FASTEST = 1_000_000.0

_log = logging.getLogger("ssmn.live")


class Session:
    """A running view: reads by itself, takes commands between two pieces, publishes updates.

    Everything that touches the stream happens in the session's own thread; the methods may be called from any.

    Args:
        reading: What to read; nobody else may use it from now on.
        label: What to call the session.
        speed: Steps a second at most; None = as fast as it goes.
        rate: Updates a second to aim at.
        idle_seconds: Stops reading when nobody has looked for so long (see `looking`); None = never.
        parent: The session it was forked from.
        paused: Whether it waits for `resume` at the start.

    Example:
        >>> import ssmn
        >>> from ssmn.live import Feed, Reading, Session
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> tokenizer = Tokenizer.for_bytes()
        >>> reader = Feed(lambda: iter([tokenizer.encode("what was read")])).reader()
        >>> session = Session(Reading(ssmn.TextSSMN(config).eval(), reader, tokenizer)).start()
        >>> session.wait_for(lambda update: update.status == "ended", 10.0).report.position
        13
        >>> session.checkpoint()
        'checkpoint 1'
        >>> session.close()
    """

    def __init__(
        self,
        reading: Reading,
        *,
        label: str = "",
        speed: float | None = None,
        rate: float = RATE,
        idle_seconds: float | None = None,
        parent: Session | None = None,
        paused: bool = False,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        """Unguessable."""
        self.label, self.parent = label, parent
        self._reading, self._rate, self._idle_seconds = reading, rate, idle_seconds
        self._speed = _checked_speed(speed)
        self._paused, self._failed, self._closed = paused, False, False
        self._message = ""
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._updates: deque[Update] = deque(maxlen=KEPT_UPDATES)
        self._packed: dict[int, bytes] = {}
        self._listeners: set[Callable[[], None]] = set()
        self._trail: list[list[Any]] = []
        self._stride, self._since = 1, 0
        self._viewers, self._looked = 0, time.monotonic()
        self._dozing = False
        self._pace, self._allowance, self._size = 0.0, 0.0, FIRST
        self._rank_seconds, self._ranked, self._ranked_spent = 0.0, -math.inf, 0.0
        self._report_seconds = 0.0
        self._last = self._refilled = self._fed = time.monotonic()
        self.memories: dict[int, Tensor] = memories_of(reading.state)
        """The memories as of the latest update: values, safe to read from any thread."""
        self._publish()
        self._ranked = -math.inf  # the first ranks are found when something has been read

    def start(self) -> Session:
        """Begins to read; returns the session itself."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ssmn-session", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Stops for good and frees the source."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(COMMAND_SECONDS)
        self._reading.reader.close()
        self.parent = None
        with self._changed:
            self._changed.notify_all()
        self._tell()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    @property
    def latest(self) -> Update:
        """The newest update."""
        return self._updates[-1]

    @property
    def model(self) -> Any:
        """The model, which other sessions share."""
        return self._reading.model

    # commands

    def pause(self) -> None:
        """Stops reading until `resume`."""
        self._do(lambda: self._set_paused(True))

    def resume(self) -> None:
        """Goes on reading, also after a failure."""
        self._do(lambda: self._set_paused(False))

    def set_speed(self, speed: float | None) -> None:
        """Limits the steps a second; None = as fast as it goes.

        Raises:
            RangeError: speed is not above 0.
        """
        checked = _checked_speed(speed)

        def change() -> None:
            self._speed, self._allowance = checked, 0.0

        self._do(change)

    def set_plasticity(self, **values: Any) -> Plasticity:
        """Changes some settings of the memory (fields of `ssmn.Plasticity`), from the next piece on.

        Raises:
            RangeError: A name or a value is none that a live view has.
        """

        def change() -> Plasticity:
            self._reading.plasticity = with_settings(self._reading.plasticity, values)
            return self._reading.plasticity

        return self._do(change)

    def reset_plasticity(self) -> None:
        """All settings as trained."""

        def change() -> None:
            self._reading.plasticity = Plasticity()

        self._do(change)

    def checkpoint(self, name: str | None = None) -> str:
        """As `Reading.checkpoint`."""
        return self._do(lambda: self._reading.checkpoint(name))

    def rollback(self, name: str | None = None) -> str:
        """As `Reading.rollback`."""
        return self._do(lambda: self._reading.rollback(name))

    def push(self, what: str | Sequence[Sequence[float | None]]) -> int:
        """As `Reading.push`."""
        return self._do(lambda: self._reading.push(what))

    def fork(self) -> Session:
        """A second session that goes on from here by itself, not yet started."""

        def make() -> Session:
            return Session(
                self._reading.fork(),
                label=f"{self.label} · fork" if self.label else "fork",
                speed=self._speed,
                rate=self._rate,
                idle_seconds=self._idle_seconds,
                parent=self,
                paused=self._paused,
            )

        return self._do(make)

    def state_file(self) -> bytes:
        """The present state as the bytes of a state file."""
        return self._do(self._reading.state_file)

    # viewers

    def looking(self, more: int) -> int:
        """Counts viewers: +1 when one comes, −1 when one leaves. Returns how many there are."""
        with self._changed:
            self._viewers += more
            self._looked = time.monotonic()
            self._changed.notify_all()
            return self._viewers

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    @property
    def unseen_seconds(self) -> float:
        """For how long nobody has looked; 0 while somebody does."""
        return 0.0 if self._viewers else time.monotonic() - self._looked

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` after each update, from the session's thread. Returns what ends it."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def updates_after(self, number: int) -> list[Update] | None:
        """The updates after that number; None if some of them are no longer kept, or never were."""
        with self._changed:
            first, last = self._updates[0].number, self._updates[-1].number
            if not first - 1 <= number <= last:
                return None
            return [update for update in self._updates if update.number > number]

    def packed(self, update: Update) -> bytes:
        """An update as JSON, made once for all viewers."""
        found = self._packed.get(update.number)
        if found is None:
            found = json.dumps(described(update), allow_nan=False, separators=(",", ":")).encode()
            with self._changed:
                oldest = self._updates[0].number
                self._packed = {n: data for n, data in self._packed.items() if n >= oldest}
                self._packed[update.number] = found
        return found

    def greeting(self) -> dict[str, Any]:
        """What a new viewer is told first: what it looks at, the lines so far, and the latest update."""
        with self._changed:
            return finite(
                {
                    "id": self.id,
                    "label": self.label,
                    "parent": None if self.parent is None else self.parent.id,
                    "trail": [list(point) for point in self._trail],
                    "update": described(self._updates[-1]),
                }
            )

    def wait_for(self, wanted: Callable[[Update], bool], seconds: float) -> Update:
        """The latest update as soon as it is as wanted.

        Raises:
            StateError: It took too long.
        """
        with self._changed:
            if self._changed.wait_for(lambda: wanted(self.latest), seconds):
                return self.latest
        raise StateError(f"live: not as wanted after {seconds:g} s; the session is {self.latest.status}.")

    # the thread

    def _do(self, command: Callable[[], T]) -> T:
        """Runs a command between two pieces and waits for its result."""
        if self._closed:
            raise StateError("live: the session is closed; start another.")
        if self._thread is None:
            result = command()
            self._publish()
            return result
        answer: Future[T] = Future()
        self._commands.put((command, answer))
        with self._changed:
            self._changed.notify_all()
        try:
            return answer.result(COMMAND_SECONDS)
        except FutureTimeoutError:
            raise StateError(f"live: the session did not answer within {COMMAND_SECONDS:g} s; try again.") from None

    def _run(self) -> None:
        while not self._closed:
            self._obey()
            try:
                wait = self._advance()
            except Exception as error:
                self._failed = True
                known = isinstance(error, SSMNError)
                self._message = str(error) if known else f"stopped by an internal error ({type(error).__name__})"
                if not known:
                    _log.exception("a session stopped")
                self._publish()
                continue
            if wait > 0:
                self._sleep(wait)
        self._obey()

    def _advance(self) -> float:
        """Reads one piece, and publishes if it is time; seconds to wait before the next."""
        self._dozing = self._idle_seconds is not None and self.unseen_seconds > self._idle_seconds
        if self._paused or self._failed or self._dozing:
            return math.inf
        start, spent = time.perf_counter(), time.thread_time()
        most = self._permitted()
        if most < 1:
            return 0.5 / self._rate
        read = self._reading.read(most)
        took = max(1e-4, time.thread_time() - spent)
        if not read:
            if self.latest.report.position != self._reading.position or self.latest.status != self._status():
                self._publish()
            if self._reading.reader.ended:
                return math.inf
            self._reading.reader.wait(1 / self._rate)
            return 0.0
        self._fed = time.monotonic()
        if self._speed is None:
            # So many steps that a piece fills the time between two updates, of this thread's own time: where others
            # take the processor, updates come less often, but no more of the time goes into what a piece costs.
            fit = read / took * max(0.5 / self._rate, 1 / self._rate - self._report_seconds)
            self._size = int(min(max(LEAST, fit, self._size / 2), MOST, self._size * 2))
        if time.monotonic() - self._last >= 0.5 / self._rate:
            self._publish()
        return 0.0 if self._speed is None else max(0.0, 1 / self._rate - (time.perf_counter() - start))

    def _permitted(self) -> int:
        """Steps that may be read now: of a limited session, those that the time since has earned."""
        if self._speed is None:
            return self._size
        now = time.monotonic()
        self._allowance = min(self._allowance + (now - self._refilled) * self._speed, max(1.0, self._speed / 4), MOST)
        self._refilled = now
        whole = int(self._allowance)
        self._allowance -= whole
        return whole

    def _obey(self) -> None:
        """Runs the commands that have come; who gave them hears of it when what they did has been published."""
        done: list[Callable[[], None]] = []
        while not self._commands.empty():
            command, answer = self._commands.get()
            try:
                if self._closed:
                    raise StateError("live: the session is closed; start another.")
                done.append(partial(answer.set_result, command()))
            except Exception as error:
                done.append(partial(answer.set_exception, error))
        if done and not self._closed:
            self._publish()
        for tell in done:
            tell()

    def _sleep(self, seconds: float) -> None:
        def is_wanted() -> bool:
            return not self._commands.empty() or self._closed or (self._dozing and self._viewers > 0)

        with self._changed:
            # An endless wait looks around now and then, for what is not announced.
            self._changed.wait_for(is_wanted, min(seconds, 1.0))

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        if not paused:
            self._failed, self._message, self._allowance = False, "", 0.0
            self._refilled = time.monotonic()

    def _status(self) -> str:
        if self._failed:
            return "failed"
        if self._paused:
            return "paused"
        if not self._reading.waiting:
            if self._reading.reader.ended:
                return "ended"
            if time.monotonic() - self._fed > PATIENCE:
                return "waiting"
        return "running"

    def _publish(self) -> None:
        start, now = time.thread_time(), time.monotonic()
        # Of the thread's own time, as pieces are: where others take the processor, ranks must not take more of it.
        due = start - self._ranked_spent >= self._rank_seconds / RANK_SHARE
        ranks = due or now - self._ranked >= MOST_RANK_SECONDS
        report = self._reading.report(ranks=ranks)
        took = time.thread_time() - start
        if ranks:
            self._rank_seconds, self._ranked, self._ranked_spent = took, now, start
        else:
            self._report_seconds = took
        passed = max(now - self._last, 1e-6)
        share = min(1.0, passed)  # the pace is an average over about a second
        self._pace += share * (report.steps / passed - self._pace)
        self._last = now
        self.memories = memories_of(self._reading.state)
        parent = self.parent
        apart = None if parent is None else distance(self.memories, parent.memories)
        update = Update(
            number=self._updates[-1].number + 1 if self._updates else 1,
            status=self._status(),
            message=self._message or self._reading.reader.trouble or "",
            report=report,
            plasticity=self._reading.plasticity,
            speed=self._speed,
            pace=self._pace,
            checkpoints=self._reading.checkpoints,
            missed=self._reading.reader.missed,
            columns=self._reading.reader.columns,
            distance=apart,
        )
        with self._changed:
            self._updates.append(update)
            self._remember(update)
            self._changed.notify_all()
        self._tell()

    def _remember(self, update: Update) -> None:
        self._since += 1
        if self._since < self._stride or not update.report.steps:
            return
        self._since = 0
        self._trail.append(trail_point(update))
        if len(self._trail) > TRAIL:
            self._trail, self._stride = self._trail[::2], 2 * self._stride

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _checked_speed(speed: Any) -> float | None:
    if speed is None:
        return None
    good = isinstance(speed, (int, float)) and not isinstance(speed, bool) and 0 < speed <= FASTEST
    if not good:
        raise RangeError(f"live: speed={str(speed)[:40]!r}; wanted steps a second above 0, at most {FASTEST:,.0f}.")
    return float(speed)
