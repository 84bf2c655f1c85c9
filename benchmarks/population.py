"""Time of an update of a population of agents that are stacked, against the same agents one by one.

    python benchmarks/population.py [--agents 8] [--width 32] [--size B T] [--rounds 10] [--device cpu]
                                    [--out benchmarks/results/population.json]

An update is two steps of the critics, one of the policies by the learned objective, and the gradient of the objective's
agreement; no episode falls into the part that is measured. The agents, their seeds and their replay are the same on
both sides, which take turns on one thread; the first gradients of both are compared. Times are of the processor, and of
the clock on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from measure import results_file, write_results

from algornn.meta import Agents, LearnedObjective, Reacher, agreement
from algornn.meta.policy_rules import learned

SIZES = ((64, 1), (8, 8), (64, 10))  # segments B, their steps T


def population(options: argparse.Namespace, first: int, number: int, size: tuple[int, int]) -> Agents:
    """Agents number `first` and following, after their first episode."""
    seeds, widths = 7919 * torch.arange(first, first + number, device=options.device) + 1, (options.width,) * 2
    agents = Agents([Reacher] * number, seeds, hidden_sizes=widths, segments=size, every=10**6, random=0)
    agents.replay.add(agents.collect(1))
    agents.time = 1
    return agents


def update(objective: LearnedObjective, agents: Agents) -> list[torch.Tensor]:
    """One update of agents, and the objective's gradient, summed over them."""
    agents.update((lambda w, segments: learned(objective, agents, w, segments).sum((1, 2)), 1.0))
    score = agreement(objective, agents, agents.draw(3)).sum()
    return list(torch.autograd.grad(score, list(objective.parameters())))


def now(device: str) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compared(options: argparse.Namespace, objective: LearnedObjective, size: tuple[int, int]) -> dict[str, Any]:
    """Both sides at one size of the segments."""
    stacked = population(options, 0, options.agents, size)
    single = [population(options, n, 1, size) for n in range(options.agents)]
    sides = {"stacked": [stacked], "single": single}
    one = update(objective, stacked)
    other = [sum(parts) for parts in zip(*(update(objective, agents) for agents in single), strict=True)]
    far = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(one, other, strict=True))
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, populations in sides.items():
            start = now(options.device)
            for agents in populations:
                update(objective, agents)
            found[side].append(1e3 * (now(options.device) - start))
    ms = {f"{side}_ms": statistics.median(times) for side, times in found.items()}
    ratio = {"ratio": ms["single_ms"] / ms["stacked_ms"], "difference": far}
    device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    return {"device": device, "agents": options.agents, "width": options.width, "segments": size} | ms | ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, action="append", help="Segments and their steps; may be repeated.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=results_file)
    options = parser.parse_args()
    if min(options.agents, options.width, options.rounds, *(x for size in options.size or SIZES for x in size)) < 1:
        parser.error("agents, width, rounds and both numbers of a size must be at least 1.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and torch sees none: leave it out to measure on the processor.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective, rows = LearnedObjective(advantages=True).to(options.device), []
    print("| agents, width | segments, steps | one by one ms | stacked ms | ratio | difference |")
    print("|---|---|---|---|---|---|")
    for size in map(tuple, options.size or SIZES):
        row = compared(options, objective, size)
        times = f"{row['single_ms']:.1f} | {row['stacked_ms']:.1f} | {row['ratio']:.2f} | {row['difference']:.0e}"
        print(f"| {options.agents}, {options.width} | {size[0]}, {size[1]} | {times} |", flush=True)
        rows.append(row)
    write_results(options.out, rows)


if __name__ == "__main__":
    main()
