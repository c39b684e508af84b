"""The dashboard's HTTP side: pages, sessions as JSON, updates as server-sent events.

    GET    /                                the page
    GET    /enter/TICKET                    lets one browser in (with a key only), and leads to the page
    GET    /api/about                       the model, the source, the limits
    GET    /api/sessions                    the visitor's own sessions
    POST   /api/sessions                    {}: starts one
    GET    /api/sessions/ID                 its latest update
    GET    /api/sessions/ID/events          server-sent events: `hello`, then `update`s; `Last-Event-ID` resumes
    POST   /api/sessions/ID/control         any of {"pause": bool, "speed": n or null, "plasticity": {...} or null}
    POST   /api/sessions/ID/checkpoint      {"name": "..."}, or {}
    POST   /api/sessions/ID/rollback        {"name": "..."}, or {} for the latest
    POST   /api/sessions/ID/fork            {}: a second session from the same state
    POST   /api/sessions/ID/push            {"text": "..."} or {"rows": [[...]]}: read before the source goes on
    GET    /api/sessions/ID/state           the state as a file (safetensors)
    DELETE /api/sessions/ID                 ends it

Errors are `{"error": "..."}` and say what came and what was wanted. No path in a request is ever opened.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

from ssmn import __version__
from ssmn.errors import MissingExtraError, RangeError, SSMNError, StateError
from ssmn.live.guard import ENTRY, Door, Guard, cookie
from ssmn.live.hub import FullError, Hub
from ssmn.live.session import Session
from ssmn.live.updates import Update
from ssmn.plots.interactive import plotly_js

try:
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
except ImportError as error:
    raise MissingExtraError(
        "ssmn dashboard: fastapi is not installed; type: pip install 'sparse-stream[dashboard,viz]'"
    ) from error

HEARTBEAT_SECONDS = 10.0
"""After so long without an update a viewer gets an empty line, so that a dead connection is noticed."""
RETRY_MILLISECONDS = 500
"""When a browser that lost the connection tries again."""
MOST_NAME = 40
_STATUS = ((FullError, 429), (StateError, 409), (SSMNError, 422))
_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}


def make_app(hub: Hub, door: Door, about: dict[str, Any], on_entry: Callable[[], None] | None = None) -> Guard:
    """The dashboard as an ASGI application.

    Args:
        hub: Its sessions.
        door: Who may come in.
        about: What `GET /api/about` says of the model and the source.
        on_entry: Called when a ticket was used up, so that the next one can be shown.

    Example:
        >>> from ssmn.live import Hub
        >>> from ssmn.live.guard import Door
        >>> from ssmn.live.server import make_app
        >>> def make(): ...
        >>> app = make_app(Hub(make), Door("127.0.0.1", None), {})
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {name: _page(name) for name in ("index.html", "app.js", "draw.js", "style.css")}
    files["plotly.js"] = plotly_js().encode()

    def owner_of(request: Request) -> str:
        return cookie(_headers(request), door.owner_cookie)[:64]

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        # Without the address, which may hold somebody's session.
        return JSONResponse({"error": f"{request.method[:10]}: {error.detail}."}, error.status_code)

    @app.exception_handler(SSMNError)
    async def wrong(request: Request, error: SSMNError) -> Response:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        if status == 409 and str(error).startswith("session: there is none"):
            status = 404
        return JSONResponse({"error": str(error)}, status)

    @app.get("/")
    async def page(request: Request) -> Response:
        response = Response(files["index.html"], media_type=_TYPES["html"])
        if not owner_of(request):
            _set_cookie(response, door.owner_cookie, secrets.token_urlsafe(24))
        return response

    @app.get("/{name}.{ending}")
    async def file(name: str, ending: str) -> Response:
        found = files.get(f"{name}.{ending}")
        if found is None or ending == "html":
            raise HTTPException(404, "there is no such file")
        return Response(found, media_type=_TYPES[ending])

    @app.get(ENTRY + "{ticket}")
    async def enter(ticket: str) -> Response:
        given = door.enter(ticket)
        if given is None:
            raise HTTPException(401, "this address has been used, or never worked; the terminal shows the present one")
        if on_entry is not None:
            on_entry()
        response = RedirectResponse("/", 303)
        _set_cookie(response, door.pass_cookie, given)
        return response

    @app.get("/api/about")
    async def told() -> Response:
        limits = hub.limits
        return JSONResponse({**about, "version": __version__, "sessions": limits.sessions, "viewers": limits.viewers})

    @app.get("/api/sessions")
    async def sessions(request: Request) -> Response:
        owner = owner_of(request)
        return JSONResponse({"sessions": [_summary(session) for session in hub.list(owner)] if owner else []})

    @app.post("/api/sessions")
    async def create(request: Request) -> Response:
        await _fields(request)
        owner = owner_of(request) or secrets.token_urlsafe(24)
        session = await run_in_threadpool(hub.create, owner)
        response = JSONResponse(_summary(session), 201)
        if owner != owner_of(request):
            _set_cookie(response, door.owner_cookie, owner)
        return response

    @app.get("/api/sessions/{session_id}")
    async def latest(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        return Response(session.packed(session.latest), media_type="application/json")

    @app.delete("/api/sessions/{session_id}")
    async def remove(request: Request, session_id: str) -> Response:
        await run_in_threadpool(hub.remove, owner_of(request), session_id)
        return JSONResponse({"closed": session_id})

    @app.get("/api/sessions/{session_id}/events")
    async def events(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        if session.viewers >= hub.limits.viewers:
            raise FullError(f"events: {hub.limits.viewers} viewers follow this session already; close one.")
        seen = _headers(request).get("last-event-id", "")
        number = int(seen) if seen.isdecimal() and len(seen) < 16 else None
        return _Following(session, number)

    @app.get("/api/sessions/{session_id}/state")
    async def state(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        data = await run_in_threadpool(session.state_file)
        name = f"state-{session.latest.report.position}.safetensors"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.post("/api/sessions/{session_id}/control")
    async def control(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        fields = await _fields(request, "pause", "speed", "plasticity")
        if not isinstance(fields.get("pause", False), bool):
            raise RangeError(f"pause: {_quoted(fields['pause'])}; wanted true or false.")
        settings = fields.get("plasticity")
        if settings is not None and not isinstance(settings, dict):
            raise RangeError(f"plasticity: {_quoted(settings)}; wanted an object, or null for all as trained.")

        def change() -> None:
            if settings is not None:
                session.set_plasticity(**settings)
            elif "plasticity" in fields:
                session.reset_plasticity()
            if "speed" in fields:
                session.set_speed(fields["speed"])
            if "pause" in fields:
                (session.pause if fields["pause"] else session.resume)()

        await run_in_threadpool(change)
        return JSONResponse(_summary(session))

    @app.post("/api/sessions/{session_id}/checkpoint")
    async def checkpoint(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        name = _name(await _fields(request, "name"))
        return JSONResponse({"name": await run_in_threadpool(session.checkpoint, name)})

    @app.post("/api/sessions/{session_id}/rollback")
    async def rollback(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        name = _name(await _fields(request, "name"))
        return JSONResponse({"name": await run_in_threadpool(session.rollback, name)})

    @app.post("/api/sessions/{session_id}/fork")
    async def fork(request: Request, session_id: str) -> Response:
        owner = owner_of(request)
        await _fields(request)
        return JSONResponse(_summary(await run_in_threadpool(hub.fork, owner, session_id)), 201)

    @app.post("/api/sessions/{session_id}/push")
    async def push(request: Request, session_id: str) -> Response:
        session = hub.get(owner_of(request), session_id)
        fields = await _fields(request, "text", "rows")
        if len(fields) != 1:
            raise RangeError(f"push: {len(fields)} fields; wanted either text or rows.")
        (what,) = fields.values()
        if not isinstance(what, (str, list)):
            raise RangeError(f"push: {_quoted(what)}; wanted a text, or a list of rows.")
        return JSONResponse({"steps": await run_in_threadpool(session.push, what)})

    return Guard(app, door, hub.limits.body_bytes)


class _Following(StreamingResponse):
    """One viewer's stream of server-sent events; it counts as a viewer for as long as it is being sent."""

    def __init__(self, session: Session, seen: int | None) -> None:
        self._session, self._seen = session, seen
        self._news = asyncio.Event()
        super().__init__(self._run(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._news.set)

        stop = self._session.listen(tell)
        self._session.looking(+1)
        try:
            await super().__call__(scope, receive, send)
        finally:
            stop()
            self._session.looking(-1)

    async def _run(self) -> AsyncIterator[bytes]:
        session = self._session
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        if self._seen is None:
            yield self._hello()
        while not session.closed:
            self._news.clear()
            missed = session.updates_after(self._seen or 0)
            if missed is None:  # too long away, or too slow, for what is kept
                yield self._hello()
                continue
            for update in missed:
                yield self._event(update)
            try:
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"
        yield b"event: closed\ndata: {}\n\n"

    def _hello(self) -> bytes:
        greeting = self._session.greeting()
        self._seen = greeting["update"]["number"]
        return f"id: {self._seen}\nevent: hello\ndata: {json.dumps(greeting, allow_nan=False)}\n\n".encode()

    def _event(self, update: Update) -> bytes:
        self._seen = update.number
        return b"id: %d\nevent: update\ndata: %b\n\n" % (update.number, self._session.packed(update))


async def _fields(request: Request, *known: str) -> dict[str, Any]:
    """The JSON object of a request's body, with none but the known fields."""
    body = await request.body()
    try:
        fields = json.loads(body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RangeError(f"body: no JSON ({str(error)[:80]}); wanted an object.") from None
    if not isinstance(fields, dict):
        raise RangeError(f"body: {_quoted(fields)}; wanted an object.")
    for name in fields:
        if name not in known:
            wanted = f"some of {', '.join(known)}" if known else "an empty object"
            raise RangeError(f"body: field {_quoted(name)}; wanted {wanted}.")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _name(fields: dict[str, Any]) -> str | None:
    name = fields.get("name")
    if name is None:
        return None
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME or not name.isprintable():
        raise RangeError(f"name: {_quoted(name)}; wanted 1 to {MOST_NAME} printable characters.")
    return name


def _quoted(value: Any) -> str:
    """The beginning of a value, safe to send back."""
    return ascii(value)[:60]


def _summary(session: Session) -> dict[str, Any]:
    update = session.latest
    parent = session.parent
    return {
        "id": session.id,
        "label": session.label,
        "parent": None if parent is None else parent.id,
        "status": update.status,
        "position": update.report.position,
    }


def _headers(request: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def _set_cookie(response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, httponly=True, samesite="strict", path="/")


def _page(name: str) -> bytes:
    return (resources.files("ssmn.live") / "page" / name).read_bytes()
