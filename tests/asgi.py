"""Requests straight into an ASGI application, well-formed or not, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


class Client:
    """Keeps cookies as a browser would, and sends what it is told to."""

    def __init__(self, app: Any, host: str = "127.0.0.1:7007") -> None:
        self.app, self.host = app, host
        self.cookies: dict[str, str] = {}

    def __call__(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; a body is sent as JSON unless it is bytes."""
        given = {"host": self.host, **(headers or {})}
        data = b""
        if method == "POST":
            given = {"content-type": "application/json", **given}
            data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        if self.cookies and "cookie" not in given:
            given["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items() if value is not None]
        answer = asyncio.run(request(self.app, method, path, raw, data))
        for name, value in answer.headers:
            if name == "set-cookie":
                cookie, _, content = value.split(";")[0].partition("=")
                self.cookies[cookie] = content
        return answer


async def request(
    app: Any, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes, *, events: int = 0
) -> Answer:
    """One request; the client leaves after `events` server-sent events, or at the end."""
    target, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": target, "raw_path": target.encode("utf-8", "replace"), "query_string": query.encode("utf-8", "replace"),
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 7007),
    }  # fmt: skip
    answer, asked = Answer(), False
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in message["headers"]]
        else:
            answer.body += message.get("body", b"")
        streams = (answer.header("content-type") or "").startswith("text/event-stream")
        if streams and answer.body.count(b"\nevent: ") + answer.body.startswith(b"event: ") >= events:
            left.set()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            left.set()

    await asyncio.wait_for(app(scope, receive, send), 30)
    return answer


def events_of(body: bytes) -> list[tuple[int, str, Any]]:
    """Number, kind and data of the server-sent events in a body that are whole."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((int(fields.get("id", 0)), fields["event"], json.loads(fields["data"])))
    return found
