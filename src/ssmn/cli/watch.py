"""`ssmn watch`: the live view in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ssmn.cli import options
from ssmn.cli.dashboard import MODEL, SPEED, STATE, TEXT, load_setup
from ssmn.errors import FileError


def command(
    model: MODEL = None,
    text: TEXT = None,
    speed: SPEED = None,
    state: STATE = None,
    threads: options.Threads = None,
) -> None:
    """Watch a memory at work in the terminal.

    Shows the memory's map, its energy, change, rank and surprise along the stream, and the text by
    importance. Up and down choose η, λ, the write threshold or the speed, left and right change it;
    p pauses, c makes a checkpoint, r rolls back, f forks (and closes the fork), q ends it.

    \b
    Example:
        ssmn watch
        ssmn watch runs/book --text notes.txt --speed 100
        tail -f app.log | ssmn watch --text -
    """
    from ssmn.live.terminal import WatchApp

    setup = load_setup(model, text, speed, state, threads)
    with _keyboard(text == "-"):
        app = WatchApp(setup)
        try:
            app.run()
        finally:
            app.close()
    if app.failure:
        raise FileError(app.failure)


@contextmanager
def _keyboard(is_piped: bool) -> Iterator[None]:
    """Keys come from the terminal, also when standard input brings the text: it moves to a descriptor of its own."""
    if not is_piped:
        yield
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        raise FileError(f"watch: there is no terminal for the keys ({error.strerror}); use `ssmn stream`.") from error
    piped = sys.stdin
    kept = os.dup(0)
    os.dup2(terminal, 0)
    os.close(terminal)
    sys.stdin = os.fdopen(kept, "r", encoding="utf-8")
    try:
        yield
    finally:
        # The text's descriptor stays open: the thread that reads it may still wait there.
        sys.stdin = piped
