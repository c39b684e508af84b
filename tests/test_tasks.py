"""Every task asks what it says it asks, and a batch depends on nothing but seed, step and split."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ssmn.errors import ConfigError
from ssmn.training import TASKS, Batch, Task
from ssmn.training.settings import task_from_dict
from ssmn.training.tasks import LinearSystem

SMALL: dict[str, dict[str, object]] = {
    "copy": {"length": 5},
    "mqar": {"pairs": 6},
    "mqar-rebound": {"pairs": 6, "rebinds": 3},
    "mqar-spread": {"pairs": 6, "length": 40, "vocab_size": 200},
    "multi-hop": {"chains": 4, "hops": 3},
    "distance": {"pairs": 3, "distance": 40},
    "drift": {"dim": 3, "length": 90, "switch_after": 20},
    "system": {"dim": 3, "length": 90, "switch_after": 20},
}


def make(name: str, **changes: object) -> Task:
    return task_from_dict({"name": name, **SMALL[name], **changes})


def rows(batch: Batch) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Per row the tokens, and (position, answer) of every question."""
    assert batch.mask is not None
    return [
        (tokens.tolist(), [(int(t), int(targets[t])) for t in mask.nonzero().flatten()])
        for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True)
    ]


def test_every_task_is_tried() -> None:
    assert {*SMALL, "text-recall"} == TASKS.keys()  # text-recall needs a text: tests/test_filler.py


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_a_function_of_seed_step_and_split(name: str) -> None:
    task = make(name)
    first = task.batch(3, batch_size=2, seed=7)
    torch.rand(5)
    again = make(name).batch(3, batch_size=2, seed=7)
    torch.testing.assert_close(first.inputs, again.inputs, rtol=0, atol=0)
    torch.testing.assert_close(first.targets, again.targets, rtol=0, atol=0)
    others: list[Batch] = [
        task.batch(4, batch_size=2, seed=7),
        task.batch(3, batch_size=2, seed=8),
        task.batch(3, batch_size=2, seed=7, split="test"),
    ]
    assert all(not _same(first.inputs, other.inputs) for other in others)
    assert first.fresh


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("drift", "system")])
def test_tokens_fit_the_model(name: str) -> None:
    batch = make(name, vocab_size=200).batch(0, batch_size=3)
    assert batch.inputs.shape == batch.targets.shape
    assert 0 <= int(batch.inputs.min()) <= int(batch.inputs.max()) < 200
    assert make(name, vocab_size=200).model_settings() == {"kind": "text", "vocab_size": 200}


def test_copy_repeats_the_sequence() -> None:
    for tokens, asked in rows(make("copy").batch(0, batch_size=3)):
        assert tokens[0] == tokens[6] == 0
        assert tokens[7:12] == tokens[1:6]
        assert [answer for _, answer in asked] == tokens[1:6]
        assert [position for position, _ in asked] == list(range(6, 11))


@pytest.mark.parametrize(("name", "facts"), [("mqar", 6), ("mqar-rebound", 24)])
def test_the_newest_value_of_a_key_is_asked(name: str, facts: int) -> None:
    for tokens, asked in rows(make(name).batch(1, batch_size=3)):
        pairs = dict(zip(tokens[: 2 * facts : 2], tokens[1 : 2 * facts : 2], strict=True))
        assert len(pairs) == len(asked) == 6
        assert [position for position, _ in asked] == list(range(2 * facts, 2 * facts + 6))
        assert all(pairs[tokens[position]] == answer for position, answer in asked)
        assert not set(pairs) & set(pairs.values())


def test_spread_recall_is_zoologys() -> None:
    task = make("mqar-spread")
    for tokens, asked in rows(task.batch(0, batch_size=3, split="test")):
        assert len(tokens) == 40
        pairs = dict(zip(tokens[:12:2], tokens[1:12:2], strict=True))
        assert len(set(pairs)) == len(set(pairs.values())) == len(asked) == 6
        assert all(1 <= key < 100 <= value < 200 for key, value in pairs.items())
        assert all(position >= 12 and position % 2 == 0 for position, _ in asked)
        assert sorted(tokens[position] for position, _ in asked) == sorted(pairs)
        assert all(pairs[tokens[position]] == answer for position, answer in asked)
        assert tokens.count(0) == 40 - 3 * 6
    noisy = make("mqar-spread", noise=True).batch(0, batch_size=3, split="test")
    assert int(noisy.inputs.min()) > 0
    batches = [task.batch(step, batch_size=1).mask for step in range(12)]
    assert {int(mask.sum()) for mask in batches if mask is not None} == {4, 6}


def test_spread_questions_come_soon_by_a_power_law() -> None:
    near, far = (make("mqar-spread", pairs=4, length=200, vocab_size=300, power=power) for power in (0.01, 1.0))
    means = []
    for task in (near, far):
        mask = task.batch(0, batch_size=64, split="test").mask
        assert mask is not None
        means.append(float(mask.nonzero()[:, 1].float().mean()))
    assert means[0] < 8 + 0.25 * 192 < 8 + 0.45 * 192 < means[1]


def test_multi_hop_answers_are_that_many_facts_away() -> None:
    for tokens, asked in rows(make("multi-hop").batch(0, batch_size=3)):
        facts = {tokens[i + 1]: tokens[i + 2] for i in range(0, 3 * 4 * 3, 3)}
        assert tokens[0 : 3 * 4 * 3 : 3] == [0] * 12
        assert len(asked) == 4
        for position, answer in asked:
            assert tokens[position - 1] == 0
            assert facts[facts[facts[tokens[position]]]] == answer


@pytest.mark.parametrize("filler", ["noise", "pairs"])
def test_distance_keeps_the_questions_away_from_the_facts(filler: str) -> None:
    task = make("distance", filler=filler)
    for tokens, asked in rows(task.batch(0, batch_size=3, split="test")):
        assert len(tokens) == 6 + 40 + 3
        pairs = dict(zip(tokens[:6:2], tokens[1:6:2], strict=True))
        assert [pairs[tokens[position]] for position, _ in asked] == [answer for _, answer in asked]
        stretch = tokens[6:46]
        assert not set(pairs) & set(stretch)
        values = range(8 + 256, 8 + 512)
        assert all(token in values for token in stretch[1::2]) == (filler == "pairs")
    lengths = {task.batch(step, batch_size=1).inputs.shape[1] for step in range(8)}
    assert len(lengths) > 1
    assert max(lengths) <= 49


def test_the_drifting_system_is_a_rotation_between_its_switches() -> None:
    task = make("drift")
    batch = task.batch(0, batch_size=2)
    assert task.model_settings() == {"kind": "standard", "input_dim": 3, "output_dim": 3}
    assert batch.mask is None
    assert batch.elapsed is not None
    torch.testing.assert_close(batch.inputs[:, 1:], batch.targets[:, :-1])
    torch.testing.assert_close(batch.inputs.square().mean(-1), torch.ones(2, 90))
    for inputs, targets, elapsed in zip(batch.inputs, batch.targets, batch.elapsed, strict=True):
        switches = [*(elapsed == 0).nonzero().flatten().tolist(), 90]
        gaps = [later - now for now, later in itertools.pairwise(switches)]
        assert all(10 <= gap <= 30 for gap in gaps[:-1])
        for begin, end in itertools.pairwise(switches):
            if end - begin > 8:
                x, y = inputs[begin:end].double(), targets[begin:end].double()
                a = torch.linalg.lstsq(x[:6], y[:6]).solution
                torch.testing.assert_close(x @ a, y, rtol=0, atol=1e-4)


def test_the_linear_system_obeys_its_rule_between_its_switches() -> None:
    task = make("system", noise=0.0)
    batch = task.batch(0, batch_size=2)
    assert task.model_settings() == {"kind": "standard", "input_dim": 6, "output_dim": 3}
    assert batch.elapsed is not None
    torch.testing.assert_close(batch.inputs[:, 1:, :3], batch.targets[:, :-1])
    for inputs, targets, elapsed in zip(batch.inputs, batch.targets, batch.elapsed, strict=True):
        switches = [*(elapsed == 0).nonzero().flatten().tolist(), 90]
        for begin, end in itertools.pairwise(switches):
            if end - begin > 9:
                x, y = inputs[begin:end].double(), targets[begin:end].double()
                both = torch.linalg.lstsq(x[:9], y[:9]).solution
                torch.testing.assert_close(x @ both, y, rtol=0, atol=1e-3)
                radius = torch.linalg.eigvals(both[:3].T).abs().max()
                assert radius.item() == pytest.approx(0.95, abs=1e-3)


def test_the_linear_system_has_the_variance_and_the_noise_that_it_says() -> None:
    batch = LinearSystem(dim=5, length=60, switch_after=10_000, noise=0.05).batch(0, batch_size=400)
    last = batch.targets[:, -20:]
    assert last.var().item() == pytest.approx(1.0, abs=0.1)
    one = LinearSystem(dim=2, length=4000, switch_after=10**6, noise=0.05).batch(0, batch_size=1)
    x, y = one.inputs[0].double(), one.targets[0].double()
    rest = y - x @ torch.linalg.lstsq(x, y).solution
    assert rest.var().item() == pytest.approx(0.05, rel=0.1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="task: name='mqr'; wanted one of copy, mqar"):
        task_from_dict({"name": "mqr"})
    with pytest.raises(ConfigError, match="unknown setting 'pair'; did you mean 'pairs'"):
        task_from_dict({"name": "mqar", "pair": 3})
    with pytest.raises(ConfigError, match="task mqar: pairs=0; wanted at least 1"):
        make("mqar", pairs=0)
    with pytest.raises(ConfigError, match="pairs=600; wanted at most 512 with vocab_size=1032"):
        make("mqar", pairs=600)
    with pytest.raises(ConfigError, match="length=1025; wanted at most 1024"):
        make("copy", length=1025)
    with pytest.raises(ConfigError, match="pairs=11; wanted at most a quarter of length=40"):
        make("mqar-spread", pairs=11)
    with pytest.raises(ConfigError, match="vocab_size=40; wanted more than length=40"):
        make("mqar-spread", vocab_size=40)
    with pytest.raises(ConfigError, match="chains=400; wanted chains"):
        make("multi-hop", chains=400)
    with pytest.raises(ConfigError, match="filler='sand'; wanted one of noise, pairs, mixed"):
        make("distance", filler="sand")
    with pytest.raises(ConfigError, match=r"task system: radius=1.0; wanted a number in \(0, 1\)"):
        make("system", radius=1.0)
    with pytest.raises(ConfigError, match=r"noise=0.5; wanted a share in \[0, 0.0975\), with radius=0.95"):
        make("system", noise=0.5)
    with pytest.raises(ConfigError, match="rebinds='two'; wanted an integer"):
        make("mqar-rebound", rebinds="two")
    with pytest.raises(ConfigError, match="length=5; wanted at most 0 with vocab_size=8"):
        make("copy", vocab_size=8)
