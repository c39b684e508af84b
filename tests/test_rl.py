"""The core under torchrl and under Stable-Baselines3-contrib, against what these libraries do themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssmn
from ssmn.errors import ConfigError, MissingExtraError, ShapeError
from ssmn.interfaces import rl

SMALL = {"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "window_size": 3, "layer_types": ("static", "plastic")}


def model(input_dim: int = 4, output_dim: int = 6) -> ssmn.SSMN:
    torch.manual_seed(0)
    return ssmn.SSMN(ssmn.SSMNConfig.from_dict({**SMALL, "input_dim": input_dim, "output_dim": output_dim}))


def test_neither_library_is_loaded_before_its_name_is_used() -> None:
    script = (
        "import sys, ssmn.interfaces.rl; print(*sorted(set(sys.modules) & {'torch', 'torchrl', 'sb3_contrib', "
        "'gymnasium'}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.parametrize("name", rl.__all__)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = {"SSMNModule": "torchrl", "SSMNPolicy": "sb3_contrib"}[name]
    for loaded in [module for module in sys.modules if module.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, rl._HOMES[name], raising=False)
    with pytest.raises(MissingExtraError, match=rf"interfaces.rl.{name}: .*pip install 'sparse-stream\[rl\]'"):
        getattr(rl, name)


def test_other_names_are_no_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SSMNThing'"):
        _ = rl.SSMNThing


class TestTorchrl:
    """`SSMNModule`."""

    @pytest.fixture
    def parts(self) -> tuple[Any, Any, Any]:
        """(module, environment, actor)."""
        pytest.importorskip("torchrl", reason='the extra "rl" is not installed')
        from tensordict.nn import TensorDictModule, TensorDictSequential
        from torchrl.envs import Compose, GymEnv, InitTracker, TransformedEnv
        from torchrl.modules import ProbabilisticActor

        module: Any = rl.SSMNModule(model(), in_key="observation", out_key="features")
        chain: Any = Compose
        env = TransformedEnv(GymEnv("CartPole-v1"), chain(InitTracker(), module.make_tensordict_primer()))
        env.set_seed(3)
        head: Any = TensorDictModule(torch.nn.Linear(6, 2), in_keys=["features"], out_keys=["logits"])
        actor = ProbabilisticActor(
            TensorDictSequential(module, head), in_keys=["logits"], out_keys=["action"],
            distribution_class=torch.distributions.OneHotCategorical, return_log_prob=True, spec=env.action_spec,
        )  # fmt: skip
        return module, env, actor

    def test_the_environment_keeps_to_its_specs(self, parts: Any) -> None:
        from torchrl.envs import check_env_specs

        check_env_specs(parts[1])

    def test_a_sequence_is_what_its_steps_were(self, parts: Any) -> None:
        from torchrl.modules import set_recurrent_mode

        module, env, actor = parts
        with torch.no_grad():
            taken = env.rollout(70, actor, break_when_any_done=False)
            piece = taken[11:]  # from a carried state
            assert piece["is_init"].sum() >= 1
            with set_recurrent_mode(True):
                again = module(piece.exclude("features"))
                halves: Any = torch.stack([taken[:35], taken[35:]])
                batch = module(halves.exclude("features"))
        torch.testing.assert_close(again["features"], piece["features"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch["features"].flatten(0, 1), taken["features"], rtol=1e-4, atol=1e-5)
        position = taken["ssmn", "position"]
        starts = taken["is_init"].squeeze(-1)
        assert taken["next", "ssmn", "position"].tolist() == (torch.where(starts, 0, position) + 1).tolist()

    @pytest.mark.filterwarnings("ignore:Creating .* which inherits from WeightUpdaterBase:DeprecationWarning")
    def test_a_collector_and_a_loss_train_it(self, parts: Any) -> None:
        from tensordict.nn import TensorDictModule, TensorDictSequential
        from torchrl.collectors import Collector
        from torchrl.modules import set_recurrent_mode
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        module, env, actor = parts
        head: Any = TensorDictModule(torch.nn.Linear(6, 1), in_keys=["features"], out_keys=["state_value"])
        value = TensorDictSequential(module, head)
        advantage = GAE(gamma=0.99, lmbda=0.95, value_network=value, deactivate_vmap=True)
        loss = ClipPPOLoss(actor, value)
        collector = Collector(env, actor, frames_per_batch=26, total_frames=52)
        batches = 0
        for batch in collector:
            with set_recurrent_mode(True):
                with torch.no_grad():
                    advantage(batch)
                parts_of = loss(batch)
            torch.stack([tensor for name, tensor in parts_of.items() if name.startswith("loss")]).sum().backward()
            batches += 1
        collector.shutdown()
        assert batches == 2
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.parameters())

    def test_no_state_is_a_fresh_one(self, parts: Any) -> None:
        from tensordict import TensorDict

        module = parts[0]
        rows = TensorDict({"observation": torch.randn(3, 4), "is_init": torch.ones(3, 1, dtype=torch.bool)}, [3])
        want, _ = module.model(rows["observation"].unsqueeze(1))
        torch.testing.assert_close(module(rows)["features"], want[:, 0])
        single = module(TensorDict({"observation": torch.randn(4)}, []))
        assert single["features"].shape == (6,)
        assert single["next", "ssmn", "layers_1_memory"].shape == (1, 8, 8)

    def test_what_it_cannot_take_is_refused(self, parts: Any) -> None:
        from tensordict import TensorDict
        from torchrl.modules import set_recurrent_mode

        with pytest.raises(ConfigError, match="model is Linear; wanted an SSMN"):
            rl.SSMNModule(torch.nn.Linear(2, 3))  # type: ignore[arg-type]
        with set_recurrent_mode(True), pytest.raises(ShapeError, match=r"no batch axis; wanted \[\.\., T\]"):
            parts[0](TensorDict({"observation": torch.randn(4)}, []))


class TestStableBaselines:
    """`SSMNPolicy`."""

    @pytest.fixture
    def library(self) -> Any:
        return pytest.importorskip("sb3_contrib", reason='the extra "rl" is not installed')

    def agent(self, library: Any, env: Any = "CartPole-v1", **settings: Any) -> Any:
        core = {name: value for name, value in SMALL.items() if name != "num_layers"}
        return library.RecurrentPPO(
            rl.SSMNPolicy, env, n_steps=32, batch_size=24, n_epochs=2, seed=1, device="cpu",
            policy_kwargs={"core": core, **settings},
        )  # fmt: skip

    def test_it_learns_saves_and_loads(self, library: Any, tmp_path: Path) -> None:
        agent = self.agent(library)
        before = [weight.clone() for weight in agent.policy.lstm_actor.parameters()]
        agent.learn(96)
        moved = [not torch.equal(a, b) for a, b in zip(before, agent.policy.lstm_actor.parameters(), strict=True)]
        assert all(moved)
        agent.save(tmp_path / "agent")
        loaded = library.RecurrentPPO.load(tmp_path / "agent", device="cpu")
        states: list[Any] = [None, None]
        for step in range(7):
            seen = np.array([0.1 * step, 0.2, -0.03, 0.4], np.float32)
            begins = np.array([step in (0, 4)])
            for number, one in enumerate((agent, loaded)):
                _, states[number] = one.predict(seen, states[number], begins, deterministic=True)
            for mine, theirs in zip(*states, strict=True):
                np.testing.assert_array_equal(mine, theirs)

    def test_sequences_are_what_their_steps_were(self, library: Any) -> None:
        agent = self.agent(library)
        policy = agent.policy
        rows, time = 3, 5
        seen = torch.randn(rows, time, 4)
        begins = torch.zeros(rows, time)
        begins[:, 0] = begins[1, 3] = 1
        zeros = torch.zeros(1, rows, policy.lstm_actor.hidden_size)
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        states = first = RNNStates((zeros, zeros), (zeros, zeros))
        actions, values, log_probs = [], [], []
        for t in range(time):
            value = policy.predict_values(seen[:, t], states.vf, begins[:, t])
            action, told, log_prob, states = policy(seen[:, t], states, begins[:, t])
            torch.testing.assert_close(value, told)
            for column, value in ((actions, action), (values, told), (log_probs, log_prob)):
                column.append(value)
        told, log_prob, entropy = policy.evaluate_actions(
            seen.flatten(0, 1), torch.stack(actions, 1).flatten(), first, begins.flatten()
        )
        torch.testing.assert_close(told, torch.stack(values, 1).flatten(0, 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_prob, torch.stack(log_probs, 1).flatten(), rtol=1e-4, atol=1e-5)
        assert entropy.shape == (rows * time,)

    def test_its_state_is_the_models(self, library: Any) -> None:
        memory = self.agent(library).policy.lstm_actor
        x = torch.randn(3, 7, 4)
        _, state = memory.model(x)
        assert memory.read(memory.write(state)).diff(state).identical

    def test_other_spaces_have_a_policy_too(self, library: Any) -> None:
        agent = self.agent(library, "Pendulum-v1")
        agent.learn(32)
        assert agent.policy.log_std.grad is not None

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lstm_hidden_size": 4}, r"lstm_hidden_size is a setting of the LSTM; set the memory with core="),
            ({"share_features_extractor": False}, "share_features_extractor=False; wanted True"),
            ({"core": {"width": 3}}, "unknown setting 'width'"),
        ],
    )
    def test_what_it_cannot_take_is_refused(self, library: Any, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.agent(library, **settings)
