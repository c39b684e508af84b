"""Facts in real text: the text is split as the corpus is, and facts and questions are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmn.errors import ConfigError, TrainingError
from ssmn.training.filler import text_filler
from ssmn.training.settings import task_from_dict
from ssmn.training.tasks import RecallInText, Split

WORDS = {"train": "the quick brown fox ran\n", "held-out": "a lazy dog slept\n"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for side, words in WORDS.items():
        for number in range(3):
            (root / side / str(number)).mkdir(parents=True)
            (root / side / str(number) / "x.txt").write_text(f"{number} {words}" * 40, encoding="utf-8")
    return root


def task_of(corpus: Path, **changes: object) -> RecallInText:
    task = task_from_dict({"name": "text-recall", "text": str(corpus), "vocab_size": 280, "pairs": 3, **changes})
    assert isinstance(task, RecallInText)
    return task


def test_the_text_is_lossless_and_split(corpus: Path) -> None:
    filler = text_filler(str(corpus), 278, 10**6)
    assert filler.tokenizer.decode(filler.tokens["train"].numpy()) == "".join(
        f"{n} {WORDS['train']}" * 40 for n in range(3)
    )
    assert "fox" not in filler.tokenizer.decode(filler.tokens["held-out"].numpy())
    part = text_filler(str(corpus), 278, 600)
    assert 500 < len(part.tokenizer.decode_bytes(part.tokens["train"].numpy())) < 700
    row = filler.draw(torch.Generator().manual_seed(0), 2, 9000, "train")
    assert row.shape == (2, 9000)  # longer than the text, which begins again


@pytest.mark.parametrize("split", ["train", "test"])
def test_facts_are_stated_and_asked(corpus: Path, split: Split) -> None:
    task = task_of(corpus, distance=50)
    for step in range(6):
        batch = task.batch(step, batch_size=4, split=split)
        assert batch.mask is not None
        for tokens, targets, mask in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.mask, strict=True):
            facts = {tokens[i + 1]: tokens[i + 2] for i, token in enumerate(tokens) if token == task.fact}
            asked = mask.nonzero().flatten().tolist()
            assert len(facts) == len(asked) == 3
            assert asked == [len(tokens) - 5, len(tokens) - 3, len(tokens) - 1]
            assert all(tokens[i - 1] == task.ask and facts[tokens[i]] == targets[i] for i in asked)
            assert all(value < 278 for pair in facts.items() for value in pair)
            if split == "test":
                assert tokens[0] == tokens[3] == tokens[6] == task.fact
                assert len(tokens) == 9 + 50 + 6
    lengths = {task.batch(step, batch_size=1, split=split).inputs.shape[1] for step in range(12)}
    assert (len(lengths) == 1) == (split == "test")
    assert max(lengths) <= 65


def test_text_between_is_held_out_in_a_test(corpus: Path) -> None:
    task = task_of(corpus, distance=60, scattered=True)
    tokenizer = text_filler(str(corpus), 278, 4_000_000).tokenizer
    unseen: dict[Split, str] = {"train": "lazy dog", "test": "brown fox"}
    for split, word in unseen.items():
        batches = [task.batch(step, batch_size=4, split=split).inputs for step in range(5)]
        words = [int(token) for batch in batches for token in batch.flatten() if token < tokenizer.vocab_size]
        assert word not in tokenizer.decode(words)
    marks = (task.batch(0, batch_size=8, split="test").inputs == task.fact).nonzero()
    assert bool((marks[:, 1] > 9).any())


def test_what_is_missing_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train holds no \*\.txt; fetch a corpus with: python -m"):
        task_of(tmp_path).batch(0, batch_size=1)
    with pytest.raises(ConfigError, match="vocab_size=257; wanted at least 258"):
        task_of(corpus, vocab_size=257)
