"""The parts of the quality benchmark about the memory: each runs from end to end in tiny sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ssmn.bench.quality.frame import Options, Part, Result, Run, finished, work
from ssmn.bench.quality.memory import distance, forgetting, hops, recall, sparse
from ssmn.config import TextSSMNConfig
from ssmn.models import TextSSMN
from ssmn.plots import Look
from ssmn.training.tasks import RecallInText

WORDS = "the quick brown fox jumps over a lazy dog and sleeps until the morning comes again\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for side in ("train", "validation", "held-out"):
        for name in ("one", "two"):
            (root / side / name).mkdir(parents=True)
            (root / side / name / "middle.txt").write_text(f"{side} {name} {WORDS}" * 40, encoding="utf-8")
    return root


def done(part: Part, corpus: Path, out: Path, only: list[str]) -> Mapping[str, Result]:
    options = Options(out, seeds=1, text=corpus, quick=True)
    work(part, options, only=only)
    return finished(part, out)


def test_hops(corpus: Path, tmp_path: Path) -> None:
    runs = done(hops.PART, corpus, tmp_path, ["3-hops-0", "3-hops-no-chat-0"])
    assert sorted(runs["3-hops-0"]["results"]["accuracy"]) == ["0", "1", "2"]
    table = hops.PART.tables(runs)[0]
    assert [row[:3] for row in table.rows] == [
        ["3 hops", "2", "2"], ["3 hops", "2", "1"], ["3 hops", "2", "0"], ["3 hops, no chat", "0", "0"],
    ]  # fmt: skip
    assert table.head[-1] == "seed 0"


def test_recall(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = done(recall.PART, corpus, tmp_path, ["synaptic*", "Gated*-64-*"])
    assert len(runs) == 3 * 2 + 2
    # One training and one mixer differ; the state of 64 x 64 is the same, but for what a short convolution keeps.
    ours, theirs = (runs[f"{name}-64-0.005-0"]["results"] for name in ("synaptic-memory", "Gated-DeltaNet-style"))
    assert 0 < theirs["state_bytes"] - ours["state_bytes"] < 4096
    (table,) = recall.PART.tables(runs)
    assert len(table.rows) == 8
    assert "8,192" in table.title
    assert recall.PART.drawing(runs, Look()) is not None


def test_recall_of_the_small_size_stands_apart(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = done(recall.PART, corpus, tmp_path, ["small-full-attention-16-*", "synaptic*-64-*"])
    small, published = recall.PART.tables(runs)
    assert [row[1] for row in small.rows] == ["16", "16", "16"]
    assert [row[1] for row in published.rows] == ["64", "64"]
    figure = recall.PART.drawing(runs, Look())
    assert figure is not None
    assert {line.get_label() for axes in figure.axes for line in axes.lines} == {"full attention"}


def test_distance(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = done(distance.PART, corpus, tmp_path, ["free-0"])
    results = runs["free-0"]["results"]
    assert results["recall"]["as trained"].keys() == {"16", "64"}
    assert 0 <= results["writes"]["text_above_0.5"] <= results["writes"]["text_above_0.1"] <= 1
    recall, gates = distance.PART.tables(runs)
    assert len(recall.rows) == len(distance.CALLS)
    assert len(gates.rows) == 1
    assert distance.PART.drawing(runs, Look()) is not None


def test_the_questions_leave_no_trace(corpus: Path) -> None:
    task = RecallInText(text=str(corpus), vocab_size=300, pairs=4, text_bytes=20_000)
    model = TextSSMN(TextSSMNConfig(vocab_size=300, hidden_dim=16, num_layers=2, num_heads=2, window_size=4))
    both = distance.recall_at(model, task, [30, 90], rows=6, piece_length=17)
    assert both[90] == distance.recall_at(model, task, [90], rows=6)[90]
    # A model that has the answers: what it reads decides what it says.
    batch = dataclasses.replace(task, distance=90).batch(0, batch_size=6, split="test")
    assert batch.mask is not None
    output, _ = model(batch.inputs)
    wanted = (output[batch.mask].argmax(-1) == batch.targets[batch.mask]).float().mean()
    assert both[90] == pytest.approx(float(wanted))


def test_forgetting(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = done(forgetting.PART, corpus, tmp_path, ["*"])
    recall = runs["stream-0"]["results"]["recall"]
    assert recall.keys() == {"64", "256"}
    asked = sum(count for kind in recall["256"].values() for _, count in kind.values())
    assert 4 < asked <= 256 / 16
    assert len(forgetting.PART.tables(runs)[1].rows) == 4
    assert forgetting.PART.drawing(runs, Look()) is not None


def test_the_stream_of_facts_states_what_it_says(corpus: Path) -> None:
    task = RecallInText(text=str(corpus), vocab_size=300, text_bytes=20_000)
    stream = forgetting.FactStream(task, seed=3)
    tokens = np.concatenate([stream.read(64), stream.read(320)])
    assert len(tokens) == 384
    assert (tokens == task.fact).sum() == stream.slot == 24
    newest = {tokens[i + 1]: (tokens[i + 2], i // 16) for i in range(0, 384, 16)}
    assert newest == {key: (value, stream.stated[key]) for key, value in stream.values.items()}
    assert tokens[1::64].tolist() == stream.rehearsed[:6]


@pytest.mark.parametrize("of", ["recall", "text"])
def test_sparse(of: str, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = done(sparse.PART, corpus, tmp_path, [f"{of}-free-0", f"{of}-penalty*"])
    free = runs[f"{of}-free-0"]["results"]["points"]
    written = [point["written"] for point in free]
    if of == "text":
        assert written == pytest.approx(sparse.SHARES, abs=0.05)
    else:  # most tokens are the same filler, which all fall under the threshold where not all of them fit
        assert written[0] == 1
        assert all(share <= wanted + 0.05 for share, wanted in zip(written, sparse.SHARES, strict=True))
    penalty = next(run for name, run in runs.items() if "penalty" in name)["results"]["points"]
    assert [point["threshold"] for point in penalty] == [sparse.THRESHOLDS[of]]
    rows = sparse.PART.tables(runs)[0].rows
    assert rows[0][-1] == "+0.00 %"
    assert sparse.PART.drawing(runs, Look()) is not None


def test_times_of_sparse_writes() -> None:
    found = sparse.times(64, 1)
    assert len(found) == 3
    assert all(of.keys() >= {"1.0", "0.5", "0.1"} and min(of.values()) > 0 for of in found.values())
    table = sparse.PART.tables({"time": {"settings": {"of": "time"}, "results": found}})[0]
    assert len(table.rows) == 3


def test_every_run_has_a_name_of_its_own(corpus: Path, tmp_path: Path) -> None:
    for part in (recall.PART, hops.PART, distance.PART, forgetting.PART, sparse.PART):
        names: list[str] = []
        generator = part.runs(Options(tmp_path, seeds=2, text=corpus))
        run: Run | None = next(generator)
        while run is not None:
            names.append(run.name)
            run = next(generator, None)
        assert len(set(names)) == len(names) > 1
