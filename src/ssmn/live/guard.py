"""What every request has to pass before the dashboard looks at it: host, key, origin, content type, size."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from ssmn.errors import RangeError

Scope = dict[str, Any]

KEY_HEADER = "x-ssmn-key"
LEAST_KEY = 12
"""Characters of a key at least."""
ENTRY = "/enter/"

HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
            "style-src-attr 'unsafe-inline'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Sent with every answer. For plotly.js styles of single elements may be inline, and so may an empty style sheet."""

_log = logging.getLogger("ssmn.live")


class Door:
    """Who may come in: everybody on a machine's own loopback, with a key whoever has it.

    The key comes in a header (`X-SSMN-Key`), or once in exchange for a cookie: `ticket()` is an address that works one
    time. Neither is ever logged, and both are compared in constant time.

    Args:
        host: The address that the server is bound to.
        key: The key, at least `LEAST_KEY` characters; required unless `host` is loopback.
        names: Further host names under which the server may be asked.
        port: The server's. It is part of the cookies' names, since browsers send a host's cookies to all its ports.

    Raises:
        RangeError: A public address without a key, or a key that is too short.

    Example:
        >>> from ssmn.live.guard import Door
        >>> Door("::", None)
        Traceback (most recent call last):
            ...
        ssmn.errors.RangeError: dashboard: host :: can be reached from other machines; wanted a key (--key), or
        127.0.0.1.
        >>> Door("127.0.0.1", None).allows_host("evil.example")
        False
    """

    def __init__(self, host: str, key: str | None, names: Iterable[str] = (), port: int = 0) -> None:
        if key is None and not is_loopback(host):
            raise RangeError(
                f"dashboard: host {host} can be reached from other machines; wanted a key (--key), or 127.0.0.1."
            )
        if key is not None and (len(key) < LEAST_KEY or not key.isascii() or not key.isprintable()):
            raise RangeError(
                f"dashboard: a key of {len(key)} characters; wanted {LEAST_KEY} or more, printable ASCII, such as "
                f"{secrets.token_urlsafe(12)}."
            )
        self.pass_cookie, self.owner_cookie = f"ssmn_pass_{port}", f"ssmn_owner_{port}"
        self._key = key
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        self._passes: set[str] = set()
        self._ticket: str | None = None

    @property
    def has_key(self) -> bool:
        """Whether a key is asked for."""
        return self._key is not None

    def ticket(self) -> str:
        """The path of the address that lets one browser in; an earlier one no longer works."""
        self._ticket = secrets.token_urlsafe(24)
        return ENTRY + self._ticket

    def enter(self, ticket: str) -> str | None:
        """The pass for a ticket, which is used up; None if it is not the present one."""
        if self._ticket is None or not _same(ticket, self._ticket):
            return None
        self._ticket = None
        made = secrets.token_urlsafe(24)
        self._passes.add(made)
        return made

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether a request may come in."""
        if self._key is None:
            return True
        if _same(headers.get(KEY_HEADER, ""), self._key):
            return True
        given = cookie(headers, self.pass_cookie)
        return any(_same(given, valid) for valid in self._passes)

    def allows_host(self, value: str) -> bool:
        """Whether a Host header names this server: a number address, or one of its names.

        A name of somebody else's that is made to lead here (DNS rebinding) is none of them.
        """
        name = _host_name(value)
        if name is None:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.has_key or address.is_loopback


class Guard:
    """ASGI middleware: lets through what may come in, and answers the rest; bodies are whole and of bounded size.

    Args:
        app: The application.
        door: Who may come in.
        body_bytes: Largest body.
    """

    def __init__(self, app: Callable[..., Any], door: Door, body_bytes: int) -> None:
        self._app, self._door, self._body_bytes = app, door, body_bytes

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answers one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def sending(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        headers = _headers(scope)
        refused = self._refusal(scope, headers)
        if refused is None and scope["method"] not in ("GET", "HEAD"):
            body = await self._body(receive, headers)
            if body is None:
                refused = 413, f"the body is too large; wanted at most {self._body_bytes:,} bytes."
            else:
                receive = _given(body, receive)
        if refused is not None:
            await answer(sending, *refused)
            return
        try:
            await self._app(scope, receive, sending)
        except Exception:
            _log.exception("a request failed")
            if not started:
                await answer(sending, 500, "internal error; the dashboard's terminal has more.")

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """(status, why) of what may not come in."""
        host = headers.get("host", "")
        if not self._door.allows_host(host):
            return 421, f"Host is {host[:60]!r}; wanted the address that the dashboard printed (or --allow-host)."
        if scope["path"].startswith(ENTRY):
            return None  # the ticket is the key
        if not self._door.knows(headers):
            return 401, f"no key; open the address that the dashboard printed, or send the header {KEY_HEADER}."
        if scope["method"] in ("GET", "HEAD"):
            return None
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if site not in ("same-origin", "none") or (origin is not None and not _is_same_origin(origin, host)):
            return 403, "the request comes from another site's page; wanted one from the dashboard's own."
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return 415, f"Content-Type is {kind[:60]!r}; wanted application/json."
        return None

    async def _body(self, receive: Callable[..., Any], headers: dict[str, str]) -> bytes | None:
        """The whole body; None if it is too large."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._body_bytes:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._body_bytes:
                return None
            if not message.get("more_body", False):
                break
        return b"".join(parts)


async def answer(send: Callable[..., Any], status: int, error: str) -> None:
    """Sends `{"error": ...}`."""
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from its own machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def cookie(headers: dict[str, str], name: str) -> str:
    """A cookie of a request, or nothing."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _given(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    """A `receive` that hands over a body that has been read, and then what else comes."""
    handed = False

    async def again() -> dict[str, Any]:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _host_name(value: str) -> str | None:
    try:
        parts = urlsplit(f"//{value}")
        parts.port  # noqa: B018 - raises for what is no port
        plain = value and not parts.path and not parts.query and not parts.fragment and parts.username is None
        return parts.hostname if plain else None
    except ValueError:
        return None


def _is_same_origin(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.lower() == host.lower()
