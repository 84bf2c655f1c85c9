"""Time of a step of mask learning, against the published procedure written literally.

    python benchmarks/mask_learning.py [--steps 60] [--rounds 3] [--out FILE]

The literal side has one tensor of logits per parameter and, for each of the four masks of a step, draws the noise as
log u - log(1 - u), relaxes it by a sigmoid, cuts at 1/2 with the straight-through estimator, multiplies the weights,
runs the model on a quarter of the batch and lets autograd do the rest, down to the penalty and Adam. Gradients are not
clipped on either side. The network is the smallest of the paper, 400-400-200 on 42 inputs, batch 128; both sides take
turns on one thread and the time is processor time (the median over steps, then over rounds). Before, both sides compute
one gradient with the same noise, in float64.

Csordás, van Steenkiste and Schmidhuber (2021), https://arxiv.org/abs/2010.02066, section 2.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
import torch.nn.functional as F
from measure import results_file, write_results
from torch import Tensor, nn
from torch.func import functional_call

from algornn.probes.mask_learning import INIT, MaskLearning, MaskSampler
from algornn.probes.subject import Subject, cross_entropy
from algornn.probes.weight_masks import maskable

SIZES, BATCH, SAMPLES, LR, BETA = (42, 400, 400, 200, 20), 128, 4, 1e-2, 1e-4
Batch = tuple[Tensor, Tensor]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(SIZES)]
    return nn.Sequential(*[part for pair in layers for part in pair][:-1]).to(dtype).eval().requires_grad_(False)


def batch_of(dtype: torch.dtype = torch.float32) -> Batch:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, SIZES[0], generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(SIZES[-1], (BATCH,), generator=g)


class Literal:
    """The published procedure: `noise`, if given, takes the place of the draws, one dictionary per sample."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = maskable(model)
        self.logits = {name: torch.full_like(w, INIT).requires_grad_() for name, w in self.weights.items()}
        self.adam = torch.optim.Adam(list(self.logits.values()), LR, eps=1e-20)

    def step(self, batch: Batch, noise: list[dict[str, Tensor]] | None = None) -> None:
        """One step on a batch."""
        self.adam.zero_grad()
        x, y = batch
        n = len(x) // SAMPLES
        for k in range(SAMPLES):
            state = {}
            for name, weight in self.weights.items():
                if noise is None:
                    u = torch.rand_like(weight)
                    g = torch.log(u) - torch.log(1 - u)
                else:
                    g = noise[k][name]
                soft = torch.sigmoid(self.logits[name] + g)
                mask = (soft > 0.5).to(soft.dtype) - soft.detach() + soft
                state[name] = weight * mask
            part = slice(k * n, (k + 1) * n)
            (F.cross_entropy(functional_call(self.model, state, (x[part],)), y[part]) / SAMPLES).backward()
        (BETA / len(x) * sum(logits.sum() for logits in self.logits.values())).backward()
        self.adam.step()


def ours(model: nn.Module, batch: Batch) -> MaskLearning:
    subject = Subject(model, [batch], cross_entropy, torch.device("cpu"), torch.Generator())
    return MaskLearning(subject, maskable(model), LR, BETA, SAMPLES)


def agreement() -> float:
    """Largest relative difference of the two sides' gradients with the same noise, in float64."""
    model, batch = network(torch.float64), batch_of(torch.float64)
    mine, literal = ours(model, batch), Literal(model)
    found = mine.gradient(batch, torch.Generator().manual_seed(3))
    # The slopes s (1 - s) and the masks of our draws give back the soft masks, and so the noise.
    hard, slope = MaskSampler(mine.logits, SAMPLES)(mine.logits, torch.Generator().manual_seed(3))
    root = (1 - 4 * slope).clamp(min=0).sqrt()
    noise = torch.logit((1 + torch.where(hard > 0, root, -root)) / 2) - INIT
    parts = noise.split(mine.sizes, 1)
    drawn = [
        {name: part[k].view_as(w) for (name, w), part in zip(literal.weights.items(), parts, strict=True)}
        for k in range(SAMPLES)
    ]
    literal.step(batch, drawn)
    expected = torch.cat([logits.grad.flatten() for logits in literal.logits.values()])
    return float((found - expected).abs().max() / expected.abs().max())


def seconds(step: object, steps: int) -> float:
    times = []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=results_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    error = agreement()
    if not error < 1e-6:
        raise SystemExit(f"The two sides' gradients differ by {error:.0e}.")
    model, batch = network(), batch_of()
    literal, mine, generator = Literal(model), ours(model, batch), torch.Generator().manual_seed(0)
    sides = {"literal": lambda: literal.step(batch), "ours": lambda: mine.advance([batch], [0], generator)}
    for step in sides.values():
        seconds(step, 3)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, step in sides.items():
            found[side].append(seconds(step, args.steps))
    row = {side: statistics.median(times) for side, times in found.items()}
    row |= {"ratio": row["literal"] / row["ours"], "agreement": error, "weights": len(mine.logits), "batch": BATCH}
    print("| weights | literal ms | ours ms | ratio | agreement |\n|" + "---|" * 5)
    print(
        f"| {row['weights']:,} | {1e3 * row['literal']:.1f} | {1e3 * row['ours']:.1f} | {row['ratio']:.2f} "
        f"| {error:.0e} |"
    )
    write_results(args.out, [row])


if __name__ == "__main__":
    main()
