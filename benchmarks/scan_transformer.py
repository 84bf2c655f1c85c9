"""Training examples per second of the Transformer on SCAN: the learner against the released loop's formulation.

    python benchmarks/scan_transformer.py [--networks absolute relative_universal] [--batches 8] [--rounds 3]

Both sides train the same network on the same batches of 256 (Csordas, Irie and Schmidhuber 2021, 3 + 3 layers of width
128) on one thread, and the losses of the first batch must agree to 1e-5. The released loop's formulation: the whole
batch padded to its longest pair, attention as two products around a masked softmax, positions shifted by a padded view,
Adam. The learner: parts of similar length,
cut where the least padding is left, fused attention, fused Adam. Time is processor time, the two sides in turn,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from types import MethodType

import torch
from measure import in_a_process, results_file, write_results
from torch import Tensor
from torch.nn.functional import dropout

from algornn import SequenceToSequence, TransformerSeq2Seq
from algornn.datamodules import SCAN, PairBatch
from algornn.models.attention import MultiHeadAttention, RelativeAttention, sinusoids

NETWORKS = {
    "absolute": {"positions": "absolute", "scaling": "PED"},
    "relative_universal": {"positions": "relative", "scaling": "TEU", "shared": True},
}
GROUPS = 6  # for a processor; on a GPU, that many small parts may cost more than they save


def literal_read(
    self: MultiHeadAttention, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """What `MultiHeadAttention.read` computes, step by step."""
    q, scale = self._split(self.query(x)), self.head_size**-0.5
    if isinstance(self, RelativeAttention):
        scores = (q + self.content_bias[:, None]) @ k.mT + distances(self, q + self.position_bias[:, None], k.shape[2])
    else:
        scores = q @ k.mT
    scores = scores * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    weights = dropout(scores.softmax(-1), self.dropout, self.training)
    return self._merge(weights @ v)


def distances(attention: RelativeAttention, q: Tensor, K: int) -> Tensor:
    """Scores of relative positions by the padded view of Transformer-XL, from the farthest on the left on."""
    T = q.shape[2]
    r = attention.position(sinusoids(torch.arange(-T + 1, K, device=q.device), attention.position.weight))
    scores = q @ r.unflatten(-1, (attention.heads, -1)).transpose(0, 1).mT  # [B, H, T, T + K - 1]
    padded = torch.cat([scores, scores.new_zeros(*scores.shape[:3], 1)], 3)
    rows = padded.flatten(2)[..., T - 1 :][..., : T * (T + K - 1)]
    return rows.unflatten(-1, (T, T + K - 1))[..., :K]


def learner(network: str, side: str) -> SequenceToSequence:
    """The untrained learner of one side, the same weights on both."""
    torch.manual_seed(0)
    model = TransformerSeq2Seq(15, 8, dropout=0.1, **NETWORKS[network])
    if side == "released":
        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.read = MethodType(literal_read, module)
    fused = side == "learner"
    adam = partial(torch.optim.Adam, lr=1e-3, fused=fused or None)
    return SequenceToSequence(model, adam, length_groups=GROUPS if fused else 1)


def batches(count: int) -> list[PairBatch]:
    """The first training batches of the split with a cutoff of 26 actions."""
    loader = iter(SCAN("cutoff_26", batch_size=256).train_dataloader())
    return [next(loader) for _ in range(count)]


def train(network: str, side: str, count: int) -> dict[str, float]:
    """Seconds of processor time for `count` steps after two to warm up."""
    torch.set_num_threads(1)
    data, own = batches(count + 2), learner(network, side)
    optimizer = own.optimizer(own.parameters())

    def steps(some: list[PairBatch]) -> None:
        for batch in some:
            optimizer.zero_grad()
            own.loss(own.model, batch).backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 5.0)
            optimizer.step()

    steps(data[:2])
    start = time.process_time()
    steps(data[2:])
    return {"seconds": time.process_time() - start}


def agreement(network: str) -> float:
    """Difference of the two sides' losses on one batch, without dropout."""
    batch = batches(1)[0]
    with torch.no_grad():
        losses = [
            own.loss(own.model, batch) for own in (learner(network, side).eval() for side in ("learner", "released"))
        ]
    return abs(float(losses[0] - losses[1]))


def compare(network: str, count: int, rounds: int) -> dict:
    """One row: examples per second of both sides and their ratio."""
    difference = agreement(network)
    if difference > 1e-5:
        raise ValueError(f"the two sides' losses differ by {difference:.1e}")
    seconds: dict[str, list[float]] = {"released": [], "learner": []}
    for _ in range(rounds):
        for side, found in seconds.items():
            found.append(in_a_process(__file__, "--side", side, "--networks", network, "--batches", count)["seconds"])
    rate = {side: 256 * count / statistics.median(found) for side, found in seconds.items()}
    return {
        "network": network,
        "batches": count,
        "rounds": rounds,
        "difference": difference,
        "examples_per_second": {side: round(value, 1) for side, value in rate.items()},
        "ratio": round(rate["learner"] / rate["released"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", type=int, default=8, help="training steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--side", choices=["released", "learner"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=results_file, help="write the rows to this JSON file")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(options.networks[0], options.side, options.batches)))
        return
    rows = []
    for network in options.networks:
        rows.append(compare(network, options.batches, options.rounds))
        print(json.dumps(rows[-1]), flush=True)
    write_results(options.out, rows)


if __name__ == "__main__":
    main()
