"""What part of stable-baselines3's training steps take on one thread, with torch's Adam and with ours.

    python -m fastadam.bench.reinforcement docs/reinforcement-intel.json

saves it for docs/publish.py. It needs stable-baselines3, which `make test-hosts` installs into .venv-hosts.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

import fastadam.torch
from fastadam.bench.machine import facts
from fastadam.bench.tables import duration

CLASSES = {"torch": torch.optim.Adam, "fastadam.torch": fastadam.torch.Adam}
# Agent -> environment and steps in it.
AGENTS = {"PPO": ("CartPole-v1", 10_000), "SAC": ("Pendulum-v1", 1_500), "DQN": ("CartPole-v1", 12_000)}
COLUMNS = ("agent", "optimizer", "whole run", "steps of the optimizer", "their share", "run, times as fast")


def clocked(kind: type) -> Any:
    """A class whose steps add the seconds that they take to its `seconds`."""

    class Clocked(kind):
        seconds = 0.0

        def step(self, closure=None):
            start = perf_counter()
            try:
                return super().step(closure)
            finally:
                Clocked.seconds += perf_counter() - start

        step.hooked = True  # type: ignore[attr-defined]  # the hooks are around the step that it calls

    return Clocked


def learned(agent: str, kind: type, steps: int) -> tuple[float, float]:
    """Seconds of a whole run, and of its optimizer's steps."""
    import stable_baselines3

    clock = clocked(kind)
    policy = {"optimizer_class": clock, "optimizer_kwargs": {"eps": 1e-5}}
    make = getattr(stable_baselines3, agent)
    model = make("MlpPolicy", AGENTS[agent][0], policy_kwargs=policy, seed=0, device="cpu")
    start = perf_counter()
    model.learn(steps)
    return perf_counter() - start, clock.seconds


def measured(rounds: int = 3, part: float = 1.0) -> dict[str, dict[str, list[float]]]:
    """Agent -> optimizer -> median seconds of the run and of its steps; the optimizers take turns."""
    torch.set_num_threads(1)
    fastadam.set_num_threads(1)
    results = {}
    for agent, (_, steps) in AGENTS.items():
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CLASSES}
        for _ in range(rounds):
            for name, kind in CLASSES.items():
                runs[name].append(learned(agent, kind, round(steps * part)))
        results[agent] = {name: [median(column) for column in zip(*each, strict=True)] for name, each in runs.items()}
        print(agent, results[agent], flush=True)
    return results


def rows(seconds: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of a table of what was measured."""
    for agent, found in seconds.items():
        first = found["torch"][0]
        for name, (run, steps) in found.items():
            yield [agent, name, duration(run), duration(steps), f"{steps / run:.1%}", f"{first / run:.2f}"]


def main(path: str) -> None:
    """Save what is measured."""
    results = {"machine": facts(), "seconds": measured()}
    Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
