"""Does a mixture of modules find the rules? The test bed of the usage measures, by `ModuleUsageProbe`.

    python benchmarks/module_usage.py [--rules 2 8 32] [--steps 100000] [--seeds 3] [--out FILE]

R rules (alpha_r, beta_r) ~ N(0, 1); the input is (a, b) ~ N(0, 1) and the rule's number, the target
y = 1[alpha_r a + beta_r b >= 0]. R modules, each a small network of (a, b) alone, and a router:

* `given`: module r serves rule r, and nothing is left to find out: collapse 0, alignment 0;
* `learned`: a network of the input and the rule whose softmax weighs the modules' answers, trained end to end.

All seeds (rules, weights and data of their own) train side by side, in the same steps. Published is only the direction:
the more rules, the more a learned router collapses (Mittal, Bengio and Lajoie 2022, https://arxiv.org/abs/2206.02713).
The sizes of the networks and Adam's learning rate are this script's own.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from measure import results_file, write_results
from torch import Tensor, nn

from algornn.probes import ModuleUsageProbe

BATCH, WIDTH, LR, PUBLISHED_STEPS = 256, 32, 1e-3, 100_000


class Mixture(nn.Module):
    """R modules and a router for each of S seeds; x ``[S, B, 2]`` and rules ``[S, B]`` give logits ``[S, B]``.

    Args:
        R: number of rules, and of modules.
        seeds: one per network.
        given: whether the router is told the module of each rule.
    """

    def __init__(self, R: int, seeds: list[int], given: bool) -> None:
        super().__init__()
        self.R, self.given = R, given
        shapes = {"w1": (R, 2, WIDTH), "b1": (R, 1, WIDTH), "w2": (R, WIDTH, 1), "b2": (R, 1, 1)}
        gate = {"g1": (2 + R, WIDTH), "c1": (1, WIDTH), "g2": (WIDTH, R), "c2": (1, R)}
        drawn: dict[str, list[Tensor]] = {}
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for name, shape in (shapes if given else shapes | gate).items():
                bias = name[0] in "bc"
                value = torch.zeros(shape) if bias else torch.randn(shape, generator=generator) / shape[-2] ** 0.5
                drawn.setdefault(name, []).append(value)
        for name, values in drawn.items():
            self.register_parameter(name, nn.Parameter(torch.stack(values)))
        self.router = nn.Identity()  # where the scores can be read

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        """The modules' answers, weighed by the router's scores."""
        if self.given:  # each module computes the answers of its own rule alone; examples come sorted by rule
            self.router(F.one_hot(rule, self.R).to(x.dtype))
            answers = self._answers(x.unflatten(1, (self.R, -1)))
            return answers.flatten(1)
        one_hot = F.one_hot(rule, self.R).to(x.dtype)
        hidden = torch.relu(torch.cat([x, one_hot], -1) @ self.g1 + self.c1)
        scores = self.router((hidden @ self.g2 + self.c2).softmax(-1))
        answers = self._answers(x[:, None].expand(-1, self.R, -1, -1))
        return (answers.transpose(1, 2) * scores).sum(-1)

    def _answers(self, x: Tensor) -> Tensor:
        """``[S, R, B, 2]`` to ``[S, R, B]``."""
        return (torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2)[..., 0]


class One(nn.Module):
    """The network of one seed, for batches (x ``[B, 2]``, rule ``[B]``)."""

    def __init__(self, mixture: Mixture, index: int) -> None:
        super().__init__()
        self.mixture = Mixture(mixture.R, [0], mixture.given)
        self.mixture.load_state_dict({name: p.detach()[index : index + 1] for name, p in mixture.named_parameters()})
        self.router = nn.Identity()

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        """Logits ``[B]``."""
        kept: list[Tensor] = []
        handle = self.mixture.router.register_forward_hook(lambda _, args, output: kept.append(output))
        logits = self.mixture(x[None], rule[None])[0]
        handle.remove()
        self.router(kept[0][0])
        return logits


def examples(rules: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """N examples of each rule, sorted by rule: x ``[S, R n, 2]``, rule and y ``[S, R n]``; rules ``[S, R, 2]``."""
    S, R, _ = rules.shape
    x = torch.randn(S, R * n, 2, generator=generator)
    rule = torch.arange(R).repeat_interleave(n).expand(S, -1)
    y = (x * rules.repeat_interleave(n, 1)).sum(-1) >= 0
    return x, rule, y.float()


def loss(call: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, rule, y = batch
    return F.binary_cross_entropy_with_logits(call(x, rule), y)


def run(R: int, router: str, steps: int, seeds: int) -> list[dict]:
    """Train and measure; one row per seed."""
    start = time.process_time()
    names = list(range(seeds))
    rules = torch.stack([torch.randn(R, 2, generator=torch.Generator().manual_seed(1000 + seed)) for seed in names])
    mixture = Mixture(R, names, router == "given")
    optimizer = torch.optim.Adam(mixture.parameters(), LR, fused=True)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        x, rule, y = examples(rules, max(1, BATCH // R), generator)
        value = F.binary_cross_entropy_with_logits(mixture(x, rule), y) * seeds  # each seed has a mean of its own
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    seconds = time.process_time() - start
    probe = ModuleUsageProbe("router", rule=1, loss=loss, max_batches=None)
    test = examples(rules, 1 + 10_000 // R, torch.Generator().manual_seed(8))
    rows = []
    for seed in names:
        batch = tuple(part[seed] for part in test)
        one = One(mixture, seed)
        scalars = probe.run(one, [batch]).scalars
        with torch.no_grad():
            accuracy = ((one(*batch[:2]) > 0).float() == batch[2]).double().mean()
        row = {"rules": R, "router": router, "seed": seed, "steps": steps, "budget": steps / PUBLISHED_STEPS}
        rows.append(row | {"accuracy": float(accuracy), "seconds_all_seeds": seconds} | scalars)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--steps", type=int, default=PUBLISHED_STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=results_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    print("| rules | router | accuracy | collapse avg | worst | alignment | inverse MI | adaptation |\n|" + "---|" * 8)
    for R in args.rules:
        for router in ("given", "learned"):
            found = run(R, router, args.steps, args.seeds)
            rows += found
            keys = (
                "accuracy",
                "collapse_avg",
                "collapse_worst",
                "alignment",
                "inverse_mutual_information",
                "adaptation",
            )
            means = (sum(row[key] for row in found) / len(found) for key in keys)
            print(f"| {R} | {router} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)
            write_results(args.out, rows)


if __name__ == "__main__":
    main()
