"""How many agents fail that learn from their own experience, and how many that share it with the others of their world.

    python benchmarks/shared_replay.py [--rule critic] [--arms independent shared] [--seeds 5] [--agents 8]
                                       [--updates 800] [--out benchmarks/results/shared_replay.json]

Every arm has the same agents, by seed, in four worlds; an episode follows every tenth update. An agent has failed when
its return at the end, over 16 episodes without noise, is below that of uniform actions. Counts are means over seeds,
with the 95 % interval of Student's t; the difference is that from the first arm there is, seed by seed. Then come the
mean returns in the worlds. With `--out` every population is written as it ends, and those that stand there already are
not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

import torch
from measure import results_file, write_results
from scipy import stats
from tqdm import trange

from algornn.meta import CartPoleSwingUp, Pendulum, PointMass, Reacher, SharingAgents
from algornn.meta.policy_rules import RULES

WORLDS = (PointMass, Reacher, Pendulum, CartPoleSwingUp)
KIND = ("rule", "agents", "updates")  # what populations that are compared have in common
ARMS: dict[str, dict[str, Any]] = {
    "independent": {"share": 0.0, "replace": False},
    "shared": {"share": 0.5, "replace": False},
    "replaced": {"share": 0.0, "replace": True},
    "shared and replaced": {"share": 0.5, "replace": True},
}


def population(seed: int, number: int, arm: str) -> SharingAgents:
    """Agents of every world for one arm; a seed's agents are the same in all arms."""
    seeds = 7919 * torch.arange(number * len(WORLDS)) + 104729 * seed
    return SharingAgents([world for world in WORLDS for _ in range(number)], seeds, **ARMS[arm])


def lived(options: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Returns of one population at the end of its life, and those of uniform actions."""
    agents, start = population(seed, options.agents, arm), time.process_time()
    chance = agents.collect(16, stream=100)
    floor = (chance.reward * chance.mask).sum(-1).mean(-1)
    for _ in trange(options.updates, desc=f"{options.rule}, {arm}, seed {seed}", mininterval=5):
        agents.update((partial(RULES[options.rule], agents), 1.0))
    reached = agents.scores()
    by_world = lambda x: x.view(len(WORLDS), -1)  # noqa: E731
    floor = by_world(floor).mean(1, keepdim=True)
    return {
        "rule": options.rule,
        "arm": arm,
        "seed": seed,
        "agents": options.agents,
        "updates": options.updates,
        "worlds": [world.__name__ for world in WORLDS],
        "at_random": floor[:, 0].tolist(),
        "returns": by_world(reached).tolist(),
        "failed": (~(by_world(reached) >= floor)).sum(1).tolist(),
        "unsound": int(agents.unsound().sum()),
        "replaced": int(agents.replaced.sum()),
        "seconds": time.process_time() - start,
    }


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % interval of Student's t."""
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return f"{x.mean():.1f}"
    return f"{x.mean():.1f} +- {stats.t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Failed agents of every arm, and the mean return in every world; populations of one kind are compared."""
    lines = [
        f"| rule, agents, updates, arm | failed of {len(WORLDS)} x agents | difference "
        f"| {' | '.join(w.__name__ for w in WORLDS)} |",
        "|---|---|---|" + "---|" * len(WORLDS),
    ]
    for kind in dict.fromkeys(tuple(row[name] for name in KIND) for row in rows):
        alike = [row for row in rows if tuple(row[name] for name in KIND) == kind]
        arms = [arm for arm in ARMS if any(row["arm"] == arm for row in alike)]
        first = {row["seed"]: sum(row["failed"]) for row in alike if row["arm"] == arms[0]}
        for arm in arms:
            mine = [row for row in alike if row["arm"] == arm]
            change = [float(sum(row["failed"]) - first[row["seed"]]) for row in mine if row["seed"] in first]
            reached = torch.tensor([row["returns"] for row in mine]).mean((0, 2)).tolist()
            counts = interval([float(sum(row["failed"])) for row in mine])
            cells = [
                ", ".join(map(str, (*kind, arm))),
                counts,
                interval(change) if change else "",
                *(f"{x:.1f}" for x in reached),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=list(RULES), default="critic")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--out", type=results_file)
    options = parser.parse_args()
    if min(options.seeds, options.agents, options.updates) < 1:
        parser.error("seeds, agents and updates must be at least 1.")
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    key = (*KIND, "seed", "arm")
    done = {tuple(row[name] for name in key) for row in rows}
    for seed in range(options.seeds):
        for arm in options.arms:
            if (options.rule, options.agents, options.updates, seed, arm) not in done:
                rows.append(lived(options, seed, arm))
                write_results(options.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
