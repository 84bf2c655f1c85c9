r"""Which places of a network carry what tells a clean input from a corrupt one?

With m a difference of logits, the activation at a site s of one run is put into the other:

.. math::
    denoising_s = \frac{m(corrupt; h_s := h_s^{clean}) - m(corrupt)}{m(clean) - m(corrupt)}, \qquad
    noising_s = \frac{m(clean) - m(clean; h_s := h_s^{corrupt})}{m(clean) - m(corrupt)}

    attribution_s = \frac{\nabla_h m(corrupt) \cdot (h_s^{clean} - h_s^{corrupt})}{m(clean) - m(corrupt)}

each a mean over pairs divided by a mean over pairs. Denoising finds sites that suffice, noising sites that are needed;
attribution is the first order of denoising, of all sites in one backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from algornn.probes.batches import field_of, size_of, take, with_field
from algornn.probes.controls import bootstrap, finite
from algornn.probes.predictions import Answers, Field
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import flat
from algornn.probes.sites import Site, replaced, tensor_sites
from algornn.probes.subject import Subject

Corrupt = Callable[[Any], Any] | Mapping[int | str, int | str]
SHOWN = 24  # sites in the figure of all kinds
Metric = Callable[[Any, Any, Any], Tensor]


class ActivationPatchingProbe(Probe):
    r"""Effects of patching every site, both ways, beside their first-order estimate.

    * `denoising/<site>`, `noising/<site>`, `attribution/<site>`, see above; intervals over pairs are in the table;
    * `metric_clean` and `metric_corrupt`, the means of m; `attribution_correlation` of attribution with denoising
      over sites.

    Effects of parallel sites that make up a cut add to 1 in a linear network; those of serial sites do not add.
    Softmax and norms saturate, which spoils the first order: where the correlation is low, believe the patching.

    Controls: `shuffled/<site>`, denoising with the clean activation of another pair. An effect that stands here as well
    does not come from what is particular to the pair. If m does not tell clean from corrupt, effects are not reported.

    Args:
        corrupt: `corrupt(batch) -> batch`, counterfactual inputs of the same shapes, row by row; or the fields that
            take the place of others, such as {"x": "corrupt_x", "y": "corrupt_y"}.
        sites: see `algornn.probes.sites`; None: the output tensors of every module, at each of its calls.
        metric: `metric(output, clean_batch, corrupt_batch) -> m [B]`; None: the logit of the clean target minus that of
            the corrupt target, mean over the places where they differ. Pairs of equal targets then do not count.
        target: field of the targets, see `Answers`.
        logits: `logits(output, batch) -> [B, C] or [B, T, C]`, for the default metric; None: the output itself.
        schedule: the arguments of `Probe`.

    Source: denoising (causal tracing): Vig et al. (2020), https://arxiv.org/abs/2004.12265, and Meng, Bau, Andonian
    and Belinkov (2022), https://arxiv.org/abs/2202.05262; both ways: Heimersheim and Nanda (2024),
    https://arxiv.org/abs/2404.15255; attribution: Syed, Rager and Conmy (2023), https://arxiv.org/abs/2310.10348.
    """

    tried = ("sites",)

    def __init__(
        self,
        corrupt: Corrupt,
        sites: Sequence[str] | None = None,
        metric: Metric | None = None,
        target: Field | None = None,
        logits: Callable[[Any, Any], Tensor] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if not callable(corrupt) and not isinstance(corrupt, Mapping):
            raise TypeError(f"corrupt is a function of the batch or a mapping of its fields, got {corrupt!r}.")
        if isinstance(sites, str):
            raise TypeError(f"sites is a list of sites, got the text {sites!r}: write [{sites!r}].")
        if sites is not None and any(Site.parse(site).call == ":" for site in sites):
            raise ValueError("A patch is made at one call: write a number in place of ':' in the sites.")
        self.corrupt = corrupt
        self.sites = sites
        self.metric = metric
        self.target = target
        self.logits = logits

    def measure(self, subject: Subject) -> ProbeResult:
        """Two patched forwards per site and batch, batches shared out over the processes."""
        sites = list(self.sites) if self.sites is not None else self._all_sites(subject)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient for recurrent layers in eval mode
            parts = subject.map(
                lambda i, g: self._batch(subject, subject.loader[i], sites, g), range(len(subject.loader))
            )
        m = {key: torch.cat([part[key] for part in parts], dim=-1).double() for key in parts[0]}
        return report(m, sites, subject.generator)

    def _all_sites(self, subject: Subject) -> list[str]:
        """Every site but the model's own output, which always has the effect 1."""
        batch = subject.loader[0]
        size = size_of(batch)
        runs = [(lambda: subject.forward(batch), size)]
        if size > 1:
            runs.append((lambda: subject.forward(take(batch, slice(size - 1))), size - 1))
        found = tensor_sites(subject.model, *runs)
        return [site for site in found if Site.parse(site).path] or found

    def _batch(
        self, subject: Subject, clean: Any, sites: Sequence[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The metric ``[B]`` of both runs, and of each site ``[sites, B]`` under every patch."""
        corrupt = self.corrupt(clean) if callable(self.corrupt) else _swapped(clean, self.corrupt)
        B = size_of(clean)

        def m(batch: Any, edits: Mapping[str, Callable[[Tensor], Tensor]], gradient: bool = False) -> Tensor:
            with replaced(subject.model, edits):
                output = subject.forward(batch, gradient=gradient)
            value = (self.metric or self._difference)(output, clean, corrupt)
            if not isinstance(value, Tensor) or value.shape != (B,):
                kind = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ValueError(f"metric(output, clean, corrupt) must give one number per pair, [{B}], got {kind}.")
            return value

        h_clean, h_corrupt = subject.activations(sites, clean), subject.activations(sites, corrupt)
        for site in sites:
            _check(site, h_clean[site], h_corrupt[site], B)
        turn = int(torch.randint(1, max(B, 2), (), generator=generator, device=generator.device))
        other = torch.arange(B, device=subject.device).roll(turn)  # nobody's own; the only one has no other
        patches = {
            "denoised": [m(corrupt, {site: _put(h_clean[site])}) for site in sites],
            "noised": [m(clean, {site: _put(h_corrupt[site])}) for site in sites],
            "shuffled": [m(corrupt, {site: _put(h_clean[site][other])}) for site in sites],
        }
        if B == 1:
            patches["shuffled"] = [torch.full_like(value, torch.nan) for value in patches["shuffled"]]
        plain = {"clean": m(clean, {}), "corrupt": m(corrupt, {})}
        slopes = self._slopes(lambda edits: m(corrupt, edits, True), h_clean, h_corrupt)
        return {**plain, **{name: torch.stack(values) for name, values in patches.items()}, "slope": slopes}

    def _slopes(
        self, m: Callable[[Mapping[str, Any]], Tensor], clean: dict[str, Tensor], corrupt: dict[str, Tensor]
    ) -> Tensor:
        """The change of m ``[sites, B]`` to first order, by one backward pass."""
        shifts = {site: torch.zeros_like(h, requires_grad=True) for site, h in corrupt.items()}
        total = m({site: _shift(shift) for site, shift in shifts.items()}).sum()
        if not total.requires_grad:
            raise ValueError("The metric has no gradient: is the model's forward under no_grad?")
        gradients = torch.autograd.grad(total, list(shifts.values()), allow_unused=True)
        B = len(next(iter(clean.values())))
        return torch.stack([
            clean[site].new_zeros(B) if g is None else flat(g * (clean[site] - corrupt[site])).sum(1)
            for site, g in zip(shifts, gradients, strict=True)
        ])  # fmt: skip

    def _difference(self, output: Any, clean: Any, corrupt: Any) -> Tensor:
        """Logit of the clean target minus that of the corrupt one; not-a-number where they are the same."""
        logits = output if self.logits is None else self.logits(output, clean)
        answers = Answers(self.target)
        a, b = answers.targets(clean), answers.targets(corrupt)
        if not isinstance(logits, Tensor) or logits.shape[:-1] != a.shape or a.shape != b.shape:
            kind = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"Expected logits {[*a.shape, 'classes']} for targets {list(a.shape)} and {list(b.shape)}, got {kind}: "
                "pass a function by logits= or metric=."
            )
        return logit_difference(logits, a, b)


def logit_difference(logits: Tensor, clean: Tensor, corrupt: Tensor) -> Tensor:
    """Logit of the clean target minus that of the corrupt one, ``[B]``.

    Args:
        logits: ``[B, C]`` or ``[B, T, C]``.
        clean: targets ``[B]`` or ``[B, T]``; negative ones do not count.
        corrupt: the same.

    Returns:
        The mean over the places where the targets differ; not-a-number if there is none.
    """
    differs = (clean != corrupt) & (clean >= 0) & (corrupt >= 0)
    at = [logits.gather(-1, target.clamp(min=0)[..., None])[..., 0] for target in (clean, corrupt)]
    difference = (at[0] - at[1]).where(differs, 0).reshape(len(logits), -1).sum(1)
    return difference / differs.reshape(len(logits), -1).sum(1)  # 0 / 0 is not a number


def effects(m: Mapping[str, Tensor], rows: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    """Effects ``[sites]`` of each kind.

    Args:
        m: the metric `clean` and `corrupt` ``[n]``; `denoised`, `noised` and `shuffled` ``[sites, n]`` under patches,
            and its first-order change `slope` ``[sites, n]``; finite.
        rows: the pairs that count.
    """
    clean, corrupt = m["clean"][rows].mean(), m["corrupt"][rows].mean()
    mean = {key: m[key][:, rows].mean(1) for key in ("denoised", "noised", "slope")}
    shuffled = (m["shuffled"][:, rows] - m["corrupt"][rows]).nanmean(1)  # without batches of one pair
    total = clean - corrupt
    return {
        "denoising": (mean["denoised"] - corrupt) / total,
        "noising": (clean - mean["noised"]) / total,
        "attribution": mean["slope"] / total,
        "shuffled": shuffled / total,
    }


def report(m: Mapping[str, Tensor], sites: Sequence[str], generator: torch.Generator) -> ProbeResult:
    """Scalars, table, figures and failures.

    Args:
        m: see `effects`; not-a-numbers are left out.
        sites: their texts.
        generator: draws the intervals.
    """
    known = m["clean"].isfinite() & m["corrupt"].isfinite()
    m = {key: value[..., known].double() for key, value in m.items()}
    n = int(known.sum())
    difference = m["clean"] - m["corrupt"]
    low, high = bootstrap(lambda rows: float(difference[rows].mean()), n, generator)
    scalars = {"metric_clean": float(m["clean"].mean()), "metric_corrupt": float(m["corrupt"].mean()), "pairs": n}
    if not n or low <= 0 <= high or float(difference.mean()) == 0:
        told = f"between {low:.3f} and {high:.3f}" if n else "unknown, for no pair has two targets"
        failure = (
            f"The metric does not tell clean from corrupt inputs (their difference is {told}): effects would be ratios "
            "over nothing and are left out."
        )
        return ProbeResult(finite(scalars), {}, {"metric": _metric_figure(scalars)}, [failure])
    found = effects(m)
    correlation = _correlation(found["attribution"], found["denoising"])
    scalars["attribution_correlation"] = correlation
    kinds = ("denoising", "noising", "attribution", "shuffled")
    scalars |= {f"{k}/{site}": float(found[k][i]) for k in kinds for i, site in enumerate(sites)}
    intervals = _intervals(m, n, generator)
    columns = {**found, **intervals}
    table = [{"site": site, **{k: float(v[i]) for k, v in columns.items()}} for i, site in enumerate(sites)]
    return ProbeResult(finite(scalars), {"sites": table}, _figures(sites, found), _failures(correlation, table))


def _intervals(m: Mapping[str, Tensor], n: int, generator: torch.Generator, resamples: int = 200) -> dict[str, Tensor]:
    """Ends ``[sites]`` of the bootstrap intervals of patching over pairs, of all sites at once; see `bootstrap`."""
    draws = torch.randint(n, (resamples, n), generator=generator, device=generator.device).cpu()
    found = [effects(m, rows) for rows in draws]
    ends = {}
    for kind in ("denoising", "noising"):
        values = torch.stack([effect[kind] for effect in found])
        for end, q in {"low": 0.025, "high": 0.975}.items():
            quantile = values.nanquantile(q, dim=0)
            ends[f"{kind}_{end}"] = quantile if n > 1 else torch.full_like(quantile, math.nan)
    return ends


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's of a with b over sites; 0 if a alone is constant, not-a-number if b is or there are too few sites."""
    both = a.isfinite() & b.isfinite()
    if both.sum() < 3 or b[both].std() == 0:
        return math.nan
    return 0.0 if a[both].std() == 0 else float(torch.corrcoef(torch.stack([a[both], b[both]]))[0, 1])


def _failures(correlation: float, table: Sequence[dict[str, Any]]) -> list[str]:
    failures = []
    if correlation < 0.5:
        failures.append(
            f"Attribution agrees poorly with patching over the sites (correlation {correlation:.2f}): do not read the "
            "first-order effects, the network is too far from linear."
        )
    general = [row["site"] for row in table if row["denoising"] >= 0.5 and row["shuffled"] >= 0.95 * row["denoising"]]
    if general:
        failures.append(
            f"The clean activation of another pair does as much at {', '.join(general[:5])}"
            f"{' and others' if len(general) > 5 else ''}: do not conclude that these sites carry what is particular "
            "to a pair."
        )
    return failures


def _metric_figure(scalars: dict[str, float]) -> dict[str, Any]:
    series = {"m": [scalars["metric_clean"], scalars["metric_corrupt"]]}
    frame = {"kind": "bar", "title": "Metric without a patch", "xlabel": "run", "ylabel": "m"}
    return {**frame, "x": ["clean", "corrupt"], "series": series}


def _figures(sites: Sequence[str], found: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """A map of the largest effects, and for modules that are called again and again maps of site by call."""
    values = {kind: effect.tolist() for kind, effect in found.items()}
    shown = sorted(found["denoising"].abs().nan_to_num().argsort(descending=True)[:SHOWN].tolist())
    figures: dict[str, dict[str, Any]] = {
        "effects": {
            "kind": "heatmap",
            "title": "Effects of patching a site" + (f" (the {SHOWN} largest)" if len(sites) > SHOWN else ""),
            "xlabel": "kind of patch",
            "ylabel": "site",
            "x": list(values),
            "y": [sites[i] for i in shown],
            "values": [[column[i] for column in values.values()] for i in shown],
        }
    }
    parsed = [Site.parse(site) for site in sites]
    called = {index: site for index, site in enumerate(parsed) if site.call is not None}
    calls = sorted({int(site.call) for site in called.values() if site.call is not None})
    if len(calls) > 1:
        places = list(dict.fromkeys(_place(site) for site in called.values()))
        for kind in ("denoising", "noising"):
            cells = {(_place(site), site.call): values[kind][index] for index, site in called.items()}
            figures[kind] = {
                "kind": "heatmap",
                "title": f"{kind.capitalize()} effect",
                "xlabel": "call",
                "ylabel": "site",
                "x": calls,
                "y": places,
                "values": [[cells.get((place, call)) for call in calls] for place in places],
            }
    return figures


def _place(site: Site) -> str:
    return str(site).rpartition("@")[0]


def _put(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda h: value


def _shift(shift: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda h: h + shift


def _check(site: str, clean: Tensor, corrupt: Tensor, size: int) -> None:
    """Refuse activations that cannot be exchanged row by row, or have no gradient."""
    if not clean.is_floating_point():
        raise ValueError(f"The site {site!r} holds {clean.dtype}, which has no gradient: choose a site behind it.")
    if clean.shape != corrupt.shape:
        shapes = f"{list(clean.shape)} and {list(corrupt.shape)}"
        raise ValueError(f"Clean and corrupt activations at {site!r} differ in shape, {shapes}: pad both alike.")
    if not clean.ndim or len(clean) != size:
        raise ValueError(
            f"Expected {size} rows, one per pair, at the site {site!r}, got a tensor {list(clean.shape)}: index the "
            "dimensions before that of the batch, as in 'lstm[1][0][-1]'."
        )


def _swapped(batch: Any, fields: Mapping[int | str, int | str]) -> Any:
    """The batch with fields in the place of others."""
    values = {name: field_of(batch, other) for name, other in fields.items()}
    for name, value in values.items():
        batch = with_field(batch, name, value)
    return batch
