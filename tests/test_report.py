"""The report of `ssmn inspect`: its numbers, its page, its pictures, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmn.cli import main
from ssmn.config import Plasticity, SSMNConfig, TextSSMNConfig
from ssmn.engine import Engine
from ssmn.errors import ConfigError, RangeError, StateError
from ssmn.layers.attention import SlidingWindowAttention
from ssmn.models import SSMN, TextSSMN
from ssmn.plots.report import About, holdings, part, pictures, read, window_weights, write_report
from ssmn.plots.report.page import _joined
from ssmn.probes import trace
from ssmn.stream import Stream
from ssmn.training import Tokenizer
from tiny import ROWS, save_row_model, save_text_model

CONFIG = TextSSMNConfig(
    vocab_size=256, hidden_dim=12, num_layers=5, num_heads=2, window_size=5, memory_heads=3,
    layer_types=("static", "plastic", "static", "plastic", "static"),
)  # fmt: skip
TEXT = "né, <b>so</b>\n</script><!-- it is: " * 12
TOKENS = np.frombuffer(TEXT.encode(), np.uint8)
BYTES = Tokenizer.for_bytes()


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> TextSSMN:
    torch.manual_seed(3)
    return TextSSMN(CONFIG).eval()


def pieces(tokens: np.ndarray, length: int = 37) -> list[np.ndarray]:
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]


def test_the_attention_of_a_window_is_what_the_layer_does_whatever_came_before() -> None:
    torch.manual_seed(1)
    layer = SlidingWindowAttention(12, 6, 5, num_kv_heads=3, sinks=True)
    assert layer.sinks is not None
    with torch.no_grad():
        layer.sinks.normal_()
    hidden = torch.randn(1, 17, 12)
    whole = window_weights(layer, hidden, layer.init_state(1))
    values = layer.value(hidden[0]).unflatten(-1, (3, 2)).repeat_interleave(2, 1)
    y = layer.output(torch.einsum("hts,shd->thd", whole, values).flatten(1))
    torch.testing.assert_close(y, layer(hidden)[0][0])
    for cut in (2, 9):
        _, state = layer(hidden[:, :cut])
        torch.testing.assert_close(window_weights(layer, hidden[:, cut:], state), whole[:, cut:, cut:])


def test_a_reading_has_the_numbers_of_the_stream(model: TextSSMN) -> None:
    reading = read(model, BYTES, pieces(TOKENS), shown=101, top=3)
    assert (reading.tokens, reading.start, reading.first) == (len(TOKENS), 0, len(TOKENS) - 101)
    assert "".join(reading.pieces) == TOKENS[-101:].tobytes().decode()
    row = torch.from_numpy(TOKENS.astype(np.int64)).unsqueeze(0)
    whole = trace(model, row, top=3)
    np.testing.assert_allclose(reading.trace.weights, whole.weights[-101:], atol=1e-5)
    np.testing.assert_allclose(reading.importance, whole.importance.mean(0), rtol=1e-5)
    logits, state = model(row)
    bits = torch.nn.functional.cross_entropy(logits[0, :-1], row[0, 1:], reduction="none") / np.log(2)
    np.testing.assert_allclose(reading.surprise, bits[-101:], rtol=1e-4)
    assert reading.bits_per_byte == pytest.approx(float(bits.mean()), rel=1e-5)
    held = holdings(state)
    assert [head.name for head in held.heads] == [f"layer {n}, head {h}" for n in (1, 3) for h in (0, 1, 2)]
    for head, mine in zip(held.heads, reading.holdings.heads, strict=True):
        np.testing.assert_allclose(mine.memory, head.memory, atol=1e-5)
        assert reading.energies[head.name][-1] == pytest.approx(float(np.square(head.memory).sum()), rel=1e-4)
        assert mine.write_rate == 1.0 and np.isnan(head.write_rate)
    _, before = model(row[:, :-50])
    energy = float(before.layers[3].memory[0, 1].square().sum())
    assert reading.energies["layer 3, head 1"][-51] == pytest.approx(energy, rel=1e-4)
    assert set(reading.window_maps) == {0, 2, 4} and set(reading.memory_maps) == {1, 3}
    assert reading.memory_maps[3].shape == (96, 96)
    assert not np.triu(reading.memory_maps[3], 1).any()


def test_pieces_of_a_text_are_the_text_and_a_state_goes_on(model: TextSSMN) -> None:
    whole = read(model, BYTES, [TOKENS], shown=90)
    parts = read(model, BYTES, pieces(TOKENS, 7), shown=90)
    np.testing.assert_allclose(parts.surprise, whole.surprise, rtol=1e-4)
    np.testing.assert_allclose(parts.memory_maps[1], whole.memory_maps[1], atol=1e-5)
    _, state = model(torch.from_numpy(TOKENS[:150].astype(np.int64)).unsqueeze(0))
    rest = read(model, BYTES, [TOKENS[150:]], state=state, shown=90)
    assert (rest.start, rest.first) == (150, whole.first)
    for name, energies in whole.energies.items():
        np.testing.assert_allclose(rest.energies[name], energies, rtol=1e-3)
    assert float(rest.trace.carried.max()) > 0
    limited = read(model, BYTES, pieces(TOKENS), limit=41, shown=500)
    assert limited.tokens == len(limited.pieces) == 41
    assert len(limited.memory_maps[1]) == 41


def test_sources_before_the_shown_part_have_the_words_around_them(model: TextSSMN) -> None:
    reading = read(model, BYTES, [TOKENS], shown=30, top=8)
    far = {int(place) for place in reading.trace.positions.unique() if 0 <= place < reading.first}
    assert far and set(reading.snippets) == far
    for place in far:
        before, at, after = reading.snippets[place]
        assert at == TOKENS[place : place + 1].tobytes().decode(errors="replace")
        assert len(before.encode()) >= min(5, place) and after


def test_the_share_that_is_left_falls_from_one_and_faster_with_a_larger_decay(model: TextSSMN) -> None:
    curves = read(model, BYTES, [TOKENS], shown=200).forgetting["layer 1, head 0"]
    for steps, left in curves.values():
        assert steps[0] == 1 and (np.diff(steps) > 0).all()
        assert (np.diff(left) <= 1e-6).all() and 0 <= left[-1] <= left[0] <= 1
    assert curves["λ × 10"][1][-1] < curves["as read"][1][-1] < curves["η × ¼"][1][-1]


def test_what_is_not_written_is_told(model: TextSSMN, tmp_path: Path) -> None:
    reading = read(model, BYTES, [TOKENS], shown=60, plasticity=Plasticity(frozen=True))
    assert not reading.written.any()
    assert all(np.isinf(head.half_life) for head in reading.holdings.heads)
    path = write_report(tmp_path / "r.html", About("t", "m", "c"), reading.holdings, reading)
    assert "never" in path.read_text(encoding="utf-8") and 'class="skipped"' in path.read_text(encoding="utf-8")
    assert data(path, "reading")["sources"][0]["positions"][-1] == []


def test_what_cannot_be_read_is_refused(model: TextSSMN) -> None:
    with pytest.raises(RangeError, match="read: the text is empty"):
        read(model, BYTES, [])
    with pytest.raises(RangeError, match="read: shown=0"):
        read(model, BYTES, [TOKENS], shown=0)
    with pytest.raises(StateError, match="holdings: the state has 2 rows"):
        holdings(model.init_state(2))
    static = TextSSMN(TextSSMNConfig(vocab_size=256, hidden_dim=8, num_layers=1, num_heads=2, layer_types=("static",)))
    with pytest.raises(ConfigError, match="none has a synaptic memory"):
        read(static, BYTES, [TOKENS])


def data(path: Path, name: str) -> Any:
    (found,) = re.findall(
        rf'<script type="application/json" id="{name}">(.*?)</script>', path.read_text(encoding="utf-8")
    )
    return json.loads(found)


def test_the_page_holds_everything_and_asks_for_nothing(model: TextSSMN, tmp_path: Path) -> None:
    reading = read(model, BYTES, [TOKENS], shown=80)
    path = write_report(tmp_path / "r.html", About("A <title>", "a model", "ssmn inspect"), reading.holdings, reading)
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "default-src 'none'" in page
    tags = re.sub(r"<(script|style)[^>]*>.*?</\1>", r"<\1>", page, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href|srcset)=(?!\"data:,\")", tags)
    assert not re.findall(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL)))
    # The text may not end the block of data it lies in, and comes back as it was.
    assert page.count("</script>") == page.count("<script")
    inside = page[page.index('id="text"') : page.index('<aside id="sources"')]
    assert "<span>&lt;</span><span>/</span><span>s</span>" in inside and "</script" not in inside
    assert inside.count("<span") == 80
    answers = data(path, "reading")
    assert [len(answers["importance"]), len(answers["importance"][0]), len(answers["surprise"])] == [2, 80, 80]
    weights = answers["sources"][1]["weights"][-1]
    assert [abs(share) for share in weights] == sorted((abs(share) for share in weights), reverse=True)
    figures = data(path, "figures")
    assert {name: len(drawings) for name, drawings in figures.items()} == {
        "along": 1, "memory": 6, "spectrum": 6, "memory-map": 2, "window-map": 3, "forgetting": 6,
    }  # fmt: skip
    assert set(re.findall(r'class="plot" data-figure="([\w-]+)"', page)) == set(figures)


def test_a_state_alone_and_one_without_a_memory(model: TextSSMN, tmp_path: Path) -> None:
    stream = Stream(model)
    stream.push(torch.from_numpy(TOKENS[:3].astype(np.int64)).unsqueeze(0))
    path = write_report(tmp_path / "s.html", About("s", "m", "c"), holdings(stream.state))
    assert set(data(path, "figures")) == {"memory", "spectrum"}
    assert "75 %" in path.read_text(encoding="utf-8")  # three of four slots
    static = TextSSMN(TextSSMNConfig(vocab_size=256, hidden_dim=8, num_layers=1, num_heads=2, layer_types=("static",)))
    held = holdings(static.init_state(1))
    path = write_report(tmp_path / "n.html", About("n", "m", "c"), held)
    assert data(path, "figures") == {}
    assert "has no synaptic memory" in path.read_text(encoding="utf-8")
    assert pictures(held) == {}


MEMBERS = ("static", "plastic", "lru", "amn", "hopfield", "ntm")
PARTS = {
    "layer 2: linear recurrence": (2, 6),
    "layer 3: associative memory": (12, 12),
    "layer 4, head 0: stored patterns": (9, 6),
    "layer 4, head 1: stored patterns": (9, 6),
    "layer 5: tape of the Turing machine": (9, 6),
}
SIZES: dict[str, Any] = {
    "hidden_dim": 12, "num_layers": 6, "num_heads": 2, "window_size": 5, "layer_types": MEMBERS, "memory_slots": 9,
}  # fmt: skip


def test_states_of_standard_models_with_members_of_the_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(2)
    config = SSMNConfig(input_dim=2, output_dim=1, targets=(1,), missing="mask", readout="delta", **SIZES)
    rows = SSMN(config).eval()
    rows.save_pretrained(tmp_path / "rows")
    stream, x = Stream(rows), torch.randn(1, 30, 2)
    stream.push(x, target=x[..., 1:])
    stream.save(tmp_path / "state.safetensors")
    held = holdings(stream.state)
    assert [head.name for head in held.heads] == ["layer 1, head 0"] and list(held.windows) == [0]
    assert {found.name: found.values.shape for found in held.parts} == PARTS
    patterns = stream.state.layers[4].keys[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(held.parts[3].values, patterns[:, 1])
    assert held.parts[3].energy == pytest.approx(9.0, rel=1e-5)  # patterns of unit length
    assert np.isnan(held.parts[0].effective_rank) and 1 < held.parts[3].effective_rank <= 6
    words = ["inspect", tmp_path / "rows", "--state", tmp_path / "state.safetensors"]
    words += ["--report", tmp_path / "r.html", "--pictures", tmp_path / "drawn"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "Other memories" in out and "stored patterns" in out and "9 × 6" in out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "What the other layers hold" in page and "SSMN, " in page and "hopfield, ntm" in page
    figures = data(tmp_path / "r.html", "figures")
    assert [figure["name"] for figure in figures["others"]] == list(PARTS) and set(figures) == {
        "memory", "spectrum", "others",
    }  # fmt: skip
    assert [path.stem for path in sorted((tmp_path / "drawn").iterdir())] == ["memory", "others", "spectra"]


def test_a_text_is_read_by_a_model_with_members_of_the_family(tmp_path: Path) -> None:
    torch.manual_seed(2)
    mixed = TextSSMN(TextSSMNConfig(vocab_size=256, **SIZES)).eval()
    reading = read(mixed, BYTES, [TOKENS], shown=60)
    assert reading.trace.layers == (1,) and {found.name for found in reading.holdings.parts} == set(PARTS)
    path = write_report(tmp_path / "r.html", About("t", "m", "c"), reading.holdings, reading)
    assert {"memory", "others", "along", "forgetting"} < set(data(path, "figures"))
    alone = TextSSMN(TextSSMNConfig(vocab_size=256, **{**SIZES, "num_layers": 1, "layer_types": ("lru",)}))
    with pytest.raises(ConfigError, match="layers are lru: none has a synaptic memory"):
        read(alone, BYTES, [TOKENS])
    held = holdings(alone.init_state(1))
    path = write_report(tmp_path / "s.html", About("s", "m", "c"), held)
    assert set(data(path, "figures")) == {"others"} and list(pictures(held)) == ["others"]


def test_states_that_the_engine_made(model: TextSSMN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = tmp_path / "model", SSMN(ROWS).eval()
    model.save_pretrained(folder)
    rows.save_pretrained(tmp_path / "rows")
    engine, values = Engine(model), torch.randn(1, 40, 2)
    for token in TOKENS[:40].astype(np.int64):
        engine.step(token.reshape(1))
    engine.get_state(0).save(tmp_path / "text.safetensors", model)
    other = Stream(rows, backend="engine")
    other.push(values)
    other.save(tmp_path / "rows.safetensors")
    plain = model(torch.from_numpy(TOKENS[None, :40].astype(np.int64)))[1]
    for mine, theirs in zip(holdings(engine.get_state(0)).heads, holdings(plain).heads, strict=True):
        np.testing.assert_allclose(mine.memory, theirs.memory, atol=1e-4)
    for place, name in ((folder, "text"), (tmp_path / "rows", "rows")):
        words = ["inspect", place, "--state", tmp_path / f"{name}.safetensors", "--report", tmp_path / f"{name}.html"]
        assert main([str(word) for word in words]) == 0
        assert re.search(r"position\s+40\b", capsys.readouterr().out)
        assert set(data(tmp_path / f"{name}.html", "figures")) == {"memory", "spectrum"}


def test_a_large_memory_is_drawn_by_its_largest_entries() -> None:
    memory = np.zeros((7, 5), np.float32)
    memory[1, 1], memory[0, 0], memory[6, 4] = -3.0, 2.0, 1.0
    joined, cell = _joined(memory, 3)
    assert cell == 3
    np.testing.assert_array_equal(joined, [[-3, 0], [0, 0], [0, 1]])
    assert _joined(memory, 7) == (memory, 1)


def test_two_forks_part_where_their_texts_do(model: TextSSMN) -> None:
    other = TOKENS.copy()
    other[60:] = other[60:][::-1]
    found = part(model, TOKENS, other[:200], places=11)
    assert found.fork == 0 and found.positions.tolist() == list(range(0, 201, 20))
    assert list(found.distances) == [f"layer {n}, head {h}" for n in (1, 3) for h in (0, 1, 2)]
    _, state = model(torch.from_numpy(np.stack([TOKENS[:200], other[:200]]).astype(np.int64)))
    for (name, row), (layer, head) in zip(
        found.distances.items(), [(n, h) for n in (1, 3) for h in (0, 1, 2)], strict=True
    ):
        assert (row[:4] < 1e-6).all() and (row[4:] > 1e-3).all() and (row <= 1).all(), name
        left, right = state.layers[layer].memory[:, head]
        assert row[-1] == pytest.approx(float((left - right).norm() / (left.norm() + right.norm())), rel=1e-3)
    later = part(model, TOKENS[60:], other[60:200], state=model(torch.from_numpy(TOKENS[None, :60].astype(int)))[1])
    assert later.fork == 60 and later.positions[-1] == 200
    assert later.distances["layer 1, head 0"][-1] == pytest.approx(found.distances["layer 1, head 0"][-1], rel=1e-3)
    with pytest.raises(RangeError, match="part: the texts have 0 and 3 tokens"):
        part(model, TOKENS[:0], TOKENS[:3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, page, state = tmp_path / "notes.txt", tmp_path / "notes.html", tmp_path / "s.safetensors"
    text.write_text(TEXT, encoding="utf-8")
    other, drawings = tmp_path / "other.txt", tmp_path / "drawn"
    other.write_text(TEXT[::-1], encoding="utf-8")
    words = ["inspect", folder, "--text", text, "--beside", other, "--limit", 70, "--top", 2]
    words += ["--report", page, "--pictures", drawings]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "70 tokens from position 0" in out and "100.0% written" in out
    assert "What the memory did with notes.txt" in page.read_text(encoding="utf-8")
    assert "from the fork's after 70 tokens" in out and "Two streams after a fork" in page.read_text(encoding="utf-8")
    drawn = ["along-text", "attention", "distance", "forgetting", "memory", "spectra"]
    assert [path.stem for path in sorted(drawings.iterdir())] == drawn

    from ssmn.models import load_model

    stream = Stream(load_model(folder))  # type: ignore[arg-type]
    stream.push(torch.zeros(1, 4, dtype=torch.int64))
    stream.save(state)
    assert main(["inspect", str(folder), "--state", str(state)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"position\s+4\b", out) and "80%" in out and "half-life" not in out
    assert main(["inspect", str(folder), "--state", str(state), "--text", str(text), "--limit", "9"]) == 0
    assert "9 tokens from position 4" in capsys.readouterr().out


def test_the_command_refuses_what_makes_no_sense(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object, code: int) -> str:
        assert main(["inspect", *map(str, words)]) == code
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    rows = save_row_model(tmp_path / "rows")
    assert "--text FILE, --text FILE --writes, or --state FILE" in refused(folder, code=2)
    assert "are about a text: add --text FILE" in refused(folder, "--state", "x", "--limit", 3, code=2)
    assert "does not exist" in refused(folder, "--state", tmp_path / "absent", code=1)
    (tmp_path / "t.txt").write_text("a")
    assert "holds a Standard model" in refused(rows, "--text", tmp_path / "t.txt", code=1)
    two = tmp_path / "two.safetensors"
    from ssmn.models import load_model

    Stream(load_model(folder), batch_size=2).save(two)  # type: ignore[arg-type]
    assert "holds 2 streams; wanted one" in refused(folder, "--state", two, code=1)
