"""The language parts of the quality benchmark, in tiny: their sums, their texts, and whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmn import Plasticity
from ssmn.bench import quality
from ssmn.bench.quality.frame import Options
from ssmn.bench.quality.text import lm, second_reading, shakespeare, texts
from ssmn.bench.quality.text.language import GENRES, language, stretches
from ssmn.errors import FileError
from ssmn.plots import Look
from tiny import text_model

LINE = "the cat sat on the mat, and the dog sat on the log.\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus as `make corpus` lays it out, with a source for each genre."""
    folder = tmp_path_factory.mktemp("text")
    for part, times in (("train", 60), ("validation", 30), ("held-out", 40)):
        for genre in GENRES:
            (folder / part / f"some-{genre}").mkdir(parents=True)
            (folder / part / f"some-{genre}" / "a.txt").write_text(f"{genre} {part} {LINE}" * times)
    sources = [{"name": f"some-{genre}", "genre": genre} for genre in GENRES]
    (folder / "licences.json").write_text(json.dumps({"sources": sources}))
    return folder


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "tinyshakespeare.txt"
    path.write_text("".join(f"Speak {number}, speak!\n" for number in range(400)))
    return path


def test_losses_are_those_of_single_rows() -> None:
    model, tokens = text_model(), np.random.default_rng(0).integers(0, 256, (2, 30)).astype(np.uint16)
    nats, state = texts.losses(model, tokens)
    rows = torch.from_numpy(tokens.astype(np.int64))
    logits = model(rows[:, :-1])[0].log_softmax(-1)
    expected = -logits.gather(-1, rows[:, 1:, None])[..., 0]
    np.testing.assert_allclose(nats, expected.detach().numpy(), atol=1e-5)
    assert state is not None
    assert state.position.tolist() == [29, 29]
    reset, _ = texts.losses(model, tokens, context=7)
    for begin in range(0, 29, 7):
        piece, _ = texts.losses(model, tokens[:, begin : begin + 8])
        np.testing.assert_allclose(reset[:, begin : begin + 7], piece, atol=1e-5)
    lengths = np.full(256, 2)
    assert texts.bits_per_byte(nats, tokens, lengths) == pytest.approx(nats.mean() / math.log(2) / 2)
    first, after = texts.losses(model, tokens[:, :11])
    second, _ = texts.losses(model, tokens[:, 10:], state=after)
    np.testing.assert_allclose(np.concatenate([first, second], 1), nats, atol=1e-5)


def test_the_best_rate_needs_all_runs() -> None:
    assert texts.best_rate({1e-3: {"x": 2.0}, 2e-3: {"x": 1.0}}, "x") == 2e-3
    assert texts.best_rate({1e-3: {"x": 2.0}, 2e-3: None}, "x") is None
    assert texts.over_seeds([1.0]) == "1.000"
    assert texts.over_seeds([1.0, 2.0]) == "1.500 (1.000, 2.000)"


def test_rereading_scores_the_same_tokens_twice() -> None:
    model, passages = text_model(), np.arange(24).reshape(2, 12)
    lengths = np.ones(256, dtype=np.int64)
    found = second_reading.reread(model, passages, lengths, between=passages[:, ::-1])
    whole, _ = texts.losses(model, np.concatenate([passages, passages[:, ::-1], passages], 1))
    assert found["first"] == pytest.approx(whole[:, :11].mean() / math.log(2), rel=1e-6)
    assert found["second"] == pytest.approx(whole[:, -11:].mean() / math.log(2), rel=1e-6)
    assert found["gain"] == pytest.approx(1 - found["second"] / found["first"])
    long = np.arange(40).reshape(1, 40)  # longer than the window of every layer together
    frozen = second_reading.reread(model, long, lengths, plasticity=Plasticity(frozen=True))
    assert frozen["gain"] == pytest.approx(0.0, abs=0.02)


def test_the_corpus_is_read_once_by_genre(corpus: Path, tmp_path: Path) -> None:
    options = Options(tmp_path, text=corpus, quick=True)
    words = language(options)
    decoded = {genre: words.tokenizer.decode(words.held_out[genre]) for genre in GENRES}
    assert decoded == {genre: f"{genre} held-out {LINE}" * 40 for genre in GENRES}
    assert "held-out" not in words.tokenizer.decode(words.train.steps)
    rows = stretches(words.held_out["code"], 3, 20)
    assert rows.shape == (3, 20)
    np.testing.assert_array_equal(rows[0], words.held_out["code"][:20])
    assert stretches(words.held_out["code"], 3, 10**6).shape == (1, len(words.held_out["code"]))
    with pytest.raises(FileError, match="make the corpus by `make corpus`"):
        language(Options(tmp_path, text=tmp_path / "none"))


def test_small_runs_of_the_language_parts(corpus: Path, tmp_path: Path) -> None:
    chosen = [
        "small-ssmn-rate-*",
        "small-ssmn-0",
        "small-transformer-rate-*",
        "small-transformer-0",
        "small-mamba-2-*",
        "small-ssmn-hebbian-0",
        "short-ssmn-hebbian-0",
        "shipped-*",
    ]
    results = quality.measure_quality(
        ["lm", "second-reading"], out=str(tmp_path), seeds=1, text=str(corpus), quick=True, only=chosen
    )
    runs = results["parts"]["lm"]
    assert set(runs) == {
        "small-ssmn-rate-0.003", "small-ssmn-0", "small-transformer-rate-0.003", "small-transformer-0",
        "small-mamba-2-rate-0.003", "small-mamba-2-0", "small-ssmn-hebbian-0", "short-ssmn-hebbian-0",
    }  # fmt: skip
    counts = [run["results"]["parameters"] for run in runs.values()]
    assert max(counts) <= 1.01 * 40_000
    assert min(counts) >= 0.99 * 40_000
    assert runs["small-ssmn-hebbian-0"]["settings"]["run"]["model"]["update_rule"] == "hebbian"
    # A short run of a change stands beside the run of the choice of rates that it differs from by that change alone.
    short, base = (runs[name]["settings"]["run"] for name in ("short-ssmn-hebbian-0", "small-ssmn-rate-0.003"))
    assert {**short["model"], "update_rule": "delta"} == base["model"]
    assert short["train"] == base["train"]
    (row,) = next(table for table in lm.PART.tables(runs) if table.title.startswith("ours with one change")).rows
    ours, theirs = (
        runs[name]["results"]["bits_per_byte"] for name in ("small-ssmn-rate-0.003", "short-ssmn-hebbian-0")
    )
    assert row == ["hebbian", "0", f"{ours:.3f}", f"{theirs:.3f}", f"{100 * (theirs / ours - 1):+.1f} %"]
    both = runs["small-ssmn-0"]["results"]
    assert both["carried"]["all"] == pytest.approx(np.mean([both["carried"][genre] for genre in GENRES]), rel=0.2)
    tables = quality.tables(results)
    assert [row[0] for row in tables[0].rows] == ["ssmn", "transformer", "mamba-2", "ssmn-hebbian"]
    again = results["parts"]["second-reading"]
    assert "frozen" in again["small-ssmn-0"]["results"]
    assert "frozen" not in again["small-mamba-2-0"]["results"]
    assert "all_in_view" in again["small-transformer-0"]["results"]
    assert "all_in_view" not in again["small-ssmn-0"]["results"]
    shipped = [again[f"shipped-{name}-0"]["results"] for name in ("plain", "output-memory")]
    assert shipped[0]["at_once"]["gain"] < shipped[1]["at_once"]["gain"]
    assert second_reading.drawing(again, Look()) is not None
    for table in tables:
        assert all(len(row) == len(table.head) for row in table.rows)


def test_the_gain_ends_where_it_stays_below_one_percent() -> None:
    def shown(*gains: float) -> str:
        by_length = {2**n: {"gain": gain} for n, gain in enumerate(gains)}
        result = {"at_once": {"first": 2.0, "second": 1.0, "gain": 0.5}, "by_length": by_length}
        return second_reading.tables({"small-x-0": {"results": json.loads(json.dumps(result))}})[1].rows[0][-1]

    assert shown(0.5, 0.002, 0.3, 0.009) == "8"
    assert shown(0.5, 0.3) == "over 2"
    assert shown(0.001, 0.002) == "1"


def test_small_runs_of_the_characters(play: Path, tmp_path: Path) -> None:
    results = quality.measure_quality(
        ["shakespeare"],
        out=str(tmp_path),
        seeds=1,
        shakespeare=str(play),
        quick=True,
        only=["small-ssmn-rate*", "small-ssmn-0"],
    )
    runs = results["parts"]["shakespeare"]
    assert set(runs) == {"small-ssmn-rate-0.003", "small-ssmn-0"}
    [table, choice] = quality.tables(results)
    assert table.rows[0][:2] == ["small", "ssmn"]
    assert len(choice.rows) == 1


def test_what_is_held_out_is_never_chosen_on(play: Path) -> None:
    train, late = shakespeare.corpora(play, choosing=False)
    begin, middle = shakespeare.corpora(play, choosing=True)
    whole = play.read_bytes()
    assert train.tokenizer is not None
    assert train.tokenizer.decode_bytes(train.steps) + train.tokenizer.decode_bytes(late.steps) == whole
    assert train.tokenizer.vocab_size == len(set(whole))
    assert np.array_equal(np.concatenate([begin.steps, middle.steps]), train.steps)
    assert len(late) == round(0.1 * len(whole))
    with pytest.raises(FileError, match="give the file by --shakespeare"):
        shakespeare.corpora(play / "none", choosing=False)


def test_full_budgets_have_equal_sizes() -> None:
    for name in lm._models("large"):
        settings = lm._settings("large", name, 1e-3, 0, quick=False)["run"]
        assert settings["train"]["steps"] * settings["train"]["batch_size"] * settings["train"]["piece_length"] >= 2e7
    assert set(lm._models("large")) <= set(lm._models("small"))
    for name in shakespeare.MODELS:
        shakespeare._settings("small", name, 1e-3, 0, quick=False)
    steps = shakespeare.BUDGETS["small"]["train"]
    assert steps["steps"] * steps["batch_size"] * steps["piece_length"] == 2_000 * 768
