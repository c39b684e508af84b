"""The verbs of states, one by one, and their files; whole models have their own laws."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten, treespec_dumps, treespec_loads

from fakes import FakeConfig, FakeModel, random_state
from ssmn import state as state_module
from ssmn.errors import DtypeError, FileError, RangeError, ShapeError, StateError
from ssmn.files import read_file, write_file
from ssmn.relatives.hopfield.memory import HopfieldState
from ssmn.state import (
    EncoderState,
    FieldSpec,
    Origin,
    PlasticState,
    ReadoutState,
    State,
    StreamState,
    WindowState,
    fingerprint,
    from_numpy,
    read_state_file,
    register_state,
    to_numpy,
    write_state_file,
)
from test_files import documented_script, run_script, survive

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def state(model: FakeModel) -> StreamState:
    return random_state(model)


def bits(state: State) -> dict[str, bytes]:
    return {name: to_numpy(tensor).tobytes() for name, tensor in state.named_tensors().items()}


def plastic(state: StreamState) -> PlasticState:
    layer = state.layers[1]
    assert isinstance(layer, PlasticState)
    return layer


# Verbs.


def test_named_tensors_and_sizes(state: StreamState) -> None:
    assert {name: list(tensor.shape) for name, tensor in state.named_tensors().items()} == {
        "front.recent": [3, 3, 6],
        "layers.0.keys": [3, 3, 2, 3],
        "layers.0.values": [3, 3, 2, 3],
        "layers.0.position": [3],
        "layers.1.memory": [3, 2, 3, 4],
        "layers.1.previous": [3, 6],
        "position": [3],
    }
    assert state.batch_size == state.layers[0].batch_size == 3
    assert state.nbytes == 4 * (54 + 54 + 54 + 72 + 18) + 8 * (3 + 3)
    assert state.position.tolist() == [7, 7, 7]
    assert repr(plastic(state)) == "PlasticState(memory=float32[3, 2, 3, 4], previous=float32[3, 6])"


def test_states_are_frozen(state: StreamState) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.position = torch.zeros(3)  # pyright: ignore[reportAttributeAccessIssue]


def test_forks_equal_the_parent_and_go_their_own_ways(model: FakeModel, state: StreamState) -> None:
    before = bits(state)
    forks = state.fork(3)
    assert len(forks) == 3
    for number, fork in enumerate(forks):
        assert bits(fork) == before
        for tensor in fork.named_tensors().values():
            tensor.add_(number + 1)
    assert bits(state) == before
    assert forks[0].diff(forks[2]).tensors[0].max_abs == pytest.approx(2)
    for n in (0, -1, 1.5, True):
        with pytest.raises(RangeError, match=r"fork: n=.*; wanted a whole number of copies, 1 or more"):
            state.fork(n)  # pyright: ignore[reportArgumentType]


def test_rows_of_a_merge_are_the_states(model: FakeModel) -> None:
    first, second = random_state(model, 2, 5), random_state(model, 1, 9, seed=2)
    both = StreamState.merge([first, second])
    assert both.position.tolist() == [5, 5, 9]
    assert bits(both.select([0, 1])) == bits(first)
    assert bits(both.select(torch.tensor([2]))) == bits(second)
    assert bits(both.select([2, 0, 1]).select([1, 2, 0])) == bits(both)
    assert both.select([1, 1]).batch_size == 2
    assert both.select([]).batch_size == 0
    assert bits(StreamState.merge([both.select([]), both])) == bits(both)


def test_rows_go_on_as_they_would_alone(model: FakeModel) -> None:
    first, second = random_state(model, 1, 5), random_state(model, 1, 9, seed=2)
    x = torch.randn(2, 6, 6)
    _, both = model(x, StreamState.merge([first, second]))
    for row, alone in enumerate((first, second)):
        _, alone = model(x[row : row + 1], alone)
        assert max(entry.relative for entry in both.select([row]).diff(alone)) <= 1e-5


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0, 3], RangeError, r"rows has 3; wanted 0 to 2 \(a batch of 3\)"),
        ([-1], RangeError, "rows has -1; wanted 0 to 2"),
        ([0.5], DtypeError, "rows has dtype float32; wanted whole numbers"),
        (torch.tensor([True, False, True]), DtypeError, r"rows has dtype bool; .*mask.nonzero"),
        ([[0], [1]], ShapeError, r"rows has shape \[2, 1\]; wanted one axis"),
        (1, ShapeError, r"rows has shape \[\]; wanted one axis"),
        ("all", DtypeError, "rows='all'; wanted a list of row numbers"),
    ],
)
def test_select_refuses(state: StreamState, rows: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        state.select(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: FakeModel(FakeConfig(window=9)).init_state(1),
         r"layers.0.keys has shape \[3, 3, 2, 3\] in states\[0\] but \[1, 8, 2, 3\] in states\[1\]"),
        (lambda s: s.to(torch.float64), r"front.recent has dtype float32 in states\[0\] but float64 in states\[1\]"),
        (lambda s: s.to("meta"), r"front.recent is on device cpu in states\[0\] but meta in states\[1\]"),
        (lambda s: dataclasses.replace(s, layers=s.layers[:1]),
         r"state.layers \(length\) is 2 in states\[0\] but 1 in states\[1\]"),
        (lambda s: dataclasses.replace(s, layers=s.layers[::-1]), r"state.layers.0 is 'window' in .* but 'plastic' in"),
        (lambda s: dataclasses.replace(s, front=None), r"state.front is 'encoder' in states\[0\] but None in"),
        (lambda s: s.layers[0], r"state is .* in states\[0\] but 'window' in states\[1\]"),
        (lambda s: None, r"the type is StreamState in states\[0\] but NoneType in states\[1\]"),
    ],
)  # fmt: skip
def test_merge_refuses(state: StreamState, change: Callable[[StreamState], StreamState], message: str) -> None:
    with pytest.raises(StateError, match=message):
        StreamState.merge([state, change(state)])


def test_merge_of_nothing_is_refused() -> None:
    with pytest.raises(StateError, match="states is empty; wanted at least one"):
        StreamState.merge([])


def test_detach_cuts_and_clone_keeps_the_gradient(model: FakeModel) -> None:
    x = torch.randn(2, 4, 6, requires_grad=True)
    _, state = model(x)
    assert plastic(state.clone()).memory.requires_grad
    assert plastic(state.fork(2)[1]).memory.requires_grad
    assert not any(tensor.requires_grad for tensor in state.detach().named_tensors().values())
    plastic(state.select([1])).memory.sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().max() == 0 < x.grad[1].abs().max()


def test_to_changes_floats_and_keeps_positions(state: StreamState) -> None:
    double = state.to(torch.float64)
    assert {str(tensor.dtype) for tensor in double.named_tensors().values()} == {"torch.float64", "torch.int64"}
    assert bits(double.to("cpu", torch.float32)) == bits(state)
    assert plastic(state.to(device="meta")).memory.is_meta
    with pytest.raises(DtypeError, match="to: dtype=bfloat16; wanted float32 or float64"):
        state.to(torch.bfloat16)


def test_reset_memory_empties_memory_and_previous_only(state: StreamState) -> None:
    before = bits(state)
    reset = state.reset_memory()
    changed = {name for name, value in bits(reset).items() if value != before[name]}
    assert changed == {"layers.1.memory", "layers.1.previous"}
    assert not plastic(reset).memory.any()
    assert not plastic(reset).previous.any()
    assert bits(state) == before


def test_diff_measures_and_reads_well(state: StreamState) -> None:
    same = state.diff(state.clone())
    assert same.identical
    assert str(same) == "identical (7 tensors)"
    moved = dataclasses.replace(plastic(state), memory=plastic(state).memory + 3.0)
    difference = state.diff(dataclasses.replace(state, layers=(state.layers[0], moved), position=state.position + 2))
    memory, position = difference.differing
    assert memory.name == "layers.1.memory"
    assert memory.max_abs == pytest.approx(3.0)
    assert memory.relative == pytest.approx(3.0 / max(1.0, plastic(state).memory.abs().max().item()))
    assert (position.name, position.max_abs, position.relative) == ("position", 2.0, 2.0 / 7.0)
    assert "layers.1.memory  max |difference| 3, relative" in str(difference)
    assert str(difference).endswith("2 of 7 tensors differ")
    with pytest.raises(StateError, match=r"diff: front.recent has shape \[3, 3, 6\] in this state but \[1, 3, 6\] in"):
        state.diff(state.select([0]))


def test_states_pass_through_torch_compile_without_a_break(model: FakeModel, state: StreamState) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 6)
    (y, after), (wanted, other) = compiled(x, state), model(x, state)
    torch.testing.assert_close(y, wanted)
    assert isinstance(after, StreamState)
    assert max(entry.relative for entry in after.diff(other)) <= 1e-5


def test_states_are_trees_of_their_tensors(state: StreamState) -> None:
    doubled = tree_map(lambda tensor: 2 * tensor, state)
    assert isinstance(doubled, StreamState)
    assert doubled.diff(state.map(lambda tensor: 2 * tensor)).identical
    leaves, spec = tree_flatten(state)
    assert {id(leaf) for leaf in leaves} == {id(tensor) for tensor in state.named_tensors().values()}
    assert tree_unflatten(leaves, spec).diff(state).identical
    assert treespec_loads(treespec_dumps(spec)) == spec
    learned = ReadoutState(*(torch.rand(2, *shape) for shape in ((4, 3), (4,), (3,))))
    assert len(tree_flatten(learned)[0]) == 3  # the absent moment is no leaf
    assert tree_map(torch.clone, learned).moment is None


# Files.


def test_save_load_and_go_on_equals_going_on(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    path, x = tmp_path / "monday.safetensors", torch.randn(3, 5, 6)
    state.save(path, model)
    loaded = StreamState.load(path, model)
    assert bits(loaded) == bits(state)
    assert bits(StreamState.load(path)) == bits(state)
    assert bits(model(x, loaded)[1]) == bits(model(x, state)[1])
    header = read_file(path, kind="state")[1]
    assert header["position"] == [7, 7, 7]
    assert header["dtype"] == "float32"
    assert header["layout"] == {"front": "encoder", "layers": ["window", "plastic"], "head": None}
    assert header["config"] == model.config.to_dict()
    assert run_script(documented_script("hashlib"), path) == "sound\n"
    assert f"layers.1.memory (3, 2, 3, 4) {plastic(state).memory.sum():.3f}"[:-1] in run_script(
        documented_script("frombuffer"), path
    )


@pytest.mark.parametrize(("window", "rows", "length"), [(1, 3, 2), (5, 1, 0), (2, 4, 9)])
def test_every_size_survives_a_file(tmp_path: Path, window: int, rows: int, length: int) -> None:
    model = FakeModel(FakeConfig(window=window)).double()
    state = random_state(model, rows, length)
    state.save(tmp_path / "a", model)
    assert bits(StreamState.load(tmp_path / "a", model)) == bits(state)


def test_a_state_with_gradient_is_saved_without_it(model: FakeModel, tmp_path: Path) -> None:
    _, state = model(torch.randn(2, 4, 6, requires_grad=True))
    state.save(tmp_path / "a", model)
    assert not any(tensor.requires_grad for tensor in StreamState.load(tmp_path / "a", model).named_tensors().values())


def test_another_config_is_named(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    state.save(tmp_path / "a", model)
    wider = FakeModel(FakeConfig(window=9))
    with pytest.raises(StateError, match=r"load: config.window is 4 in .*a but 9 in the model; use the model that"):
        StreamState.load(tmp_path / "a", wider)
    with pytest.raises(
        StateError, match=r"layers.0.keys has shape \[3, 3, 2, 3\] in .*a but \[1, 8, 2, 3\] in the mod"
    ):
        StreamState.load(tmp_path / "a", wider, allow_other_weights=True)
    slower = FakeModel(FakeConfig(decay=0.5))
    with pytest.raises(StateError, match=r"config.decay is 0.9 in .* but 0.5 in the model"):
        StreamState.load(tmp_path / "a", slower)
    assert bits(StreamState.load(tmp_path / "a", slower, allow_other_weights=True)) == bits(state)


def test_of_two_kinds_of_model_the_kind_is_named() -> None:
    origins = Origin("a", {"kind": "text", "depth": 3, "alpha": 1}), Origin("b", {"kind": "standard", "depth": 3})
    with pytest.raises(StateError, match=r"^merge: config.kind is 'text' in A but 'standard' in B; stop.$"):
        origins[0].require("merge", origins[1], names=("A", "B"), way_out="stop")
    same_kind = Origin("b", {"kind": "text", "depth": 3})
    with pytest.raises(StateError, match=r"config.alpha is 1 in A but absent in B"):
        origins[0].require("merge", same_kind, names=("A", "B"), way_out="stop")


def test_other_weights_are_named(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    state.save(tmp_path / "a", model)
    other = FakeModel(seed=5)
    message = (
        f"the weights are not: fingerprint {fingerprint(model)[:12]}... in .*, {fingerprint(other)[:12]}... in the"
    )
    with pytest.raises(StateError, match=message):
        StreamState.load(tmp_path / "a", other)
    assert bits(StreamState.load(tmp_path / "a", other, allow_other_weights=True)) == bits(state)


def test_a_state_of_another_model_is_not_saved(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    with pytest.raises(
        StateError, match=r"save: layers.0.keys has shape \[3, 3, 2, 3\] in the state but \[1, 8, 2, 3\]"
    ):
        state.save(tmp_path / "a", FakeModel(FakeConfig(window=9)))
    with pytest.raises(StateError, match=r"front.recent has dtype float64 in the state but float32 in the model"):
        state.to(torch.float64).save(tmp_path / "a", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_poison_is_neither_saved_nor_loaded(model: FakeModel, state: StreamState, tmp_path: Path, value: float) -> None:
    path = tmp_path / "a"
    state.save(path, model)
    before = path.read_bytes()
    memory = plastic(state).memory.clone()
    memory[1, 0, 2, 3] = value
    broken = dataclasses.replace(state, layers=(state.layers[0], dataclasses.replace(plastic(state), memory=memory)))
    with pytest.raises(StateError, match=r"layers.1.memory of the state has NaN or infinite values.*was not written"):
        broken.save(path, model)
    assert path.read_bytes() == before
    tensors, header = read_file(path)
    write_file(path, {**tensors, "layers.1.memory": to_numpy(memory)}, header)
    with pytest.raises(FileError, match=r"layers.1.memory has NaN or infinite values; go back to an earlier file"):
        StreamState.load(path, model)


def test_files_that_are_no_states(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(FileError, match="does not exist"):
        StreamState.load(path)
    with pytest.raises(FileError, match="nowhere does not exist; make it first"):
        state.save(tmp_path / "nowhere" / "a", model)
    write_file(path, {"w": np.zeros(2)}, {"kind": "model", "config": {}})
    with pytest.raises(FileError, match="holds a model; wanted a state"):
        StreamState.load(path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(FileError, match="not a safetensors file"):
        StreamState.load(path)


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({"layers.1.memory": None}, {}, "has no tensor 'layers.1.memory'; wanted one of 4 axes"),
        ({"extra": np.zeros(2)}, {}, "has a tensor 'extra' that no part of the state wants"),
        ({"layers.1.memory": np.zeros((3, 2, 3), "f4")}, {}, r"memory has shape \[3, 2, 3\]; wanted \[3, H, K, V\]"),
        ({"layers.1.previous": np.zeros((2, 6), "f4")}, {}, r"previous has shape \[2, 6\]; wanted \[3, D\]"),
        ({"layers.0.values": np.zeros((3, 3, 2, 4), "f4")}, {}, r"\[3, 3, 2, 4\]; wanted \[3, 3, 2, 3\]"),
        ({"layers.1.memory": np.zeros((3, 2, 3, 4), "f2")}, {}, "has dtype float16; wanted float32 or float64"),
        ({"position": np.zeros(3, "f4")}, {}, "position has dtype float32; wanted int64"),
        ({"position": np.array([1, -1, 2])}, {}, "position is negative"),
        ({"layers.0.position": np.array([7, 6, 8])}, {},
         "row 1 is at step 7 by position but at step 6 by layers.0.position; wanted the same; go back to an earlier"),
        ({"position": np.array([7, 7, 9])}, {}, "row 2 is at step 9 by position but at step 7 by layers.0.position"),
        ({}, {"layout": None}, "lacks a sound layout, fingerprint or config"),
        ({}, {"layout": {"front": 1, "layers": [], "head": None}}, "lacks a sound layout"),
        ({}, {"fingerprint": 3}, "lacks a sound layout, fingerprint or config"),
        ({}, {"layout": {"front": "encoder", "layers": ["window", "pickle"], "head": None}},
         "a state of kind 'pickle' at layers.1; known are .*encoder, .*output, .*plastic, .*window"),
    ],
)  # fmt: skip
def test_sound_files_with_wrong_content_are_refused(
    model: FakeModel,
    state: StreamState,
    tmp_path: Path,
    tensors: dict[str, np.ndarray | None],
    fields: dict[str, object],
    message: str,
) -> None:
    state.save(tmp_path / "a", model)
    arrays, header = read_file(tmp_path / "a")
    merged = {name: array for name, array in {**arrays, **tensors}.items() if array is not None}
    write_file(tmp_path / "a", merged, {**header, **fields})
    with pytest.raises(FileError, match=message):
        StreamState.load(tmp_path / "a", model)


def test_an_emptied_memory_may_lag_behind_its_stream_but_not_be_ahead(tmp_path: Path) -> None:
    ring, position = torch.rand(2, 3, 1, 4), torch.tensor([5, 8])
    pattern = HopfieldState(ring, ring, position, torch.rand(2, 4))
    state, origin = StreamState(None, (pattern,), None, position), Origin("0" * 64, {"kind": "none"})
    for sound in (state, state.reset_memory()):
        write_state_file(tmp_path / "a", sound, origin)
        assert read_state_file(tmp_path / "a")[0].diff(sound).identical
    ahead = dataclasses.replace(pattern, position=torch.tensor([5, 9]))
    write_state_file(tmp_path / "a", dataclasses.replace(state, layers=(ahead,)), origin)
    with pytest.raises(FileError, match=r"row 1 is at step 8 by position but at step 9 by layers.0.* wanted no more"):
        read_state_file(tmp_path / "a")


def check_injured_states(folder: Path, runs: int) -> None:
    model = FakeModel()
    random_state(model).save(folder / "state", model)
    random_state(model, seed=2).save(folder / "other", model)
    state, origin = read_state_file(folder / "state")
    refused = survive(
        folder / "state", folder / "other", runs, 3, read_state_file,
        lambda loaded: bits(loaded[0]) == bits(state) and loaded[1] == origin,
    )  # fmt: skip
    assert refused > 0.8 * runs


def test_no_altered_state_is_accepted(tmp_path: Path) -> None:
    check_injured_states(tmp_path, 500)


@pytest.mark.slow
def test_no_altered_state_is_accepted_in_twenty_thousand(tmp_path: Path) -> None:
    check_injured_states(tmp_path, 20_000)


def test_fingerprint_sees_every_setting_and_weight(model: FakeModel) -> None:
    mark = fingerprint(model)
    assert mark == fingerprint(FakeModel())
    others = [FakeModel(FakeConfig(decay=0.8)), FakeModel(seed=1), FakeModel().double(), FakeModel().bfloat16()]
    assert len({mark, *map(fingerprint, others)}) == 5
    with torch.no_grad():
        model.weight[3, 4] = torch.nextafter(model.weight[3, 4], torch.tensor(9.0))
    assert fingerprint(model) != mark


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_numpy_and_back_is_the_same_bits(dtype: torch.dtype) -> None:
    for tensor in (torch.randn(3, 4).to(dtype), torch.randn(4, 3).T.to(dtype), torch.ones((), dtype=dtype)):
        back = from_numpy(to_numpy(tensor))
        assert back.dtype == dtype
        assert torch.equal(back, tensor)


# Kinds and versions.


def test_the_table_of_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state_module, "_KINDS", dict(state_module._KINDS))

    @register_state("average")
    @dataclass(frozen=True, eq=False, repr=False)
    class AverageState(State):
        mean: Annotated[Tensor, "B D"]
        count: Annotated[Tensor, "B", torch.int64]
        spread: Annotated[Tensor, "B D"] | None = None

    assert AverageState.specs == {
        "mean": FieldSpec(("B", "D"), integer=False, optional=False),
        "count": FieldSpec(("B",), integer=True, optional=False),
        "spread": FieldSpec(("B", "D"), integer=False, optional=True),
    }
    origin, count = Origin("0" * 64, {"kind": "none"}), torch.tensor([3, 4])
    for spread in (None, torch.rand(2, 5)):
        head = AverageState(torch.rand(2, 5), count, spread)
        state = StreamState(None, (), head, count)
        write_state_file(tmp_path / "a", state, origin)
        loaded, back = read_state_file(tmp_path / "a")
        assert back == origin
        assert isinstance(loaded.head, AverageState)
        assert (loaded.head.spread is None) == (spread is None)
        assert bits(loaded) == bits(state)
        assert (state.fork(1)[0].reset_memory().diff(loaded)).identical
    with_spread, without = (
        AverageState(count[:, None] * 1.0, count, count[:, None] * 1.0),
        AverageState(count[:, None] * 1.0, count),
    )
    with pytest.raises(StateError, match=r"merge: spread is present in states\[0\] but absent in states\[1\]"):
        AverageState.merge([with_spread, without])
    with pytest.raises(StateError, match="kind='average' is taken by AverageState; choose another name"):
        register_state("average")(WindowState)


def golden_state() -> StreamState:
    """The content of `golden/state_v1.safetensors`, which was written once, by version 1 of the format."""

    def ramp(*shape: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 8 - 2

    position = torch.tensor([3, 1_000_000_007])
    window = WindowState(ramp(2, 3, 1, 4), -ramp(2, 3, 1, 4), position)
    return StreamState(
        EncoderState(ramp(2, 3, 5)), (window, PlasticState(ramp(2, 1, 3, 4), ramp(2, 5))), None, position
    )


def test_golden_states_of_every_version_load() -> None:
    paths = sorted(GOLDEN.glob("state_v*.safetensors"))
    assert paths
    for path in paths:
        state, origin = read_state_file(path)
        assert state.diff(golden_state()).identical
        assert origin.config == {"kind": "golden", "hidden_dim": 5}


def test_moved_files_stay_sound(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    state.save(tmp_path / "a", model)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bits(StreamState.load(tmp_path / "b", model)) == bits(state)
    json.dumps(read_file(tmp_path / "b")[1])


def test_saves_of_one_state_are_the_same_bytes(model: FakeModel, state: StreamState, tmp_path: Path) -> None:
    names = [tmp_path / name for name in random.Random(0).sample("abcdef", 3)]
    for path in names:
        state.clone().save(path, model)
    assert len({path.read_bytes() for path in names}) == 1
