"""PPO and TD3 of stable-baselines3 in the worlds of MetaGenRL, for as many steps as its agents live in a test.

    pip install stable-baselines3
    python benchmarks/library_rivals.py [--worlds CartPoleSwingUp] [--rules ppo td3] [--agents 20] [--steps 4000]
                                        [--out benchmarks/results/library_rivals.json]

The rules of `algornn.meta.policy_rules` differ from these in that all agents share networks, replay, critics and number
of updates, so that only what moves the policy differs. Here everything is the library's, with its defaults for such
tasks, but for the discount, 0.95. What counts is the mean return of 16 episodes without noise, as in a test of
MetaGenRL; errors are standard errors over agents. With `--out` every agent is written as it ends, and those that stand
there already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from measure import results_file, write_results
from tqdm import tqdm

from algornn.meta import CartPoleSwingUp, Pendulum, PointMass, Reacher

WORLDS = {world.__name__: world for world in (CartPoleSwingUp, Pendulum, PointMass, Reacher)}
RULES = {"ppo": "PPO", "td3": "TD3"}
GAMMA, EPISODES = 0.95, 16


class Environment(gymnasium.Env):
    """One episode after the other of a world of tensors."""

    def __init__(self, name: str) -> None:
        self.name, self.world = name, WORLDS[name](SimpleNamespace(seed=torch.zeros(1, dtype=torch.long)))
        seen = self.world.observe().shape[1]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (seen,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.world.action_size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode with chance of its own."""
        super().reset(seed=seed)
        chance = torch.tensor([int(self.np_random.integers(2**62))])
        self.world = WORLDS[self.name](SimpleNamespace(seed=chance))
        return self.world.observe()[0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Act for one step."""
        reward = self.world.step(torch.as_tensor(action, dtype=torch.float32)[None])
        over = self.world.time >= self.world.length
        return self.world.observe()[0].numpy(), float(reward), bool(self.world.terminal), over, {}


def lived(name: str, rule: str, seed: int, steps: int) -> dict[str, Any]:
    """The mean return of one agent after so many steps."""
    import stable_baselines3

    start = time.process_time()
    trainer = getattr(stable_baselines3, RULES[rule])
    agent = trainer("MlpPolicy", Environment(name), gamma=GAMMA, seed=seed, device="cpu")
    agent.learn(steps)
    tested, total = Environment(name), 0.0
    for episode in range(EPISODES):
        seen, over = tested.reset(seed=10**6 + EPISODES * seed + episode)[0], False
        while not over:
            seen, reward, ended, late, _ = tested.step(agent.predict(seen, deterministic=True)[0])
            total, over = total + reward, ended or late
    return {
        "world": name,
        "rule": rule,
        "seed": seed,
        "asked": steps,
        "steps": agent.num_timesteps,  # PPO comes to the end of its batch
        "return": total / EPISODES,
        "seconds": time.process_time() - start,
        "library": f"stable-baselines3 {stable_baselines3.__version__}",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean returns and their standard errors over agents."""
    lines = ["| world | rule | agents | steps | return |", "|---|---|---|---|---|"]
    kind = lambda row: (row["world"], row["rule"], row["asked"])  # noqa: E731
    for world, rule, asked in dict.fromkeys(map(kind, rows)):
        mine = [row for row in rows if kind(row) == (world, rule, asked)]
        found = torch.tensor([row["return"] for row in mine], dtype=torch.float64)
        error = f" +- {float(found.std()) / len(mine) ** 0.5:.1f}" if len(mine) > 1 else ""
        lines.append(f"| {world} | {rule} | {len(mine)} | {mine[0]['steps']} | {float(found.mean()):.1f}{error} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=["CartPoleSwingUp"])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=results_file)
    options = parser.parse_args()
    if min(options.agents, options.steps) < 1:
        parser.error("agents and steps must be at least 1.")
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    done = {(row["world"], row["rule"], row["seed"], row["asked"]) for row in rows}
    asked = product(options.worlds, options.rules, range(options.agents), [options.steps])
    for agent in tqdm([agent for agent in asked if agent not in done]):
        rows.append(lived(*agent))
        write_results(options.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
