r"""Does a network hold a variable of an algorithm at a site, so that swapping the one swaps the other?

A causal model C of the task has a variable Z. For a pair of examples, base b and source s, the part of the activation
h that lies in the span of the orthonormal columns of :math:`Q \in R^{d \times k}` is taken from the source,

.. math:: h \leftarrow h_b + Q Q^\top (h_s - h_b), \qquad y^* = C(b\ with\ Z := Z(s))

and interchange intervention accuracy (IIA) is the share of pairs for which the network then answers :math:`y^*`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.probes.batches import size_of, take
from algornn.probes.controls import finite, mean_interval, scrambled, with_interval
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import activation_of, flat
from algornn.probes.sites import Site, replaced
from algornn.probes.subject import Subject

RANDOM = 5  # subspaces of random control


@runtime_checkable
class CausalModel(Protocol):
    """What `InterchangeProbe` has to know of an algorithm: one of its variables, and what follows from it."""

    def variable(self, batch: Any) -> Tensor:
        """The value of Z for each example, ``[B]`` or ``[B, m]``."""

    def counterfactual(self, base: Any, source: Any) -> Tensor:
        """The label ``[B]`` or ``[B, T]`` of each base when Z is taken from the source in the same row.

        Negative labels, such as those of padding, do not count.
        """


class InterchangeProbe(Probe):
    r"""Interchange interventions: axis by axis, as a whole, in random subspaces, and in a subspace that is learned.

    * `das_iia`: distributed alignment search (DAS). Q of k = `dimensions` columns is learned by Adam on the
      cross-entropy of :math:`y^*`, the network frozen, and measured on pairs of other batches;
    * `localist_iia`: of the best axis (or block of axes), chosen on the batches that DAS learns on; the table and the
      figure `axes` show all of them;
    * `accuracy`: how often the network agrees with C without intervention.

    Batches are split: even ones for learning and choosing, odd ones for every number. The d axes of a site are those
    of its activation, flattened: time and layers count as axes. A network that is called step by step needs the call
    in the site, such as "cell@2". Half of the pairs, where C allows, are such that :math:`y^*` is not the base's own
    label; otherwise doing nothing would look like alignment.

    Controls: `noop_iia` (nothing is replaced), `full_swap_iia` (Q = I), `random_iia` (random Q of k columns, mean of
    5), `scrambled_das_iia` (DAS in a network whose weights are shuffled: with many dimensions DAS may align anything),
    and `ablated_accuracy`: the learned subspace replaced by its mean. Where ablation costs nothing, the subspace is
    not what the network computes with, and DAS has found a dormant pathway.

    Args:
        causal_model: see `CausalModel`.
        site: where to intervene, see `algornn.probes.sites`; not all calls (`@:`) at once.
        dimensions: k; None: no subspace is learned.
        steps: of Adam on Q.
        lr: its learning rate.
        blocks: the axes are swapped in at most so many blocks of neighbours; one by one if there are no more.
        logits: `logits(output, batch) -> [B, C] or [B, T, C]`; None: the output itself.
        schedule: the arguments of `Probe`.

    Source: Geiger, Lu, Icard and Potts (2021), https://arxiv.org/abs/2106.02997; DAS: Geiger, Wu, Potts, Icard and
    Goodman (2024), https://arxiv.org/abs/2303.02536; dormant pathways: Makelov, Lange and Nanda (2023),
    https://arxiv.org/abs/2311.17030. Deviation: sources are drawn with replacement from the base's batch.
    """

    tried = ("site",)

    def __init__(
        self,
        causal_model: CausalModel,
        site: str,
        dimensions: int | None = 1,
        steps: int = 200,
        lr: float = 5e-2,
        blocks: int = 32,
        logits: Callable[[Any, Any], Tensor] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if not isinstance(causal_model, CausalModel):
            raise TypeError(
                "Expected a causal model with the methods variable(batch) and counterfactual(base, source), got "
                f"{type(causal_model).__name__}."
            )
        if Site.parse(site).call == ":":
            raise ValueError(f"An interchange is made at one call: write a number in place of ':' in {site!r}.")
        for name, value in {"dimensions": dimensions, "steps": steps, "lr": lr, "blocks": blocks}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        self.causal_model = causal_model
        self.site = site
        self.dimensions = dimensions
        self.steps = steps
        self.lr = lr
        self.blocks = blocks
        self.logits = logits

    def measure(self, subject: Subject) -> ProbeResult:
        """Learn Q for the network and for its control, then intervene in every batch; shared out over the processes."""
        activation = activation_of(subject, self.site, subject.loader[0])
        if not activation.is_floating_point():
            raise ValueError(f"The site {self.site!r} holds {activation.dtype} without directions: choose another.")
        d = math.prod(activation.shape[1:])
        if self.dimensions is not None and self.dimensions > d:
            raise ValueError(f"The site {self.site!r} has {d} axes, fewer than dimensions={self.dimensions}.")
        control = scrambled(subject.model, subject.generator)
        networks = {"das": subject.model, "scrambled_das": control} if self.dimensions else {}
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient for recurrent layers in eval mode
            learned = subject.map(lambda name, g: self._learn(subject, networks[name], d, g), networks)
        bases = dict(zip(networks, learned, strict=True))
        blocks = torch.arange(d).tensor_split(min(d, self.blocks))
        hits = subject.map(lambda i, g: self._batch(subject, control, i, bases, blocks, g), range(len(subject.loader)))
        return report(hits, [_block_name(block) for block in blocks], self.dimensions, subject.generator)

    def _learn(self, subject: Subject, model: nn.Module, d: int, generator: torch.Generator) -> Tensor:
        """DAS: the orthonormal Q ``[d, k]`` with the least cross-entropy of the counterfactual labels."""
        k = self.dimensions or 1
        layer = nn.Linear(d, k, bias=False, device=subject.device)
        layer.weight.data = orthonormal(d, k, generator).T.contiguous()
        nn.utils.parametrizations.orthogonal(layer)
        adam = torch.optim.Adam(layer.parameters(), lr=self.lr)
        even = range(0, len(subject.loader), 2)
        order = torch.randint(len(even), (self.steps,), generator=generator, device=generator.device)
        for index in order.tolist():
            batch = subject.loader[even[index]]
            sources, gold = self._pairs(batch, generator)
            logits = self._intervened(subject, model, batch, swap(sources, layer.weight.T), gradient=True)
            if not logits.requires_grad:
                raise ValueError(f"The output does not depend on the site {self.site!r}: choose a site before it.")
            loss = F.cross_entropy(logits.flatten(0, -2), gold.flatten().clamp(min=-1), ignore_index=-1)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return layer.weight.T.detach()

    @torch.no_grad()
    def _batch(
        self,
        subject: Subject,
        control: nn.Module,
        index: int,
        bases: dict[str, Tensor],
        blocks: Sequence[Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Whether each pair of a batch is a hit, under every intervention."""
        batch = subject.loader[index]
        sources, gold = self._pairs(batch, generator)
        own = self._own(batch)
        d = sum(map(len, blocks))

        def hit(edit: Callable[[Tensor], Tensor], wanted: Tensor = gold, model: nn.Module = subject.model) -> Tensor:
            logits = self._intervened(subject, model, batch, edit)
            right = (logits.argmax(-1) == wanted) | (wanted < 0)
            return right.flatten(1).all(1) if wanted.ndim > 1 else right

        hits = {"accuracy": hit(torch.clone, own), "noop": hit(torch.clone), "full_swap": hit(lambda h: h[sources])}
        for name, Q in bases.items():
            Q = Q.to(subject.device)
            hits[name] = hit(swap(sources, Q), model=control if name == "scrambled_das" else subject.model)
        if "das" in bases:
            hits["ablated"] = hit(ablate(bases["das"].to(subject.device)), own)
        k = self.dimensions or len(blocks[0])
        random = [hit(swap(sources, orthonormal(d, k, generator))).double() for _ in range(RANDOM)]
        hits["random"] = torch.stack(random).mean(0)
        hits["axes"] = torch.stack([hit(swap_axes(sources, block.to(subject.device))) for block in blocks])
        return {**hits, "changed": _rows_differ(gold, own)}

    def _own(self, batch: Any) -> Tensor:
        """The labels that C gives without an intervention."""
        return self.causal_model.counterfactual(batch, batch)

    def _pairs(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sources ``[B]`` and counterfactual labels."""
        _, of = self.causal_model.variable(batch).unique(dim=0, return_inverse=True)
        if len(of) != size_of(batch):
            raise ValueError(f"variable(batch) must give one value per example, {size_of(batch)}, got {len(of)}.")
        own, n = self._own(batch), len(of)
        first = [int((of == value).nonzero()[0]) for value in range(int(of.max()) + 1)]  # an example of each value
        labels = [self.causal_model.counterfactual(batch, take(batch, of.new_full((n,), row))) for row in first]
        changed = torch.stack([_rows_differ(label, own) for label in labels])
        sources = balanced_sources(of, changed, generator)
        return sources, self.causal_model.counterfactual(batch, take(batch, sources))

    def _intervened(
        self, subject: Subject, model: nn.Module, batch: Any, edit: Callable[[Tensor], Tensor], gradient: bool = False
    ) -> Tensor:
        """The logits of a batch with an edited activation."""
        with replaced(model, {self.site: edit}):
            output = subject.forward(batch, model, gradient)
        logits = output if self.logits is None else self.logits(output, batch)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"Expected logits, got an output of {type(logits).__name__}: pass logits=..., a function of (output, "
                "batch)."
            )
        return logits


def interchange(base: Tensor, source: Tensor, Q: Tensor) -> Tensor:
    """h_b + Q Q^T (h_s - h_b) of activations ``[B, ...]``, whose flattened axes are the rows of Q ``[d, k]``."""
    difference = flat(source - base)
    return base + (difference @ Q @ Q.T).view_as(base)


def swap(sources: Tensor, Q: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit that takes the subspace Q of each row from the row `sources` ``[B]``."""
    return lambda h: interchange(h, h[sources], Q.to(h.dtype))


def swap_axes(sources: Tensor, axes: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit that takes some of the flattened axes from the row `sources`."""

    def edit(h: Tensor) -> Tensor:
        rows = flat(h).clone()
        rows[:, axes] = rows[sources][:, axes]
        return rows.view_as(h)

    return edit


def ablate(Q: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit that puts the batch's mean into the subspace Q."""
    return lambda h: interchange(h, h.mean(0, keepdim=True).expand_as(h), Q.to(h.dtype))


def orthonormal(d: int, k: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns ``[d, k]``, uniform in direction."""
    return torch.linalg.qr(torch.randn(d, min(d, k), generator=generator, device=generator.device))[0]


def balanced_sources(of: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a source for each base, such that half of the labels change.

    Args:
        of: which value of Z each example has, ``[B]``.
        changed: whether a value of Z changes the label of a base, ``[values, B]`` bool.
        generator: draws which half, and the sources.

    Returns:
        ``[B]``, never the base itself unless there is no other; a base of which no source does (or all do) change the
        label gets any source.
    """
    B = len(of)
    wanted = torch.randperm(B, generator=generator, device=generator.device).to(of.device) < B // 2
    others = ~torch.eye(B, dtype=torch.bool, device=of.device)
    fits = (wanted[:, None] == changed[of].T) & others
    fits = torch.where(fits.any(1, keepdim=True), fits, others | (B == 1))
    return torch.multinomial(fits.float().to(generator.device), 1, generator=generator)[:, 0].to(of.device)


def report(
    hits: Sequence[dict[str, Tensor]], blocks: Sequence[str], k: int | None, generator: torch.Generator
) -> ProbeResult:
    """Scalars, table, figures and failures of the hits of every batch; the even ones serve to choose an axis."""
    held_out = {key: torch.cat([part[key] for part in hits[1::2] or hits], dim=-1).double() for key in hits[0]}
    chosen = int(torch.cat([part["axes"] for part in hits[::2]], dim=-1).double().mean(1).argmax())
    held_out["localist"] = held_out["axes"][chosen]
    names = [name for name in ("das", "localist", "noop", "random", "full_swap", "scrambled_das") if name in held_out]
    scalars: dict[str, float] = {f"{name}_iia": float(held_out[name].mean()) for name in names}
    scalars |= {"accuracy": float(held_out["accuracy"].mean()), "changed": float(held_out["changed"].mean())}
    if k:
        scalars["ablated_accuracy"] = float(held_out["ablated"].mean())
    for name in names:
        interval = mean_interval(held_out[name], generator)
        scalars |= with_interval(f"{name}_iia", scalars[f"{name}_iia"], interval)
    axes = held_out["axes"].mean(1).tolist()
    scalars |= {f"iia/{block}": value for block, value in zip(blocks, axes, strict=True)}
    table = {"block": list(blocks), "iia": axes, "chosen": [i == chosen for i in range(len(blocks))]}
    return ProbeResult(
        finite(scalars), {"axes": table}, _figures(scalars, names, table), _failures(scalars, k, len(hits))
    )


def _failures(scalars: dict[str, float], k: int | None, batches: int) -> list[str]:
    """What the reader must not conclude."""
    name = "das_iia" if k else "localist_iia"
    value, low = scalars[name], scalars[f"{name}_low"]
    failures = []
    if low <= scalars["noop_iia"]:
        failures.append(
            f"Doing nothing gives an IIA of {scalars['noop_iia']:.3f}, the intervention {value:.3f}: do not conclude "
            "that the variable is held at this site."
        )
    if k and low <= scalars["scrambled_das_iia"]:
        failures.append(
            f"DAS aligns a network of shuffled weights as well ({scalars['scrambled_das_iia']:.3f} against "
            f"{value:.3f}): do not conclude that training put the variable there; try fewer dimensions."
        )
    if k and low > scalars["noop_iia"] and scalars["ablated_accuracy"] >= scalars["accuracy"]:
        failures.append(
            f"Without the learned subspace the network is as accurate ({scalars['ablated_accuracy']:.3f}): do not "
            "conclude that it computes with that subspace; DAS may have found a dormant pathway."
        )
    if batches < 2:
        failures.append("There is one batch only: the subspace was learned on the pairs that measure it, so its IIA "
                        "is too high; use two batches or more.")  # fmt: skip
    return failures


def _figures(scalars: dict[str, float], names: Sequence[str], table: dict[str, list[Any]]) -> dict[str, Any]:
    labels = {
        "das": "DAS", "localist": "best axis", "noop": "nothing", "random": "random Q", "full_swap": "all axes",
        "scrambled_das": "DAS, shuffled",
    }  # fmt: skip
    n = len(table["block"])
    frame = {"kind": "bar", "ylabel": "IIA", "ylim": [0, 1]}
    return {
        "iia": {
            **frame,
            "title": "Interchange intervention accuracy",
            "xlabel": "what is taken from the source",
            "x": [labels[name] for name in names],
            "series": {"IIA": [scalars[f"{name}_iia"] for name in names]},
            "intervals": {"IIA": [[scalars[f"{name}_iia_{end}"] for name in names] for end in ("low", "high")]},
        },
        "axes": {
            **frame,
            "title": "Interchange intervention accuracy, axis by axis",
            "xlabel": "axes that are taken from the source",
            "x": table["block"],
            "series": {"IIA": table["iia"]},
            "levels": {"nothing replaced": [scalars["noop_iia"]] * n},
        },
    }


def _rows_differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether labels ``[B]`` or ``[B, T]`` differ anywhere."""
    return (a != b).flatten(1).any(1) if a.ndim > 1 else a != b


def _block_name(block: Tensor) -> str:
    first, last = int(block[0]), int(block[-1])
    return f"axis {first}" if first == last else f"axes {first}-{last}"
