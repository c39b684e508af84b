"""The dashboard's HTTP side: sessions, events, who may come in, and ten thousand malformed requests."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the extra "dashboard" is not installed')

from asgi import Answer, Client, events_of, request
from ssmn.cli import main
from ssmn.errors import RangeError
from ssmn.live import Feed, Hub, Limits, Reading, Session
from ssmn.live.guard import HEADERS, Door, Guard, is_loopback
from ssmn.live.server import make_app
from ssmn.state import StreamState
from ssmn.training import Tokenizer
from tiny import save_text_model, text_model

TOKENIZER = Tokenizer.for_bytes()
MODEL = text_model().eval()
STORY = "what was read here stays here.\n" * 6
KEY = "a-key-of-twenty-two-ch"


def a_session() -> Session:
    feed = Feed(lambda: iter([TOKENIZER.encode(STORY)]))
    return Session(Reading(MODEL, feed.reader(), TOKENIZER), label="a story")


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(a_session, Limits(sessions=3, viewers=2, body_bytes=3_000))
    yield made
    made.close()


@pytest.fixture
def client(hub: Hub) -> Client:
    return Client(make_app(hub, Door("127.0.0.1", None, port=7007), {"model": "a model", "source": "a story"}))


def started(client: Client) -> str:
    answer = client("POST", "/api/sessions")
    assert answer.status == 201, answer.body
    return answer.json["id"]


def read_up(hub: Hub, client: Client, name: str) -> Session:
    """The session, when it has read all."""
    session = hub.get(client.cookies["ssmn_owner_7007"], name)
    session.wait_for(lambda update: update.status == "ended", 60)
    return session


def test_the_page_and_its_files(client: Client) -> None:
    page = client("GET", "/")
    assert page.status == 200 and page.header("content-type") == "text/html; charset=utf-8"
    assert b"app.js" in page.body and b"http://" not in page.body and b"https://" not in page.body
    cookie = page.header("set-cookie") or ""
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    for name in HEADERS:
        assert page.header(name) == HEADERS[name]
    assert "unsafe-eval" not in HEADERS["content-security-policy"]
    assert "script-src 'self';" in HEADERS["content-security-policy"]
    for name, kind in (("app.js", "text/javascript"), ("draw.js", "text/javascript"), ("style.css", "text/css")):
        answer = client("GET", f"/{name}")
        assert answer.status == 200 and (answer.header("content-type") or "").startswith(kind)
    assert client("GET", "/plotly.js").status == 200
    for path in ("/../pyproject.toml", "/index.html", "/app.py", "/%2e%2e/x.js", "/docs", "/openapi.json"):
        answer = client("GET", path)
        assert answer.status == 404 and answer.json["error"]


def test_a_session_from_start_to_end(hub: Hub, client: Client, tmp_path: Path) -> None:
    about = client("GET", "/api/about").json
    assert about["model"] == "a model" and about["sessions"] == 3
    assert client("GET", "/api/sessions").json == {"sessions": []}
    name = started(client)
    session, path = read_up(hub, client, name), f"/api/sessions/{name}"
    assert [entry["id"] for entry in client("GET", "/api/sessions").json["sessions"]] == [name]
    assert client("GET", path).json["position"] == len(STORY)
    assert client("POST", f"{path}/checkpoint", {"name": "here"}).json == {"name": "here"}
    assert client("POST", f"{path}/push", {"text": "more"}).json == {"steps": 4}
    session.wait_for(lambda update: update.report.position == len(STORY) + 4, 60)
    assert client("POST", f"{path}/rollback").json == {"name": "here"}
    assert client("GET", path).json["position"] == len(STORY)
    changed = {"pause": True, "speed": 50, "plasticity": {"eta_scale": 0.5, "decay_lambda": 0.01}}
    assert client("POST", f"{path}/control", changed).json["status"] == "paused"
    latest = client("GET", path).json
    assert latest["speed"] == 50.0 and latest["plasticity"]["eta_scale"] == 0.5
    assert latest["plasticity"]["decay_lambda"] == 0.01
    client("POST", f"{path}/control", {"pause": False, "speed": None, "plasticity": None})
    latest = client("GET", path).json
    assert (latest["status"], latest["speed"], latest["plasticity"]["eta_scale"]) == ("ended", None, 1.0)
    file = client("GET", f"{path}/state")
    assert f"state-{len(STORY)}.safetensors" in (file.header("content-disposition") or "")
    (tmp_path / "s.safetensors").write_bytes(file.body)
    assert StreamState.load(tmp_path / "s.safetensors", MODEL).position.tolist() == [len(STORY)]
    fork = client("POST", f"{path}/fork").json
    assert fork["parent"] == name and fork["position"] == len(STORY)
    client("POST", f"/api/sessions/{fork['id']}/push", {"text": "a way of its own"})
    ours = hub.get(client.cookies["ssmn_owner_7007"], fork["id"])
    ours.wait_for(lambda update: update.report.position == len(STORY) + 16, 60)
    assert client("GET", f"/api/sessions/{fork['id']}").json["distance"] > 0
    assert client("GET", path).json["position"] == len(STORY)
    assert client("DELETE", path).json == {"closed": name}
    assert client("GET", path).status == 404 and session.closed


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("control", {"pause": 1}, 422, "pause: 1; wanted true or false"),
        ("control", {"speed": -3}, 422, "speed='-3'; wanted steps a second above 0"),
        ("control", {"speed": 10**400}, 422, "body: no JSON|wanted steps a second"),
        ("control", {"plasticity": {"eta": 1}}, 422, "settings: 'eta'; wanted some of"),
        ("control", {"plasticity": [1]}, 422, r"plasticity: \[1\]; wanted an object, or null"),
        ("control", {"chat": 1}, 422, "field 'chat'; wanted some of pause, speed, plasticity"),
        ("checkpoint", {"name": "\n"}, 422, "name: .*wanted 1 to 40 printable"),
        ("checkpoint", {"name": "x" * 41}, 422, "wanted 1 to 40 printable"),
        ("rollback", {}, 409, "there is no checkpoint"),
        ("rollback", {"name": "no"}, 409, "there is no checkpoint"),
        ("fork", {"n": 2}, 422, "field 'n'; wanted an empty object"),
        ("push", {}, 422, "push: 0 fields; wanted either text or rows"),
        ("push", {"text": 3}, 422, "push: 3; wanted a text, or a list of rows"),
        ("push", {"rows": [[1]]}, 422, "the model reads text"),
        ("push", b'{"text": "\\ud800"}', 422, "half of a surrogate pair"),
        ("push", b"[" * 2_900, 422, "body: no JSON"),
        ("push", b"\xff", 422, "body: no JSON"),
        ("push", b"NaN", 422, "NaN is no number of JSON"),
        ("push", b"3", 422, "body: 3; wanted an object"),
        ("push", {"text": "x" * 3_100}, 413, "wanted at most 3,000 bytes"),
        ("nothing", {}, 404, "POST: Not Found"),
    ],
)
def test_wrong_bodies_are_named(client: Client, path: str, body: Any, status: int, message: str) -> None:
    import re

    answer = client("POST", f"/api/sessions/{started(client)}/{path}", body)
    assert answer.status == status, answer.body
    assert re.search(message, answer.json["error"]), answer.json


def test_owners_see_their_own_sessions_alone(hub: Hub, client: Client) -> None:
    name, other = started(client), Client(client.app)
    assert other("GET", "/").status == 200
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/state"), ("POST", "/fork"), ("POST", "/control"),
                         ("POST", "/push"), ("POST", "/checkpoint"), ("POST", "/rollback"),
                         ("DELETE", "")):  # fmt: skip
        answer = other(method, f"/api/sessions/{name}{path}")
        assert answer.status == 404 and name not in answer.json["error"]
        assert "there is none of that name" in answer.json["error"]
    assert other("GET", "/api/sessions").json == {"sessions": []}
    assert client("GET", f"/api/sessions/{name}").status == 200


def test_sessions_and_viewers_are_limited(hub: Hub, client: Client) -> None:
    names = [started(client) for _ in range(3)]
    full = client("POST", "/api/sessions")
    assert full.status == 429 and "there are 3 already" in full.json["error"]
    session = hub.get(client.cookies["ssmn_owner_7007"], names[0])
    for _ in range(2):
        session.looking(+1)
    many = client("GET", f"/api/sessions/{names[0]}/events")
    assert many.status == 429 and "2 viewers follow this session already" in many.json["error"]


def follow(client: Client, name: str, events: int, last: str | None = None) -> Answer:
    headers = [(b"host", client.host.encode()),
               (b"cookie", "; ".join(f"{k}={v}" for k, v in client.cookies.items()).encode())]  # fmt: skip
    if last is not None:
        headers.append((b"last-event-id", last.encode()))
    return asyncio.run(request(client.app, "GET", f"/api/sessions/{name}/events", headers, b"", events=events))


def test_events_resume_where_a_viewer_left(hub: Hub, client: Client) -> None:
    name = started(client)
    session = read_up(hub, client, name)
    first = follow(client, name, 1)
    assert first.header("content-type") == "text/event-stream; charset=utf-8"
    assert first.body.startswith(b"retry: 500\n\n")
    ((number, kind, hello),) = events_of(first.body)
    assert kind == "hello" and hello["id"] == name and hello["update"]["position"] == len(STORY)
    assert number == hello["update"]["number"] == session.latest.number and hello["trail"]
    assert session.viewers == 0
    for count, letter in enumerate("abc", start=len(STORY) + 1):
        client("POST", f"/api/sessions/{name}/push", {"text": letter})
        session.wait_for(lambda update, count=count: update.report.position == count, 60)
    newest = session.latest.number
    missed = events_of(follow(client, name, newest - number, str(number)).body)
    assert [entry[:2] for entry in missed] == [(n, "update") for n in range(number + 1, newest + 1)]
    assert sum(update["steps"] for _, _, update in missed) == 3
    assert missed[-1][2]["position"] == len(STORY) + 3
    for unknown in ("0", "99999", "x", "-1", "9" * 40):
        assert events_of(follow(client, name, 1, unknown).body)[0][1] == ("update" if unknown == "0" else "hello")


# who may come in


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.7", "a b", "[::1",
                                  "127.0.0.1:x", "user@localhost", "localhost/x"])  # fmt: skip
def test_foreign_host_names_are_refused(client: Client, host: str) -> None:
    answer = client("GET", "/", headers={"host": host})
    assert answer.status == 421 and "Host is" in answer.json["error"]


@pytest.mark.parametrize("host", ["localhost:7007", "127.0.0.1", "[::1]:7007", "LOCALHOST"])
def test_own_host_names_are_taken(client: Client, host: str) -> None:
    assert client("GET", "/api/about", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_other_sites_cannot_post(client: Client, headers: dict[str, str]) -> None:
    answer = client("POST", "/api/sessions", headers=headers)
    assert answer.status == 403 and "another site's page" in answer.json["error"]
    assert client("POST", "/api/sessions", headers={"origin": "http://127.0.0.1:7007"}).status == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; b=x"])
def test_only_json_is_posted(client: Client, kind: str) -> None:
    answer = client("POST", "/api/sessions", headers={"content-type": kind})
    assert answer.status == 415 and "wanted application/json" in answer.json["error"]


def test_a_key_is_asked_for(hub: Hub) -> None:
    entries: list[int] = []
    door = Door("0.0.0.0", KEY, port=7007)
    client = Client(make_app(hub, door, {}, lambda: entries.append(1)), host="192.0.2.7:7007")
    for path in ("/", "/app.js", "/api/about", "/api/sessions"):
        answer = client("GET", path)
        assert answer.status == 401 and KEY not in answer.body.decode()
    assert client("GET", "/api/about", headers={"x-ssmn-key": KEY[:-1]}).status == 401
    assert client("GET", "/api/about", headers={"x-ssmn-key": KEY[:-1] + "é"}).status == 401
    assert client("GET", "/api/about", headers={"x-ssmn-key": KEY}).status == 200
    stale, ticket = door.ticket(), door.ticket()
    assert client("GET", stale).status == 401 and client("GET", "/enter/").status in (401, 404)
    entered = client("GET", ticket)
    assert entered.status == 303 and entered.header("location") == "/" and entries == [1]
    assert KEY not in client.cookies["ssmn_pass_7007"]
    assert client("GET", "/api/about").status == 200
    assert client("GET", ticket).status == 401
    assert client("GET", "/api/about", headers={"host": "evil.example"}).status == 421


def test_doors_are_checked() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(RangeError, match="can be reached from other machines; wanted a key"):
            Door(host, None)
    with pytest.raises(RangeError, match="a key of 5 characters; wanted 12 or more"):
        Door("0.0.0.0", "short")
    assert Door("127.0.0.1", None, ["watch.example"]).allows_host("watch.example:80")
    assert [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "[::1]", "0.0.0.0")] == [True] * 4 + [False]


def test_no_trace_is_sent_out(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a secret of the machine")

    answer = Client(Guard(broken, Door("127.0.0.1", None), 100))("GET", "/")
    assert answer.status == 500 and b"secret" not in answer.body and b"Traceback" not in answer.body
    assert "a secret of the machine" in caplog.text


# malformed requests


METHODS = ["GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "get", "PO ST", ""]
VALUES: list[Any] = [None, True, 0, -1, 1e308, 10**30, "", "x", "\x00", "é\u202e", "../../x", [], [[]], {}, {"a": [1]}]
JUNK = [
    "\x00",
    "\n",
    "%00",
    "%2f",
    "..",
    "//",
    "\u202e",
    "é",
    "🙂",
    "?",
    "#",
    ";",
    "'",
    '"',
    "<script>",
    "{}",
    "a" * 300,
]


def mutated(draw: random.Random, name: str) -> tuple[str, str, list[tuple[bytes, bytes]], bytes]:
    """A request that may be nearly right or nothing at all."""
    paths = ["/", "/app.js", "/enter/x", "/api/about", "/api/sessions", f"/api/sessions/{name}"]
    verbs = ("control", "checkpoint", "rollback", "push", "state", "events", "fork")
    paths += [f"/api/sessions/{name}/{verb}" for verb in verbs]
    path = draw.choice(paths)
    if draw.random() < 0.4:
        at = draw.randrange(len(path) + 1)
        path = path[:at] + draw.choice(JUNK) + path[at + draw.randrange(3) :]
    method = "POST" if draw.random() < 0.5 else draw.choice(METHODS)
    fields = ["pause", "speed", "plasticity", "name", "text", "rows", "eta_scale", "frozen", "é"]
    value: Any = {draw.choice(fields): draw.choice(VALUES) for _ in range(draw.randrange(3))}
    if draw.random() < 0.3:
        value = {"plasticity": {draw.choice([*fields, "decay_scale", "decay_lambda"]): draw.choice(VALUES)}}
    body = json.dumps(draw.choice(VALUES) if draw.random() < 0.1 else value).encode()
    if draw.random() < 0.4:
        raw = bytearray(body)
        for _ in range(draw.randrange(1, 6)):
            raw.insert(draw.randrange(len(raw) + 1), draw.randrange(256))
        body = bytes(raw) if draw.random() < 0.8 else bytes(raw) * 500
    headers = [(b"host", b"127.0.0.1:7007"), (b"content-type", b"application/json")]
    for header, values in (
        (b"host", [b"evil.example", b"", b"\xff", b"127.0.0.1:99999999", b"[", b"127.0.0.1"]),
        (b"content-type", [b"text/plain", b"", b"\xff", b"application/json; charset=\x00"]),
        (b"content-length", [b"-1", b"9" * 5_000, b"x", b"\xb2"]),
        (b"cookie", [b"ssmn_owner_7007=x", b"\xff=\xfe", b";;;=", b'ssmn_owner_7007="\\', b"=" * 200]),
        (b"last-event-id", [b"0", b"-5", b"9" * 400, b"\xff", b"\xb2"]),
        (b"origin", [b"null", b"http://127.0.0.1:7007", b"\xff"]),
        (b"x-ssmn-key", [b"", b"\xff"]),
    ):
        if draw.random() < 0.12:
            headers.append((header, draw.choice(values)))
    if draw.random() < 0.1:
        headers = headers[draw.randrange(3) :]
    return method, path, headers, body


def test_ten_thousand_malformed_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers send them while somebody has a session: no 5xx, no trace, nothing of the session."""
    draw = random.Random(20)
    hub = Hub(a_session, Limits(sessions=3, viewers=2, body_bytes=3_000))
    client = Client(make_app(hub, Door("127.0.0.1", None, port=7007), {"model": "a model"}))
    name = started(client)
    session = read_up(hub, client, name)
    before, state = session.latest, session._reading.state
    statuses: dict[int, int] = {}
    leaks = [name.encode(), client.cookies["ssmn_owner_7007"].encode(), STORY[:20].encode(), b"Traceback", b".py"]

    async def send_all() -> None:
        for number in range(10_000):
            method, path, headers, body = mutated(draw, name)
            answer = await request(client.app, method, path, headers, body, events=0)
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status and answer.status < 500, (number, method, path, headers, body, answer.body)
            small = answer.status >= 400
            leaked = [leak for leak in leaks if small and leak in answer.body]
            assert not leaked, (number, method, path, headers, body, answer.body)
            if small and method != "HEAD":
                assert answer.json["error"]

    asyncio.run(send_all())
    assert session.latest is before and session._reading.state is state
    assert sum(statuses.values()) == 10_000 and {200, 201, 403, 404, 405, 413, 415, 421, 422} <= statuses.keys() | {201}
    assert not caplog.records
    hub.close()


# the verb


def test_the_verb_serves_and_ends_cleanly(tmp_path: Path) -> None:
    """In a process of its own: prints the address, answers, ends at Ctrl-C."""
    folder, text = save_text_model(tmp_path / "model"), tmp_path / "a.txt"
    text.write_text(STORY)
    command = [sys.executable, "-m", "ssmn", "dashboard", str(folder), "--text", str(text), "--key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            first, address = process.stdout.readline(), process.stdout.readline().strip()
            assert "reading a.txt. Ctrl-C ends it." in first
            assert address.startswith("http://127.0.0.1:") and "/enter/" in address and KEY not in address
            import httpx

            with httpx.Client(trust_env=False, timeout=60) as web:
                assert web.get(address.split("/enter/")[0] + "/api/about").status_code == 401
                page = web.get(address, follow_redirects=True)
                assert page.status_code == 200 and "Live memory" in page.text
                assert web.get(address).status_code == 401
            assert "/enter/" in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        errors = process.stderr.read()
    assert code in (0, 130) and errors == ""


def test_the_verb_refuses_a_public_address_without_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "--host", "0.0.0.0"]) == 1
    assert "0.0.0.0 can be reached from other machines; wanted a key (--key), or 127.0.0.1." in capsys.readouterr().err
    assert main(["dashboard", "--text", "tcp://x"]) == 1
    assert "wanted tcp://HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "module"), [("dashboard", "uvicorn"), ("watch", "textual.app")])
def test_absent_extras_are_named(
    verb: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "ssmn.live.terminal", raising=False)
    assert main([verb]) == 1
    assert "pip install 'sparse-stream[" in capsys.readouterr().err
