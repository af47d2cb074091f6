"""stable-baselines3: `policy_kwargs` has the optimizer's class and options; a saved model goes on learning."""

import pytest
import torch
from training import assert_equal, assert_trains_as_torch

import fastadam.torch
from fastadam.bench import reinforcement

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO, SAC

AGENTS = {
    "PPO": (PPO, "CartPole-v1", {"n_steps": 64, "batch_size": 32, "n_epochs": 2}, 128),
    "DQN": (DQN, "CartPole-v1", {"learning_starts": 20, "batch_size": 16}, 100),
    "SAC": (SAC, "Pendulum-v1", {"learning_starts": 20, "batch_size": 16}, 50),
}


def learned(name, optimizer_class):
    kind, environment, options, steps = AGENTS[name]
    policy = {"net_arch": [16], "optimizer_class": optimizer_class, "optimizer_kwargs": {"eps": 1e-5}}
    return kind("MlpPolicy", environment, policy_kwargs=policy, seed=0, device="cpu", **options).learn(steps)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
@pytest.mark.parametrize("name", AGENTS)
def test_agents(name, optimizer):
    assert_trains_as_torch(lambda kind: list(learned(name, kind).policy.parameters()), optimizer)


def test_a_saved_model_has_the_optimizer_and_its_state(tmp_path):
    model = learned("PPO", fastadam.torch.Adam)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert type(loaded.policy.optimizer) is fastadam.torch.Adam
    states = [kept.policy.optimizer.state_dict()["state"] for kept in (model, loaded)]
    for mine, other in zip(*(state.values() for state in states), strict=True):
        assert mine.keys() == other.keys()
        assert_equal([mine[key] for key in mine], [other[key] for key in mine])
    before = torch.nn.utils.parameters_to_vector(loaded.policy.parameters())
    loaded.learn(64)
    assert not torch.equal(before, torch.nn.utils.parameters_to_vector(loaded.policy.parameters()))


def test_the_share_of_steps_is_measured():
    found = reinforcement.measured(rounds=1, part=0.1)
    assert found.keys() == reinforcement.AGENTS.keys()
    for agent in found.values():
        assert all(0 < steps < run for run, steps in agent.values())
