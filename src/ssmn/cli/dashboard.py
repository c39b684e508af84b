"""`ssmn dashboard`: the live view in a browser."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ssmn.cli import options
from ssmn.errors import MissingExtraError, RangeError

if TYPE_CHECKING:
    from ssmn.live.command import Setup
    from ssmn.live.guard import Door
    from ssmn.models import TextSSMN

MODEL = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="Folder of a trained model; the shipped text model if absent.")
]
TEXT = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="FILE|-|tcp://HOST:PORT",
        help="What it reads: a file, standard input, or what a server sends; text, or rows of numbers for a Standard "
        "model. A built-in text (or series) if absent.",
    ),
]
SPEED = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Tokens or rows a second at most, 0 = as fast as it goes. If absent 400, and without limit for what "
        "arrives by itself.",
    ),
]
STATE = Annotated[Path | None, typer.Option("--state", "-s", metavar="FILE", help="Start from this state.")]


def command(
    model: MODEL = None,
    text: TEXT = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="SSMN_DASHBOARD_KEY",
            help="What a visitor must know; required for an address that other machines can reach.",
            show_envvar=True,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further host name that the dashboard is reached by; may be repeated.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions at most.")] = 8,
    speed: SPEED = None,
    state: STATE = None,
    threads: options.Threads = None,
) -> None:
    """Watch a memory at work in the browser.

    Prints the address to open. Each visitor has sessions of his own; a session that nobody looks at stops
    reading. Ctrl-C ends it.

    \b
    Example:
        ssmn dashboard
        ssmn dashboard runs/book --text notes.txt --speed 100
        tail -f app.log | ssmn dashboard --text -
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            "ssmn dashboard: uvicorn is not installed; type: pip install 'sparse-stream[dashboard]'"
        ) from error
    from ssmn.live import Hub, Limits
    from ssmn.live.guard import Door
    from ssmn.live.server import make_app

    Door(host, key)  # refuses before anything is loaded
    setup = load_setup(model, text, speed, state, threads)
    listening = _bound(host, port)
    number = listening.getsockname()[1]
    door = Door(host, key, allow_host or (), number)
    limits = Limits(sessions=sessions)
    hub = Hub(lambda: setup.session(limits.idle_seconds), limits)

    def tell() -> None:
        print(_address(host, number, door), flush=True)

    app = make_app(hub, door, setup.about, on_entry=tell)
    # No access log: a ticket is part of an address.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2, server_header=False
    )
    server = uvicorn.Server(config)
    print(f"{setup.about['model']}; reading {setup.source.name}. Ctrl-C ends it.", flush=True)
    tell()
    try:
        asyncio.run(server.serve(sockets=[listening]))
    except KeyboardInterrupt:
        pass
    finally:
        hub.close()
        listening.close()


def load_setup(
    model: Path | None, text: str | None, speed: float | None, state: Path | None, threads: int | None
) -> Setup:
    """Model, tokenizer, source and state, as the options of both live verbs name them."""
    from ssmn.live.command import Setup
    from ssmn.state import StreamState

    options.use_threads(threads)
    loaded = options.load(model)
    tokenizer = None
    if loaded.config.kind == "text":
        tokenizer = options.load_tokenizer(model, cast("TextSSMN", loaded))
    start = None if state is None else StreamState.load(state, loaded)
    return Setup.of(loaded, tokenizer, text, speed=speed, state=start)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket."""
    try:
        family, kind, number, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except OSError as error:
        raise RangeError(
            f"dashboard: cannot listen at {host} port {port} ({error.strerror or error}); choose another --port or "
            f"--host."
        ) from error
    made.listen(64)
    return made


def _address(host: str, port: int, door: Door) -> str:
    """What to open; with a key, an address that works once."""
    name = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
    return f"http://{name}:{port}{door.ticket() if door.has_key else '/'}"
