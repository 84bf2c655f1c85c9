"""Controls that stand beside a probe's value: intervals, permutations, and a network that learned nothing.

All randomness comes from the generator that is passed in, so a control is the same on every process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from algornn.probes.result import ProbeResult


def bootstrap(
    statistic: Callable[[Tensor], float], n: int, generator: torch.Generator, resamples: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of n independent items.

    Args:
        statistic: of the indices ``[n]`` of a resample; not-a-number where it is not defined (left out).
        n: number of items, such as examples; not of pairs or tokens, which are not independent.
        generator: draws the resamples.
        resamples: how many.
        level: probability that the interval is meant to have.

    Returns:
        Its lower and upper end; not-a-number where n < 2 or no resample had a value.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3.
    """
    if n < 2:
        return math.nan, math.nan
    draws = torch.randint(n, (resamples, n), generator=generator, device=generator.device).cpu()
    values = _known([statistic(indices) for indices in draws])
    if not len(values):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def around(value: float, resampled: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """The interval value +- 1.96 bootstrap standard errors, within the range of the statistic.

    For statistics that resampling shifts, such as mutual information: percentiles of the resamples would not hold the
    value, because examples that occur twice look like a regularity.

    Args:
        value: the statistic of all items.
        resampled: the statistic of each resample; not-a-numbers are left out.
        least: the statistic's smallest possible value.
        most: its largest.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.2.
    """
    reach = 1.96 * spread(resampled)[1]
    return (math.nan, math.nan) if math.isnan(reach + value) else (max(value - reach, least), min(value + reach, most))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of values, without not-a-numbers; both are not-a-number if none is left."""
    known = _known(values)
    return (float(known.mean()), float(known.std(correction=0))) if len(known) else (math.nan, math.nan)


def mean_interval(values: Tensor, generator: torch.Generator, resamples: int = 200) -> tuple[float, float]:
    """`bootstrap` of the mean of independent values ``[n]``, all resamples at once; not-a-numbers are left out."""
    values = values.double().flatten().cpu()
    values = values[values.isfinite()]
    if len(values) < 2:
        return math.nan, math.nan
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator, device=generator.device).cpu()
    low, high = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def jackknife(statistic: Callable[[Tensor], float], n: int, groups: int = 10) -> Tensor:
    """Values ``[G]`` of a statistic of n independent items without each of G groups of them, G at most `groups`.

    For statistics of pairs of items, such as correlations of distances: a bootstrap would draw items twice and pair
    them with themselves. Item i belongs to group i modulo G, so the items should be in random order.

    Args:
        statistic: of the indices of the items that are left.
        n: number of items.
        groups: at most so many groups, so many evaluations.
    """
    items, G = torch.arange(n), min(groups, n)
    return torch.tensor([statistic(items[items % G != group]) for group in range(G)], dtype=torch.float64)


def jackknife_interval(value: float, replicates: Tensor) -> tuple[float, float]:
    r"""The interval of 95 percent around a value: 1.96 standard errors by the jackknife to both sides.

    .. math:: SE^2 = \frac{G - 1}{G} \sum_g (\theta_{(g)} - \bar\theta)^2

    Not-a-numbers among the replicates are left out; the ends are not-a-number if fewer than two are left.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 11.5.
    """
    replicates = replicates[replicates.isfinite()]
    G = len(replicates)
    if G < 2:
        return math.nan, math.nan
    error = math.sqrt((G - 1) / G * float((replicates - replicates.mean()).square().sum()))
    return value - 1.96 * error, value + 1.96 * error


def permuted(
    statistic: Callable[[Tensor], float], n: int, generator: torch.Generator, times: int = 20
) -> tuple[float, float]:
    """Mean and standard deviation of a statistic over random permutations ``[n]`` of the items: its null distribution.

    Not-a-numbers are left out; both are not-a-number if none is left.
    """
    orders = [torch.randperm(n, generator=generator, device=generator.device).cpu() for _ in range(times)]
    return spread([statistic(order) for order in orders])


def scrambled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy of the model in which the entries of every parameter are permuted at random.

    The network that learned nothing: architecture, sizes and the distribution of each parameter's entries are those of
    the model, so it needs no knowledge of how the model was initialised. Buffers are kept. Tied parameters stay tied.
    """
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        order = torch.randperm(parameter.numel(), generator=generator, device=generator.device).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter).contiguous()
    return twin


def with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    """Three scalars: the value and, as `<name>_low` and `<name>_high`, the ends of its interval."""
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def nothing(usable: int, examples: int) -> ProbeResult:
    """The result where too few of the examples can be used to measure anything."""
    sentence = (
        f"Only {usable} of {examples} examples can be used (their activation is finite): too few to measure anything, "
        "do not read the absence of numbers as 0."
    )
    return ProbeResult({"examples": float(usable)}, failures=[sentence])


def finite(scalars: dict[str, Any]) -> dict[str, float]:
    """The scalars that are numbers: what is not defined is left out of the log rather than logged as not-a-number."""
    return {name: float(value) for name, value in scalars.items() if not math.isnan(float(value))}


def _known(values: Sequence[float]) -> Tensor:
    known = torch.tensor(values, dtype=torch.float64)
    return known[known.isfinite()]
