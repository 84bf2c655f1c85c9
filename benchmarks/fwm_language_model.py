"""Time and peak memory of a training step of the Fast Weight Memory's language model, against its literal cell.

    python benchmarks/fwm_language_model.py [--tokens 200] [--batch 32] [--out FILE]

The model is that of catbAbI (recipe `catbabi_qm_fwm`, 693,985 parameters); a step is forward, backward and Adam, from a
carried state, on one thread. The literal side differs in the memory alone, which goes token by token as in the released
code; both have PyTorch's LSTM and the same weights. `measure` says what the columns are.
"""

from __future__ import annotations

import argparse
import functools
import json

import torch
import torch.nn.functional as F
from measure import in_a_process, measure, results_file, write_results
from torch import Tensor

from algornn import FastWeightMemory, MemoryAugmentedLSTM, TokenNetwork

VOCABULARY = 200


class LiteralMemory(FastWeightMemory):
    """The same cell, one token after the other."""

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over tokens ``[B, T, D]``; the mask is not looked at."""
        s, r, v, beta = self._associations(x)
        n, *roles = self.read_head(x).split(self.read_sizes, -1)
        state = x.new_zeros(len(x), s.shape[-1], r.shape[-1], v.shape[-1]) if state is None else state
        reads = []
        for t in range(x.shape[1]):
            key = torch.einsum("bs,br->bsr", s[:, t], r[:, t])
            old = torch.einsum("bsr,bsrv->bv", key, state)
            state = state + torch.einsum("bsr,bv->bsrv", key, beta[:, t, None] * (v[:, t] - old))
            state = state / (torch.relu(state.flatten(1).norm(dim=1) - 1) + 1)[:, None, None, None]
            q = n[:, t]
            for role in roles:
                q = F.layer_norm(torch.einsum("bsrv,bs,br->bv", state, q, role[:, t].tanh()), q.shape[-1:])
            reads.append(q)
        return self.output(torch.stack(reads, 1)), state


SIDES = {"literal": LiteralMemory, "ours": FastWeightMemory}


def model(side: str, hidden_size: int = 256) -> TokenNetwork:
    """The language model with the memory of a side; the same weights on both sides."""
    torch.manual_seed(0)
    layer = functools.partial(MemoryAugmentedLSTM, hidden_size=hidden_size, memory=SIDES[side])
    return TokenNetwork(VOCABULARY, VOCABULARY, layer, hidden_size, output_bias=False)


def loss(network: TokenNetwork, batch: int, tokens: int) -> Tensor:
    """Cross-entropy of a second segment of random tokens, from the detached state that a first one left."""
    ids = torch.randint(1, VOCABULARY, (batch, 2 * tokens + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        state = network(ids[:, : min(tokens, 8)])[1]
    logits, _ = network(ids[:, tokens:-1], state)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, tokens + 1 :].flatten())


def train(network: TokenNetwork, optimizer: torch.optim.Optimizer, batch: int, tokens: int) -> None:
    """One training step."""
    optimizer.zero_grad()
    loss(network, batch, tokens).backward()
    optimizer.step()


def agreement(tokens: int) -> float:
    """Largest relative difference of the loss and all gradients between the two sides in float64."""
    found = []
    for side in SIDES:
        network = model(side, hidden_size=16).double()
        value = loss(network, 2, tokens)
        trained = [p for p in network.parameters() if p.requires_grad]
        found.append([value.detach(), *torch.autograd.grad(value, trained)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=results_file)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        network = model(args.side)
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
        step = functools.partial(train, network, optimizer)
        repeats = 2 if args.side == "literal" else 7
        print(json.dumps(measure(lambda: step(args.batch, args.tokens), repeats, lambda: step(2, 2))))
        return
    how = ("--batch", args.batch, "--tokens", args.tokens, "--side")
    mine, theirs = (in_a_process(__file__, *how, side) for side in ("ours", "literal"))
    row = {"tokens": args.tokens, "batch": args.batch, "literal": theirs, "ours": mine}
    row |= {"agreement": agreement(30), "time_ratio": theirs["seconds"] / mine["seconds"]}
    row["memory_ratio"] = theirs["peak_mb"] / mine["peak_mb"]
    print("| B, T | literal s | ours s | ratio | literal MB | ours MB | ratio | agreement |\n|" + "---|" * 8)
    print(
        f"| {args.batch}, {args.tokens} | {theirs['seconds']:.2f} | {mine['seconds']:.3f} | {row['time_ratio']:.1f} "
        f"| {theirs['peak_mb']:.0f} | {mine['peak_mb']:.0f} | {row['memory_ratio']:.0f} | {row['agreement']:.0e} |"
    )
    write_results(args.out, [row])


if __name__ == "__main__":
    main()
