"""The two models: sizes, files, steps, initialisation, low precision."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ssmn
from laws import assert_close, assert_identical, randomised
from ssmn.config import PRESETS, SSMNConfig, StackConfig, TextSSMNConfig, config_from_dict, plastic_positions
from ssmn.errors import ConfigError, FileError
from ssmn.layers import Block, SwiGLU, SynapticMemory, register_mixer
from ssmn.models import SSMN, TextSSMN

B, T = 2, 9
STACK: dict[str, Any] = {
    "hidden_dim": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "memory_heads": 3, "window_size": 5,
    "attention_sinks": True, "chat_rounds": 1,
}  # fmt: skip


def standard(**changes: Any) -> SSMN:
    return SSMN(SSMNConfig(input_dim=7, output_dim=3, **STACK | changes))


def text(**changes: Any) -> TextSSMN:
    return TextSSMN(TextSSMNConfig(vocab_size=19, semantic_encoder=True, **STACK | changes))


BUILD: dict[str, Callable[..., SSMN | TextSSMN]] = {"standard": standard, "text": text}


def sample(model: SSMN | TextSSMN, time: int = T, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if isinstance(model, TextSSMN):
        return torch.randint(19, (B, time), generator=generator)
    return torch.randn(B, time, 7, generator=generator).to(dtype)


@pytest.fixture(params=BUILD)
def model(request: pytest.FixtureRequest) -> SSMN | TextSSMN:
    made = BUILD[request.param]()
    randomised(made, torch.float32)
    return made


def test_the_memory_has_the_fewest_heads_that_are_narrow_enough() -> None:
    for width, heads in ((64, 1), (256, 1), (300, 2), (514, 257), (1024, 4)):
        assert SSMNConfig(input_dim=1, output_dim=1, hidden_dim=width, num_heads=1).memory_heads == heads


def test_sizes_beyond_reason_are_refused_before_anything_is_listed() -> None:
    for name in ("hidden_dim", "num_layers"):
        with pytest.raises(ConfigError, match=f"{name}=1208925819614629174706176; wanted at most 1,048,576"):
            SSMNConfig(input_dim=1, output_dim=1, **{name: 2**80})


def test_presets() -> None:
    for name, sizes in PRESETS.items():
        config = TextSSMNConfig.preset(name, vocab_size=11, num_layers=3)
        assert (config.hidden_dim, config.window_size) == (sizes["hidden_dim"], sizes["window_size"])
        assert config.num_layers == 3
    tiny = SSMN(SSMNConfig.preset("tiny", input_dim=2, output_dim=3))
    assert tiny(torch.randn(B, T, 2))[0].shape == (B, T, 3)


@pytest.mark.parametrize(
    ("layers", "ratio", "positions"),
    [
        (10, 0.2, (2, 7)),
        (5, 0.2, (2,)),
        (1, 0.2, (0,)),
        (2, 0.5, (0,)),
        (4, 0.5, (1, 2)),
        (5, 0.9, (0, 1, 3)),
        (3, 1.0, (0, 1)),
    ],
)  # fmt: skip
def test_layout_by_ratio(layers: int, ratio: float, positions: tuple[int, ...]) -> None:
    """floor((2j + 1) L / 2n), never the last layer of a deeper stack, no position twice."""
    assert plastic_positions(layers, ratio) == positions
    config = SSMNConfig(input_dim=1, output_dim=1, num_layers=layers, plastic_ratio=ratio)
    assert config.layer_types == tuple("plastic" if i in positions else "static" for i in range(layers))


def test_derived_settings_are_stored_expanded() -> None:
    config = SSMNConfig(input_dim=1, output_dim=1, hidden_dim=768, num_heads=6)
    assert (config.num_kv_heads, config.memory_heads, config.ffn_dim) == (6, 3, 2048)
    assert isinstance(config.decay_lambda, tuple)
    torch.testing.assert_close(torch.tensor(config.decay_lambda), torch.tensor([3e-2, math.sqrt(3e-7), 1e-5]))
    assert SSMNConfig(input_dim=1, output_dim=1, hidden_dim=256).decay_lambda == (1e-4,)
    assert SSMNConfig(input_dim=1, output_dim=1, memory_heads=2, decay_lambda=0.5).decay_lambda == (0.5, 0.5)
    explicit = SSMNConfig(input_dim=1, output_dim=1, num_layers=2, layer_types=("plastic", "plastic"))
    assert [block.kind for block in SSMN(explicit).blocks] == ["plastic", "plastic"]
    for made in (config, explicit, text().config):
        assert config_from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(AttributeError):
        config.hidden_dim = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_further_block_kinds_register() -> None:
    class Fading(SynapticMemory):
        """A relative: a plastic layer of another kind."""

    register_mixer("fading", lambda config: Fading(config.hidden_dim, decay_lambda=(0.5,)))
    network = standard(layer_types=("fading", "static", "static"), num_layers=3)
    block = network.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mixer, Fading)
    assert block.plastic
    assert network(sample(network))[0].shape == (B, T, 3)


def test_step_is_the_forward_pass_at_one(model: SSMN | TextSSMN) -> None:
    x = sample(model)
    whole, final = model(x)
    outputs, state = [], None
    for t in range(T):
        y, state = model.step(x[:, t], state)
        assert y.shape == whole[:, t].shape
        outputs.append(y)
    assert state is not None
    stepped = {"y": torch.stack(outputs, 1), **state.named_tensors()}
    assert_close(stepped, {"y": whole, **final.named_tensors()}, 1e-5)
    mask, reset, elapsed = torch.tensor([True, False]), torch.tensor([False, True]), torch.tensor([2.0, 5.0])
    frozen = ssmn.Plasticity(frozen=True)
    options = {"mask": mask, "reset": reset, "elapsed": elapsed}
    y, after = model.step(x[:, 0], state, plasticity=frozen, **options)
    wanted, wanted_after = model(
        x[:, :1], state, plasticity=frozen, **{name: value[:, None] for name, value in options.items()}
    )
    assert_identical({"y": y, **after.named_tensors()}, {"y": wanted[:, 0], **wanted_after.named_tensors()})
    assert after.position.tolist() == [T + 1, 0]
    assert set(options) == {"mask", "reset", "elapsed"}
    assert options["mask"] is mask


def test_causality(model: SSMN | TextSSMN) -> None:
    """What comes later changes nothing before it."""
    x = sample(model)
    other = x.clone()
    other[:, 6:] = sample(model, 20)[:, 10:13]
    assert_identical({"y": model(other)[0][:, :6]}, {"y": model(x)[0][:, :6]})
    assert not torch.equal(model(other)[0][:, 6:], model(x)[0][:, 6:])


def test_the_past_beyond_the_window_is_in_the_memory(model: SSMN | TextSSMN) -> None:
    """The first step changes the last output through the memory alone; without plastic layers it cannot."""
    static = BUILD["text" if isinstance(model, TextSSMN) else "standard"](layer_types=("static",) * 3)
    length = 3 * 4 + 5
    for network, reaches in ((model, True), (static, False)):
        x = sample(network, length)
        other = x.clone()
        other[:, 0] = (other[:, 0] + 1) % 19
        same = torch.equal(network(x)[0][:, -1], network(other)[0][:, -1])
        assert same is not reaches


def test_save_and_load_bitwise(model: SSMN | TextSSMN, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    assert loaded.config == model.config
    assert_identical(loaded.state_dict(), model.state_dict())
    x = sample(model)
    assert_identical({"y": loaded(x)[0]}, {"y": model(x)[0]})
    assert type(ssmn.load_model(folder)) is type(model)
    assert json.loads((folder / "config.json").read_text())["kind"] == model.config.kind
    # The file is plain safetensors, and holds each weight once.
    assert_identical(load_file(folder / "model.safetensors"), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_save_and_load_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    network = standard().to(dtype)
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert_identical(saved, network.state_dict())
    loaded = SSMN.from_pretrained(tmp_path)
    assert_identical(loaded.state_dict(), network.state_dict())
    mixed = {name: value.float() if name == "norm.weight" else value for name, value in saved.items()}
    save_file(mixed, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(FileError, match="wanted one floating dtype"):
        SSMN.from_pretrained(tmp_path)


def test_a_foreign_weights_file_loads_with_a_warning(model: SSMN | TextSSMN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="no sum: its weights are unchecked"):
        loaded = ssmn.load_model(tmp_path)
    assert_identical(loaded.state_dict(), model.state_dict())


def test_damaged_and_foreign_files_are_refused(model: SSMN | TextSSMN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content, settings = weights.read_bytes(), config.read_text()
    spoilt = bytearray(content)
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    with pytest.raises(FileError, match="damaged"):
        ssmn.load_model(tmp_path)
    weights.write_bytes(pickle.dumps({"weights": [0.0]}))
    with pytest.raises(FileError, match="not a safetensors file"):
        ssmn.load_model(tmp_path)
    weights.write_bytes(content)
    changed = json.loads(settings)
    changed["window_size"] += 1
    config.write_text(json.dumps(changed))
    with pytest.raises(FileError, match="window_size"):
        ssmn.load_model(tmp_path)
    config.write_text(settings)
    state = model.init_state(1)
    state.save(weights, model)
    with pytest.raises(FileError, match="holds a state; wanted a model"):
        ssmn.load_model(tmp_path)
    tensors = model.state_dict()
    name = next(iter(tensors))
    save_file({key: value.clone() for key, value in tensors.items() if key != name}, weights)
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(FileError, match=f"{name} is missing"):
        ssmn.load_model(tmp_path)


@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
@pytest.mark.parametrize("kind", BUILD)
def test_pure_bfloat16(kind: str, rule: str) -> None:
    """Weights, inputs and outputs in bfloat16, the state in float32; near the float32 model, forward and backward."""
    wide = BUILD[kind](update_rule=rule)
    narrow = copy.deepcopy(wide).bfloat16()
    wide.load_state_dict(narrow.state_dict())
    x = sample(wide, 30)
    y, state = narrow(x.bfloat16() if x.is_floating_point() else x)
    wanted, _ = wide(x.bfloat16().float() if x.is_floating_point() else x)
    assert y.dtype == torch.bfloat16
    assert {value.dtype for value in state.named_tensors().values()} == {torch.float32, torch.int64}
    assert (y.float() - wanted).abs().mean() < 0.03 * wanted.abs().mean() + 0.01
    y, state = narrow.step((x.bfloat16() if x.is_floating_point() else x)[:, 0], state)
    assert {value.dtype for value in state.named_tensors().values()} == {torch.float32, torch.int64}
    y.float().square().mean().backward()
    for name, weight in narrow.named_parameters():
        assert weight.grad is None or weight.grad.isfinite().all(), name


def test_float64(model: SSMN | TextSSMN) -> None:
    x = sample(model, dtype=torch.float64)
    y, state = model.double()(x)
    assert y.dtype == torch.float64
    assert {value.dtype for value in state.named_tensors().values()} == {torch.float64, torch.int64}


def test_deepcopy_and_state_dict(model: SSMN | TextSSMN) -> None:
    twin = copy.deepcopy(model)
    x = sample(model)
    before = model(x)[0]
    assert_identical({"y": twin(x)[0]}, {"y": before})
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(1)
    assert_identical({"y": model(x)[0]}, {"y": before})
    model.load_state_dict(twin.state_dict())
    assert not torch.equal(model(x)[0], before)


def test_fresh_state_is_zeros_and_none_means_fresh(model: SSMN | TextSSMN) -> None:
    state = model.init_state(B)
    assert all(not value.any() for value in state.named_tensors().values())
    assert state.batch_size == B
    y, after = model(sample(model))
    again, after_again = model(sample(model), state)
    assert_identical({"y": y, **after.named_tensors()}, {"y": again, **after_again.named_tensors()})
    assert after.nbytes == state.nbytes


def test_number_of_parameters() -> None:
    d, ffn, layers, kv = 24, 64, 3, 12
    attention = 2 * d * d + 2 * d * kv + 4
    memory = 4 * d * d + d * d + d + 8 + (d * 3 + 3) + d * 3 + (d * 3 + 3) + (1 + 1 + 2 * d)
    stack = (layers - 1) * attention + memory + layers * (3 * d * ffn + 2 * d) + d
    assert standard().num_parameters() == stack + (7 * d + d) + (d * 3 + 3)
    encoder = 9 * d * d
    assert text().num_parameters() == stack + 19 * d + encoder
    assert text(tie_embeddings=False).num_parameters() == stack + 2 * 19 * d + encoder


def memories(network: SSMN | TextSSMN) -> list[SynapticMemory]:
    return [module for module in network.modules() if isinstance(module, SynapticMemory)]


def test_associative_initialisation() -> None:
    """W_q and W_v orthogonal, W_k = W_q, W_o = W_vᵀ: what is read points back at what was stored."""
    network = text(num_layers=5, plastic_ratio=0.4)
    assert len(memories(network)) == 2
    for layer in memories(network):
        assert_identical(
            {"k": layer.key.weight, "o": layer.output.weight}, {"k": layer.query.weight, "o": layer.value.weight.T}
        )
        for weight in (layer.query.weight, layer.value.weight):
            torch.testing.assert_close(weight @ weight.T, torch.eye(24), atol=1e-5, rtol=0)
        assert layer.gate.bias.eq(1).all()
        assert not layer.importance.previous.weight.any()
        assert not layer.importance.present.bias.any()
        assert not layer.decay.present.weight.any()
        # Tied at the start, and free from then on.
        assert layer.key.weight.data_ptr() != layer.query.weight.data_ptr()
    assert network.output is None
    assert 0.9 < network.embedding.weight.std() * math.sqrt(24) < 1.1
    assert 0.9 < text(embedding_std=0.1).embedding.weight.std() / 0.1 < 1.1
    for block in network.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.ffn, SwiGLU)
        assert 0.9 < block.ffn.down.weight.std() / (0.5 / math.sqrt(64 * 5)) < 1.1
    loose = memories(text(initialisation="standard"))[0]
    assert not torch.equal(loose.key.weight, loose.query.weight)


def test_a_fresh_memory_answers_with_what_followed() -> None:
    """The seed's induction head before any training: after A B … A the read, through W_o, points at B."""
    layer = SynapticMemory(32, decay_lambda=(0.0,))
    first, second, *others = torch.nn.functional.normalize(torch.randn(9, 32), dim=-1) * math.sqrt(32)
    stream = torch.stack([first, second, *others[:5], first])[None]
    answer = layer.output(answer_of(layer, stream))[0, -1]
    candidates = torch.stack([first, second, *others])
    assert int((candidates @ answer).argmax()) == 1


def answer_of(layer: SynapticMemory, stream: Tensor) -> Tensor:
    """What the memory holds for each step's question, before the output gate."""
    answers = []
    state = layer.init_state(1)
    for t in range(stream.shape[1]):
        _, state = layer(stream[:, t : t + 1], state)
        question = torch.nn.functional.normalize(layer.query(stream[:, t]), dim=-1)
        answers.append(torch.einsum("bk,bkv->bv", question, state.memory[:, 0]))
    return torch.stack(answers, 1)


def test_generate_continues_the_forward_pass() -> None:
    network = text()
    prompt = sample(network)[0]
    made = list(ssmn.generate(network, prompt, max_new_tokens=4, temperature=0.0))
    tokens = [token for token, _ in made]
    logits, state = network(torch.cat([prompt, torch.tensor(tokens)])[None])
    assert tokens == logits[0, T - 1 : -1].argmax(-1).tolist()
    assert_close(made[-1][1].named_tensors(), state.named_tensors(), 1e-5)
    for token, held in made[:2]:
        assert isinstance(token, int)
        assert held.position.item() in (T + 1, T + 2)


def test_block_is_named_in_the_stack_config() -> None:
    config = StackConfig(hidden_dim=8, num_layers=2, num_heads=2, layer_types=["plastic", "static"])  # pyright: ignore[reportArgumentType]
    assert config.layer_types == ("plastic", "static")
