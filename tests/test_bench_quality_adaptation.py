"""The parts `output-memory` and `encoder` of the quality benchmark, on texts of a few words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssmn.bench import quality
from ssmn.bench.quality.text import brown, encoder
from ssmn.bench.quality.text import output_memory as adaptation
from ssmn.errors import FileError
from ssmn.training import Tokenizer
from tiny import save_text_model

SENTENCE = "the quick memory of a stream forgets nothing that it was told twice\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for part in ("train", "validation", "held-out"):
        folder = tmp_path / "data" / "text" / part / "book"
        folder.mkdir(parents=True)
        (folder / "long.txt").write_text(SENTENCE * 30)
        (folder / "longer.txt").write_text(SENTENCE * 40)
    return tmp_path / "data" / "text"


def test_the_output_memory_is_measured_beside_its_rivals(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "LONG", 1_000)
    model = save_text_model(tmp_path / "model")
    found = quality.measure_quality(
        ["output-memory"], out=str(tmp_path / "out"), text=str(corpus), model=str(model), quick=True
    )
    assert found["complete"]
    row = found["parts"]["output-memory"]["held-out"]["results"]["documents"][0]
    assert row["output memory"][0] < row["model"]
    gains, cost = quality.tables(found)
    assert [line[0] for line in gains.rows] == ["book/long.txt", "median", "worst"]
    assert float(gains.rows[0][3]) > 0
    assert len(cost.rows) == 2


def test_a_corpus_without_long_documents_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = save_text_model(tmp_path / "model")
    with pytest.raises(FileError, match="validation has no document of 50,000 tokens"):
        quality.measure_quality(["output-memory"], out=str(tmp_path), text=str(corpus), model=str(model), quick=True)


def reading(tokens: list[int], hidden: torch.Tensor) -> adaptation.Reading:
    return adaptation.Reading("", torch.tensor(tokens), hidden, torch.zeros(4, hidden.shape[1]), 1)


def test_caches_by_hand() -> None:
    here = reading([1, 2, 1, 2, 3], torch.eye(2)[torch.tensor([0, 1, 0, 1])])
    unigram, share = adaptation._unigram(here, {"share": 0.1, "decay": 0.0})
    np.testing.assert_allclose(unigram, [0, 1 / 2, 1 / 3, 0])
    assert share == 0.1
    bigram, shares = adaptation._bigram(here, {"share": 0.1, "trust": 1.0})
    np.testing.assert_allclose(bigram, [0, 0, 1, 0])
    np.testing.assert_allclose(shares, [0, 0, 0.05, 0.05])
    neural, shares = adaptation._neural(here, {"share": 0.1, "sharpness": 1e3})
    np.testing.assert_allclose(neural, [0, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(shares, [0, 0.1, 0.1, 0.1])


def test_the_encoder_is_measured_and_probed(corpus: Path, tmp_path: Path) -> None:
    folder = corpus.parent / "brown"
    with pytest.raises(FileError, match=r"does not hold the Brown corpus; fetch it: python -m ssmn\.bench"):
        brown.read(folder)
    folder.mkdir()
    text = "a/at x/nn was/bedz ./. I/ppss x/vb it/ppo ,/, I/ppss x/vb ./.\n"
    for name in ("ca01", "ca02"):
        (folder / name).write_text(text * 30)
    found = quality.measure_quality(
        ["encoder"], out=str(tmp_path / "out"), text=str(corpus), seeds=1, quick=True, only=("*",)
    )
    assert found["complete"]
    learned, shipped, probed = quality.tables(found)
    assert [row[0] for row in learned.rows] == ["without", "with"]
    accuracy = {row[0]: float(row[2]) for row in probed.rows}
    assert accuracy["most frequent part of speech of the form"] == pytest.approx(100 * 2 / 3, abs=1)
    assert [row[0] for row in shipped.rows][:3] == [row[0] for row in probed.rows][:3]
    assert accuracy["the last four embeddings, side by side"] > accuracy["plain embedding"]


def test_words_end_where_their_last_token_does() -> None:
    words = encoder._words([brown.words_of("An/at ox/nn ./.")], Tokenizer.for_bytes(), 9)
    assert bytes(words.tokens.tolist()) == b" An ox."
    assert words.ends.tolist() == [2, 5, 6]
    assert words.whole.tolist() == [False, False, True]
