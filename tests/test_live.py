"""The live view's core: feeds, readings that are plain streams, sessions in threads."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig
from ssmn.errors import ConfigError, FileError, RangeError, ShapeError, SSMNError, StateError
from ssmn.live import Feed, Hub, Limits, Reader, Reading, Session, source_for
from ssmn.live import feeds as feeds_module
from ssmn.live import session as session_module
from ssmn.live.command import Setup
from ssmn.live.hub import FullError
from ssmn.live.numbers import distance, finite, memories_of, picture
from ssmn.live.reading import MOST_CHECKPOINTS, with_settings
from ssmn.live.session import TRAIL
from ssmn.live.updates import described
from ssmn.models import SSMN, TextSSMN
from ssmn.probes import effective_rank, spectrum
from ssmn.state import StreamState
from ssmn.stream import Stream
from ssmn.streaming import token_bits
from ssmn.training import Tokenizer
from tiny import row_model, text_model

TOKENIZER = Tokenizer.for_bytes()
STORY = "the cat sat on the mat, and the rat saw the cat; née Zoë 1899.\n" * 5
LINE_END = ord("\n")


def reader_of(*pieces: Any) -> Reader:
    """A reader whose steps are all there."""
    reader = Feed(lambda: iter(pieces)).reader()
    deadline = time.monotonic() + 10
    while reader.waiting < sum(map(len, pieces)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return reader


def text_reading(text: str = STORY, model: TextSSMN | None = None) -> Reading:
    return Reading((model or text_model()).eval(), reader_of(TOKENIZER.encode(text)), TOKENIZER)


def row_steps(count: int = 53, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float32)


def rest(reading: Reading, size: int = 29) -> int:
    """Reads all there is, in pieces; returns how many steps."""
    total = 0
    while read := reading.read(size):
        total += read
    return total


def identical(first: StreamState, second: StreamState) -> bool:
    return first.diff(second).identical


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    """Sessions put in here are closed at the end."""
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


# readings


def test_a_reading_is_a_plain_stream() -> None:
    model = text_model().eval()
    reading = text_reading(model=model)
    plain, tokens = Stream(model), np.concatenate([[LINE_END], TOKENIZER.encode(STORY)])
    bits = []
    for start in range(0, len(tokens) - 1, 29):
        bits.append(token_bits(plain, tokens[start : start + 30]))
    assert rest(reading) == len(tokens) - 1 == reading.position
    assert identical(reading.state, plain.state)
    report = reading.report()
    assert report.surprise == pytest.approx(np.concatenate(bits).sum() / (len(tokens) - 1))
    shown = "".join(piece.text for piece in report.pieces)
    assert STORY[:-1].endswith(shown) and len(shown.encode()) == len(report.pieces)
    assert report.steps == len(tokens) - 1 == len(report.pieces) + report.left_out


def test_rows_are_read_as_by_a_plain_stream() -> None:
    model, steps = row_model().eval(), row_steps()
    reading = Reading(model, reader_of(steps))
    assert rest(reading, 53) == 53
    plain = Stream(model)
    expected = plain.push(torch.from_numpy(steps)[None])[0].numpy()
    assert identical(reading.state, plain.state)
    report = reading.report()
    assert np.allclose([piece.expected for piece in report.pieces[1:]], expected[:-1])
    assert np.allclose([piece.values for piece in report.pieces], steps)
    assert np.isnan(report.pieces[0].expected).all()
    errors = np.abs(steps[1:] - expected[:-1]) / steps.std(0)
    assert report.surprise == pytest.approx(errors.mean(), rel=1e-5)


def test_rows_with_gaps_and_a_read_out() -> None:
    torch.manual_seed(0)
    config = SSMNConfig(input_dim=2, output_dim=1, hidden_dim=12, num_layers=3, num_heads=2, window_size=5,
                        targets=(1,), missing="mask", readout="delta", head="quantile")  # fmt: skip
    model, steps = SSMN(config).eval(), row_steps()
    steps[7] = np.nan
    steps[9, 0] = np.nan
    reading = Reading(model, reader_of(steps))
    rest(reading, 53)
    report = reading.report()
    plain = Stream(model)
    plain.push(torch.from_numpy(steps)[None], target=torch.from_numpy(steps)[None, :, [1]])
    assert identical(reading.state, plain.state)
    assert report.surprise > 0
    assert np.isnan(report.pieces[7].surprise) and np.isfinite(report.pieces[9].surprise)
    assert np.isnan(report.pieces[9].expected[0]) and np.isfinite(report.pieces[9].expected[1])


def test_what_is_reported_is_in_the_state() -> None:
    reading = text_reading()
    reading.read(50)
    before = memories_of(reading.state)[1].clone()
    reading.report()
    reading.read(40)
    report = reading.report()
    now = memories_of(reading.state)[1]
    (layer,) = report.layers
    assert layer.layer == 1
    assert layer.energy == pytest.approx([float((now**2).sum())])
    assert layer.update == pytest.approx([float((now - before).norm()) / 40])
    assert layer.rank == effective_rank(spectrum(now)).tolist()
    assert layer.write_rate == [1.0] and 0 < layer.importance[0] < 1
    assert layer.picture.peak == pytest.approx(float(now.abs().max()))
    reading.plasticity = with_settings(reading.plasticity, {"write_threshold": 1.0})
    reading.read(10)
    report = reading.report(ranks=False)
    assert report.layers[0].write_rate == [0.0] and report.layers[0].rank == layer.rank
    assert all(piece.importance == 0 for piece in report.pieces)
    assert report.layers[0].update == [0.0]


def test_settings_change_the_memory_at_once() -> None:
    plain, firm, frozen = (text_reading() for _ in range(3))
    for reading in (plain, firm, frozen):
        reading.read(60)
    assert identical(plain.state, firm.state)
    firm.plasticity = with_settings(firm.plasticity, {"eta_scale": 0.1, "decay_scale": 30.0})
    frozen.plasticity = with_settings(frozen.plasticity, {"frozen": True})
    before = memories_of(frozen.state)
    for reading in (plain, firm, frozen):
        reading.read(31)
    assert distance(memories_of(firm.state), memories_of(plain.state)) > 0.05
    assert torch.equal(memories_of(frozen.state)[1], before[1])
    assert frozen.report().layers[0].write_rate == [31 and 60 / 91]


@pytest.mark.parametrize("rows", [False, True])
def test_rollback_restores_bit_by_bit(rows: bool) -> None:
    reading = Reading(row_model().eval(), reader_of(row_steps())) if rows else text_reading()
    reading.read(33)
    assert reading.checkpoint() == "checkpoint 1"
    kept = reading.state.clone()
    reading.read(20)
    assert not identical(reading.state, kept)
    assert reading.rollback() == "checkpoint 1"
    assert identical(reading.state, kept)
    assert reading.position == 33

    def again() -> tuple[StreamState, float]:
        reading.report()
        reading.push([[1.0, 2.0], [3.0, 4.0]] if rows else "xyz")
        reading.read(10)
        return reading.state, reading.report().surprise

    first, surprise = again()
    reading.rollback("checkpoint 1")
    second, same = again()
    assert identical(first, second)
    assert same == surprise
    with pytest.raises(StateError, match="rollback: name='no'; wanted one of 'checkpoint 1'"):
        reading.rollback("no")


def test_checkpoints_are_limited() -> None:
    reading = text_reading()
    for _ in range(MOST_CHECKPOINTS):
        reading.checkpoint()
    with pytest.raises(RangeError, match=f"there are {MOST_CHECKPOINTS} already"):
        reading.checkpoint("one more")
    assert reading.checkpoint("checkpoint 3") == reading.checkpoints[-1]


def test_forks_go_on_from_the_same_place_and_part() -> None:
    reading = text_reading()
    reading.read(41)
    fork = reading.fork()
    assert identical(fork.state, reading.state)
    kept = reading.state
    fork.plasticity = with_settings(fork.plasticity, {"eta_scale": 0.25})
    fork.read(30)
    assert identical(reading.state, kept)
    left = reading.fork()
    left.read(30)
    reading.read(30)
    assert identical(left.state, reading.state)
    assert distance(memories_of(fork.state), memories_of(reading.state)) > 0.01
    assert [piece.text for piece in fork.report().pieces] == [piece.text for piece in left.report().pieces]


def test_what_is_pushed_comes_first() -> None:
    reading, other = text_reading("abc"), text_reading("XYZabc")
    assert reading.push("XYZ") == 3
    rest(reading)
    rest(other, 3)
    assert reading.state.diff(other.state).identical
    with pytest.raises(RangeError, match="push: list; the model reads text"):
        reading.push([[1.0]])
    with pytest.raises(RangeError, match="half of a surrogate pair"):
        reading.push("\ud800")
    with pytest.raises(RangeError, match="wanted at most 65,536 in all"):
        reading.push("a" * 70_000)


def test_bad_rows_are_named() -> None:
    reading = Reading(row_model().eval(), reader_of(row_steps()))
    for rows, message in (
        ([[1.0]], r"rows\[0\] is '\[1.0\]'; wanted a list of 2 numbers"),
        ([[1.0, 2.0], "ab"], r"rows\[1\] is 'ab'"),
    ):
        with pytest.raises(ShapeError, match=message):
            reading.push(rows)  # type: ignore[arg-type]
    for cell in (None, True, "1", 1e31, float("nan"), 10**400):
        with pytest.raises(RangeError, match="wanted finite numbers below 1e30"):
            reading.push([[1.0, cell]])  # type: ignore[list-item]
    with pytest.raises(RangeError, match="push: str; the model reads rows"):
        reading.push("1,2")


def test_models_that_cannot_be_watched_are_refused() -> None:
    config = TextSSMNConfig(
        vocab_size=256, hidden_dim=16, num_layers=2, num_heads=2, layer_types=("static",) * 2, window_size=1
    )
    with pytest.raises(ConfigError, match="all layers are windows of one step"):
        Reading(TextSSMN(config), reader_of(), TOKENIZER)
    with pytest.raises(RangeError, match="tokenizer=None"):
        Reading(text_model(), reader_of())
    model = SSMN(SSMNConfig.preset("tiny", input_dim=1, output_dim=1, future_dim=3))
    with pytest.raises(RangeError, match="future_dim=3, which rows do not bring"):
        Reading(model, reader_of())
    with pytest.raises(StateError, match="holds 2 streams"):
        Reading(text_model(), reader_of(), TOKENIZER, text_model().init_state(2))


MEMBERS = {
    "lru": ("linear recurrence", (1, 2, 8)),
    "amn": ("associative memory", (1, 16, 16)),
    "hopfield": ("stored patterns", (2, 9, 8)),
    "ntm": ("tape of the Turing machine", (1, 9, 8)),
    "static": ("keys in the window", (2, 5, 8)),
}


def member_config(kind: str) -> dict[str, Any]:
    sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "window_size": 6, "memory_slots": 9}
    return {**sizes, "layer_types": ("static", kind)}


@pytest.mark.parametrize("kind", MEMBERS)
@pytest.mark.parametrize("rows", [False, True])
def test_every_member_of_the_family_is_watched(kind: str, rows: bool) -> None:
    torch.manual_seed(0)
    if rows:
        model: Any = SSMN(SSMNConfig(input_dim=2, output_dim=2, **member_config(kind))).eval()
        reading = Reading(model, reader_of(row_steps()))
    else:
        model = TextSSMN(TextSSMNConfig(vocab_size=256, **member_config(kind))).eval()
        reading = text_reading(model=model)
    reading.read(20)
    reading.report()
    before = memories_of(reading.state)
    reading.read(13)
    report = reading.report()
    title, shape = MEMBERS[kind]
    shown = report.layers[-1]
    assert [layer.layer for layer in report.layers] == ([0, 1] if kind == "static" else [1])
    now = memories_of(reading.state)[1]
    assert (shown.title, tuple(now.shape)) == (title, shape)
    assert shown.energy == pytest.approx(now.square().sum((1, 2)).tolist())
    assert shown.update == pytest.approx(((now - before[1]).square().sum((1, 2)).sqrt() / 13).tolist())
    assert (shown.picture.rows, shown.picture.columns) == shape[1:] and shown.picture.cells.any()
    assert all(map(np.isnan, shown.rank)) if kind == "lru" else min(shown.rank) > 1
    assert shown.write_rate == ([1.0] if kind == "amn" else []) and len(report.pieces) == 13
    assert all((piece.importance > 0) == (kind == "amn") for piece in report.pieces)
    session = Session(reading)
    told = described(session.latest)
    json.dumps(told, allow_nan=False)
    assert told["layers"][-1]["title"] == title and told["point"][3][-1][1] == 0
    session.close()


def test_only_settings_that_have_an_effect_are_offered(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,2\n")
    memory = ["eta_scale", "decay_scale", "write_threshold", "frozen"]
    wanted = {"plastic": memory, "amn": memory, "hopfield": ["frozen"], "ntm": ["frozen"], "lru": [], "static": []}
    for kind, settings in wanted.items():
        model = SSMN(SSMNConfig(input_dim=2, output_dim=2, **member_config(kind))).eval()
        assert Setup.of(model, None, str(path), speed=None).about["settings"] == settings


def test_the_weights_are_shared_and_the_model_is_not_touched() -> None:
    model = text_model().eval()
    reading = text_reading(model=model)
    reading.read(20)
    own = dict(reading._own.named_parameters())
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert reading._own is not model
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eta": 1.0}, "settings: 'eta'; wanted some of eta_scale, decay_scale"),
        ({"chat_rounds": 1}, "settings: 'chat_rounds'"),
        ({"eta_scale": None}, "eta_scale is 'None'; wanted a number"),
        ({"eta_scale": [1.0]}, "wanted a number"),
        ({"eta_scale": True}, "wanted a number"),
        ({"eta_scale": -1.0}, "eta_scale=-1.0; wanted finite numbers"),
        ({"eta_scale": 1e7}, "wanted at most 1e\\+06"),
        ({"decay_lambda": 1.0}, "decay_lambda=1.0"),
        ({"frozen": 1}, "frozen=1; wanted true or false"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RangeError, match=message):
        with_settings(Plasticity(), values)


# numbers


def test_distances_and_sound_numbers() -> None:
    mine, theirs = {2: torch.full((1, 2, 3), 3.0)}, {2: torch.full((1, 2, 3), 2.0)}
    assert distance(mine, theirs) == pytest.approx(0.5)
    assert np.isnan(distance(mine, {2: torch.zeros(1, 2, 3)}))
    assert finite({"a": [float("nan"), 1.0, (float("inf"),)]}) == {"a": [None, 1.0, [None]]}


@pytest.mark.parametrize(("heads", "rows", "columns"), [(1, 96, 130), (3, 40, 70), (1, 5, 3)])
def test_pictures_keep_what_is_largest(heads: int, rows: int, columns: int) -> None:
    memory = 0.01 * torch.randn(heads, rows, columns)
    memory[-1, rows - 2, columns - 1] = -7.0
    memory[0, 1, 0] = 3.5
    small = picture(memory)
    assert small.cells.size <= 64 * 64
    assert small.cells.shape[0] == heads and small.peak == 7.0 and (small.rows, small.columns) == (rows, columns)
    assert small.cells.min() == -127 and small.cells.max() == round(127 * 0.5)
    place = np.unravel_index(small.cells[-1].argmin(), small.cells[-1].shape)
    assert abs(place[0] / small.cells.shape[1] - (rows - 2) / rows) <= 1 / small.cells.shape[1]
    assert picture(torch.zeros(1, 4, 6)).cells.any() == np.False_


# feeds


def test_a_feed_keeps_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "AHEAD", 10)
    monkeypatch.setattr(feeds_module, "KEPT", 25)
    drawn: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for number in range(30):
            drawn.append(number)
            yield np.arange(5) + 5 * number

    feed = Feed(pieces)
    reader = feed.reader()
    assert reader.wait(5.0)
    slow = reader.fork()
    taken = []
    while len(taken) < 100:
        assert reader.wait(5.0)
        steps = reader.take(7)
        assert steps is not None
        taken += steps.tolist()
        time.sleep(0.002)
        assert len(drawn) * 5 <= len(taken) + 10 + 15
    assert taken == list(range(len(taken)))
    late = slow.take(3)
    assert late is not None and slow.missed == late[0] > 50
    assert reader.missed == 0
    reader.close()
    slow.close()
    assert feed._ended


def test_feeds_say_why_they_broke_off() -> None:
    def pieces() -> Iterator[np.ndarray]:
        yield np.arange(3)
        raise FileError("line 2: no good")

    reader = Feed(pieces).reader()
    taken = reader.take(9) if reader.wait(5.0) else None
    assert taken is not None and taken.tolist() == [0, 1, 2]
    reader.wait(5.0)
    assert reader.ended and reader.trouble == "line 2: no good" and reader.take(1) is None


def read_all(reader: Reader) -> list[Any]:
    found: list[Any] = []
    while not reader.ended:
        if reader.wait(5.0):
            steps = reader.take(1000)
            found += [] if steps is None else steps.tolist()
    return found


def named_columns(path: Path) -> tuple[str, ...]:
    reader = source_for(str(path), row_model().config, None).reader()
    read_all(reader)
    session = Session(Reading(row_model().eval(), reader))
    session.close()
    return session.latest.columns


def test_sources_of_files(tmp_path: Path) -> None:
    text, rows = tmp_path / "a.txt", tmp_path / "b.csv"
    text.write_text(STORY, encoding="utf-8")
    rows.write_text("day,x,y\n2024-01-01,1,2\n2024-01-02,oops,4\n2024-01-03,,5\n2024-01-04,5,6\n")
    config = text_model().config
    source = source_for(str(text), config, TOKENIZER)
    assert (source.name, source.live, source.reader().columns) == ("a.txt", False, ())
    first = source.reader()
    assert read_all(first) == list(STORY.encode())
    assert read_all(source.reader()) == list(STORY.encode())
    assert read_all(source_for(str(rows), row_model().config, None).reader()) == [[1, 2], [5, 6]]
    assert named_columns(rows) == ("x", "y")
    rows.write_text("1,2\n3,4\n")
    assert named_columns(rows) == ("column 1", "column 2")
    rows.write_text(f"{'x' * 90},<b>&\n1,2\n")
    assert named_columns(rows) == ("x" * 40, "<b>&")
    rows.write_text("day,x,y\n2024-01-01,1,2\n")
    narrow = source_for(str(rows), SSMNConfig.preset("tiny", input_dim=1, output_dim=1), None).reader()
    assert read_all(narrow) == [] and "2 columns of numbers (x, y); the model takes 1" in (narrow.trouble or "")
    text.write_bytes(b"fine\n\xff\n")
    bpe = Tokenizer.train_bpe([STORY], 260)
    broken = source_for(str(text), config, bpe).reader()
    assert bpe.decode(read_all(broken)) == "fine\n" and "line 2: byte 0xff is not UTF-8" in (broken.trouble or "")


def test_sources_that_come_with_the_library() -> None:
    text = source_for(None, text_model().config, TOKENIZER)
    reader = text.reader()
    assert reader.wait(10.0)
    reader.close()
    series = source_for(None, SSMNConfig.preset("tiny", input_dim=1, output_dim=1), None).reader()
    assert series.wait(10.0)
    rows = series.take(2)
    assert rows is not None and rows.shape == (2, 1)
    series.close()
    with pytest.raises(RangeError, match="the built-in series has 1 column, but the model takes 2"):
        source_for(None, row_model().config, None)


@pytest.mark.parametrize("where", ["tcp://", "tcp://host", "tcp://host:", "tcp://host:0", "tcp://h:70000", "tcp://:9"])
def test_wrong_addresses_are_named(where: str) -> None:
    with pytest.raises(RangeError, match="wanted tcp://HOST:PORT"):
        source_for(where, text_model().config, TOKENIZER)


def test_absent_files_are_named(tmp_path: Path) -> None:
    for where in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(FileError, match="is not there, or no file"):
            source_for(str(where), text_model().config, TOKENIZER)


def test_a_socket_is_one_feed_for_all(sessions: list[Session]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        source = source_for(f"tcp://127.0.0.1:{server.getsockname()[1]}", text_model().config, TOKENIZER)
        model = text_model().eval()
        first = Session(Reading(model, source.reader(), TOKENIZER)).start()
        sessions.append(first)
        line, _ = server.accept()
        with line:
            line.sendall(b"one line\n")
            first.wait_for(lambda update: update.report.position == 9, 60)
            second = Session(Reading(model, source.reader(), TOKENIZER)).start()
            sessions.append(second)
            line.sendall(b"two\n")
            first.wait_for(lambda update: update.report.position == 13, 60)
            assert second.wait_for(lambda update: update.report.position == 4, 60).status in ("running", "waiting")
            assert first.wait_for(lambda update: update.status == "waiting", 60)
        first.wait_for(lambda update: update.status == "ended", 60)


# sessions


def test_a_session_ends_where_a_plain_stream_does(sessions: list[Session]) -> None:
    model = text_model().eval()
    session = Session(text_reading(STORY * 4, model))
    sessions.append(session)
    length = 4 * len(STORY.encode())
    assert session.start().wait_for(lambda update: update.status == "ended", 60).report.position == length
    plain = Stream(model)
    token_bits(plain, np.concatenate([[LINE_END], TOKENIZER.encode(STORY * 4)]))
    difference = max(entry.relative for entry in session._reading.state.diff(plain.state))
    assert difference < 1e-5


def test_sessions_on_one_model_do_not_see_each_other(sessions: list[Session]) -> None:
    """Two in threads of their own read as each does alone, what is watched included."""
    model = text_model().eval()
    texts = [STORY * 3, STORY[::-1] * 3]
    alone = []
    for text in texts:
        reading = text_reading(text, model)
        rest(reading, 64)
        alone.append((reading.state, reading.report().layers[0].importance[0]))
    running = [Session(text_reading(text, model)) for text in texts]
    sessions += running
    running[1].set_plasticity(eta_scale=0.5)
    running[1].reset_plasticity()
    for session in running:
        session.start()
    for session, (state, importance) in zip(running, alone, strict=True):
        last = session.wait_for(lambda update: update.status == "ended", 60)
        assert max(entry.relative for entry in session._reading.state.diff(state)) < 1e-5
        updates = session.updates_after(0) or []
        counted = sum(update.report.steps for update in updates)
        mean = sum(update.report.steps * update.report.layers[0].importance[0] for update in updates) / counted
        assert counted == last.report.position and mean == pytest.approx(importance, rel=1e-4)
    assert running[0].id != running[1].id and len(running[0].id) >= 22


def test_buttons_of_a_running_session(sessions: list[Session]) -> None:
    session = Session(text_reading(STORY * 40), speed=4_000.0)
    sessions.append(session)
    session.start().wait_for(lambda update: update.report.position > 100, 60)
    session.pause()
    stopped = session.wait_for(lambda update: update.status == "paused", 60).report.position
    assert session.checkpoint("here") == "here"
    kept = session._reading.state
    fork = session.fork()
    sessions.append(fork)
    assert fork.parent is session and fork.latest.status == "paused"
    fork.set_plasticity(eta_scale=0.1, decay_scale=100.0)
    fork.set_speed(None)
    fork.start().resume()
    apart = fork.wait_for(lambda update: update.report.position > stopped + 200, 60)
    assert session.latest.report.position == stopped and (apart.distance or 0) > 0.05
    assert session.latest.distance is None
    session.resume()
    session.wait_for(lambda update: update.report.position > stopped + 50, 60)
    session.pause()
    session.rollback("here")
    assert session.latest.report.position == stopped
    assert identical(session._reading.state, kept)
    assert session.latest.checkpoints == ("here",)


def test_a_session_that_fails_says_so_and_can_go_on(sessions: list[Session], caplog: pytest.LogCaptureFixture) -> None:
    reading = text_reading()
    read, trouble = reading.read, [RangeError("too odd"), ValueError("secret path")]

    def once(most: int) -> int:
        if trouble:
            raise trouble.pop(0)
        return read(most)

    reading.read = once  # type: ignore[method-assign]
    session = Session(reading)
    sessions.append(session)
    assert session.start().wait_for(lambda update: update.status == "failed", 60).message == "too odd"
    session.resume()
    session.wait_for(lambda update: "internal error (ValueError)" in update.message, 60)
    assert "secret" not in session.latest.message and "secret path" in caplog.text
    session.resume()
    session.wait_for(lambda update: update.status == "ended", 60)


def test_wrong_commands_change_nothing(sessions: list[Session]) -> None:
    session = Session(text_reading("ab"))
    sessions.append(session)
    session.start().wait_for(lambda update: update.status == "ended", 60)
    for command, message in (
        (lambda: session.set_speed(0), "speed='0'; wanted steps a second above 0"),
        (lambda: session.set_speed(True), "speed='True'"),  # type: ignore[arg-type]
        (lambda: session.set_plasticity(eta=3), "settings: 'eta'"),
        (lambda: session.rollback(), "there is no checkpoint"),
        (lambda: session.push([[1.0]]), "the model reads text"),
        (lambda: session.wait_for(lambda _: False, 0.01), "not as wanted after 0.01 s; the session is ended"),
    ):
        with pytest.raises(SSMNError, match=message):
            command()
    assert session.latest.status == "ended" and session.latest.plasticity == Plasticity()
    session.close()
    with pytest.raises(StateError, match="the session is closed"):
        session.pause()


def test_updates_are_numbered_and_kept_for_a_while(sessions: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "KEPT_UPDATES", 6)
    session = Session(text_reading())
    sessions.append(session)
    told: list[int] = []
    stop = session.listen(lambda: told.append(session.latest.number))
    for number in range(2, 12):
        session.push("x")
        assert session.latest.number == number
    stop()
    session.push("x")
    assert told == list(range(2, 12))
    later = session.updates_after(8)
    assert later is not None and [update.number for update in later] == [9, 10, 11, 12]
    assert session.updates_after(12) == []
    assert session.updates_after(3) is None and session.updates_after(13) is None
    assert len(session._packed) == 0
    session.packed(session.latest)
    assert session.packed(session.latest) is session.packed(session.latest)


def test_a_trail_of_any_length_is_short(sessions: list[Session]) -> None:
    session = Session(text_reading(STORY * 9))
    sessions.append(session)
    for _ in range(TRAIL + TRAIL // 2):
        session._reading.read(1)
        session._publish()
    trail = session.greeting()["trail"]
    places = [point[0] for point in trail]
    assert TRAIL // 2 <= len(trail) <= TRAIL and places == sorted(places) and places[0] == 1


def test_updates_are_sound_json(sessions: list[Session]) -> None:
    for reading in (text_reading(), Reading(row_model().eval(), reader_of(row_steps()))):
        session = Session(reading)
        sessions.append(session)
        assert json.loads(session.packed(session.latest))["surprise"] is None
        reading.read(40)
        session._publish()
        made = json.loads(json.dumps(described(session.latest), allow_nan=False))
        assert made["position"] == 40 and len(made["pieces"]) == 40
        assert json.loads(json.dumps(session.greeting(), allow_nan=False))["update"] == made


def test_a_spoilt_memory_is_shown_as_such(sessions: list[Session]) -> None:
    session = Session(text_reading())
    sessions.append(session)
    session.checkpoint()
    spoilt = session._reading.state.map(lambda t: t * torch.nan if t.is_floating_point() else t)
    session._reading._stream.state = spoilt
    session.push("a")
    made = json.loads(session.packed(session.latest))
    assert made["layers"][0]["energy"] == [None] and made["layers"][0]["picture"]["peak"] is None
    with pytest.raises(StateError, match="NaN or infinite"):
        session.state_file()
    session.rollback()
    assert np.isfinite(session.latest.report.layers[0].energy[0])


@pytest.mark.parametrize("viewers", [0, 1])
def test_a_session_at_rest_takes_no_time(sessions: list[Session], viewers: int) -> None:
    session = Session(text_reading("ab"), idle_seconds=0.05)
    sessions.append(session)
    session.looking(viewers)
    turns, advance = [], session._advance

    def counted() -> float:
        turns.append(1)
        return advance()

    session._advance = counted  # type: ignore[method-assign]
    session.start().wait_for(lambda update: update.status == "ended" or not viewers, 60)
    time.sleep(0.2)
    turns.clear()
    time.sleep(0.3)
    assert len(turns) < 5


def test_nobody_looking_means_no_reading(sessions: list[Session]) -> None:
    session = Session(text_reading(STORY * 100), speed=2_000.0, idle_seconds=0.05)
    sessions.append(session)
    session.looking(+1)
    session.start().wait_for(lambda update: update.report.position > 5, 60)
    session.looking(-1)
    time.sleep(0.3)
    at = session._reading.position
    time.sleep(0.2)
    assert session._reading.position == at
    session.looking(+1)
    session.wait_for(lambda update: update.report.position > at, 60)
    assert session.unseen_seconds == 0
    session.looking(-1)


def test_states_are_downloaded_whole(sessions: list[Session], tmp_path: Path) -> None:
    model = text_model().eval()
    session = Session(text_reading(model=model))
    sessions.append(session)
    session._reading.read(40)
    (tmp_path / "s.safetensors").write_bytes(session.state_file())
    assert identical(StreamState.load(tmp_path / "s.safetensors", model), session._reading.state)


def test_threads_end_with_the_session() -> None:
    before = set(threading.enumerate())
    session = Session(text_reading()).start()
    session.wait_for(lambda update: update.status == "ended", 60)
    fork = session.fork().start()
    session.close()
    fork.close()
    assert {thread for thread in threading.enumerate() if thread.name == "ssmn-session"} <= before


def test_a_hub_keeps_owners_apart_and_within_limits() -> None:
    model = text_model().eval()
    hub = Hub(lambda: Session(text_reading(model=model)), Limits(sessions=2, idle_seconds=0.2))
    mine, theirs = hub.create("me"), hub.create("you")
    assert hub.list("me") == [mine] and hub.list("you") == [theirs] and hub.list("") == []
    for owner in ("you", ""):
        with pytest.raises(StateError, match="session: there is none"):
            hub.get(owner, mine.id)
    mine.looking(+1)
    theirs.looking(+1)
    with pytest.raises(FullError, match="there are 2 already"):
        hub.fork("me", mine.id)
    theirs.looking(-1)
    time.sleep(0.3)
    fork = hub.fork("me", mine.id)
    assert theirs.closed and hub.list("you") == [] and fork.parent is mine
    hub.remove("me", fork.id)
    assert fork.closed and hub.list("me") == [mine]
    hub.close()
    assert mine.closed
    wrong: list[dict[str, Any]] = [{"sessions": 0}, {"viewers": True}, {"idle_seconds": 0.0}]
    for values in wrong:
        with pytest.raises(RangeError, match="Limits"):
            Limits(**values)


def test_setups_choose_a_speed(tmp_path: Path) -> None:
    path, model = tmp_path / "a.txt", text_model().eval()
    path.write_text("abc")
    speeds = [Setup.of(model, TOKENIZER, where, speed=speed).speed
              for where, speed in ((str(path), None), ("-", None), (str(path), 0.0), ("-", 7.0))]  # fmt: skip
    assert speeds == [400.0, None, None, 7.0]
    with pytest.raises(RangeError, match="--speed -1"):
        Setup.of(model, TOKENIZER, str(path), speed=-1.0)
    about = Setup.of(model, TOKENIZER, str(path), speed=None).about
    assert about["eta"] == 0.5 and about["layers"] == [1] and "synaptic memory (1 × 16 × 16)" in about["model"]


def pack_latest(session: Session) -> None:
    session.packed(session.latest)


@pytest.mark.slow
def test_cost_of_being_watched(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the processor time of the shipped model with and without a session, and how often it is drawn.

    Watched, with every update made into JSON as for the viewers of a dashboard.
    """
    from ssmn.files import shipped_model
    from ssmn.models import load_model

    model: Any = load_model(shipped_model()).eval()
    tokenizer = Tokenizer.load(shipped_model() / "tokenizer.json")
    feed = source_for(None, model.config, tokenizer).reader()
    pieces = []
    while sum(map(len, pieces)) < 9_000 and feed.wait(60.0):
        pieces.append(feed.take(9_000))
    feed.close()
    tokens = np.concatenate(pieces)[:9_000]
    given, spent, wall, updates = np.concatenate([tokenizer.line_end, tokens]), [], 0.0, 0
    for _ in range(5):  # short and by turns, since other processes slow down now the one and now the other
        start = time.process_time()
        token_bits(Stream(model), given)
        whole = time.process_time() - start
        session = Session(Reading(model, reader_of(tokens), tokenizer))
        session.listen(partial(pack_latest, session))
        began, start = time.perf_counter(), time.process_time()
        session.start().wait_for(lambda update: update.status == "ended", 600)
        watched, wall = time.process_time() - start, wall + time.perf_counter() - began
        updates += session.latest.number
        assert session.latest.report.position == len(tokens)
        size = -(-len(tokens) // session.latest.number)
        session.close()
        stream, start = Stream(model), time.process_time()
        for at in range(0, len(tokens), size):
            token_bits(stream, given[at : at + size + 1])
        spent.append((whole, time.process_time() - start, watched))
    whole, cut, watched = np.sum(spent, 0)
    with capsys.disabled():
        each = ", ".join(f"{row[2] / row[0]:.2f}" for row in spent)
        print(f"\nwatched / read whole, processor time: {watched / whole:.3f} ({each})")
        print(f"watched / read in pieces of the same length: {watched / cut:.3f}")
        print(f"updates a processor second: {updates / watched:.3g}; a second: {updates / wall:.3g}", end="")
