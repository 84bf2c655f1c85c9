"""Returns in a report, in each world by itself: of every run, over seeds, and as a picture of all rules and runs."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from algornn.report_figures import WIDTH, Picture, picture, run_colours
from algornn.report_tables import Table, in_set, number, set_name, test_sets, with_error
from algornn.run_results import RunResults, natural, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STANDARD_ERROR = "A return is a mean ± its standard error over episodes or agents."


@dataclass
class Seeds:
    """Runs of one experiment that differ in their seeds alone.

    Attributes:
        runs: at least two.
        returns: test set to world to the runs' returns, in the sets and worlds that all of them have.
    """

    runs: list[RunResults]
    returns: dict[str, dict[str, list[float]]]

    @property
    def name(self) -> str:
        """The recipe, the options that are not its own, steps and seeds."""
        first = self.runs[0]
        options = {option.rpartition(".")[2]: value for option, value in (first.options | first.setting).items()}
        told = [f"{option}={value}" for option, value in options.items()]
        return f"{first.recipe} ({', '.join([*told, f'{number(first.steps)} steps', f'{len(self.runs)} seeds'])})"

    def tell(self, run: RunResults, stage: str) -> bool:
        """Whether the means tell of all returns of a run in a test set."""
        worlds = run.stages[stage].get("groups")  # also those whose return is no number
        told = isinstance(worlds, dict) and worlds.keys() == self.returns.get(stage, {}).keys()
        return told and run in self.runs

    def means(self) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
        """Yield what the returns are on average, set by set, and what those of a set less a rival's are, run by run.

        The returns of the rivals of ``test`` stand in sets such as ``test_ppo``.

        Yields:
            The set, or two, and world to (mean over runs, half of its 95 % interval by Student's t).
        """
        for stage, by_world in self.returns.items():
            told = set_name(stage, bool(self.runs[0].stages[stage].get("ood")))
            yield told, {world: mean_interval(values) for world, values in by_world.items()}
        first = [stage for stage in self.returns if not any(stage.startswith(f"{other}_") for other in self.returns)]
        for stage, rival in product(first, self.returns):
            ours, theirs = self.returns[stage], self.returns[rival]
            shared = [world for world in ours if world in theirs and rival.startswith(f"{stage}_")]
            less = {world: [a - b for a, b in zip(ours[world], theirs[world], strict=True)] for world in shared}
            if less:
                yield f"{stage} less {rival}", {world: mean_interval(values) for world, values in less.items()}


def seeds_of(runs: Sequence[RunResults]) -> list[Seeds]:
    """Return the experiments of which several runs, of other seeds alone, have returns by world."""
    together: dict[str, list[RunResults]] = {}
    for run in runs:
        if any(run.groups(stage, "return") for stage in run.stages):
            together.setdefault(_experiment(run), []).append(run)
    for alike in together.values():
        for seed in [seed for seed, times in Counter(run.seed for run in alike).items() if times > 1]:
            note = f"Seed {seed} stands twice among runs of {alike[0].recipe}, so no mean is taken: leave one out."
            alike[0].notes += [note] if note not in alike[0].notes else []
    apart = [alike for alike in together.values() if len({run.seed for run in alike}) == len(alike) > 1]
    return [Seeds(alike, _shared(alike)) for alike in apart]


def _experiment(run: RunResults) -> str:
    """What runs that differ in their seeds alone have in common, as text."""
    config, tested = run.config, run.folder.parent.parent
    if not config and (tested / "config.yaml").is_file():  # a test of its own, in the folder `tests` of a run
        config = read_run(tested).config
    trainer = config.get("trainer")
    kept = ("precision", "gradient_clip_val", "accumulate_grad_batches")
    trained = {key: trainer.get(key) for key in kept} if isinstance(trainer, dict) else {}
    told = [run.recipe, run.model, run.data, run.steps, run.options, run.setting, trained]
    told += [_seedless(config.get(section)) for section in ("data", "model")]
    return json.dumps(told, sort_keys=True, default=str)


def _seedless(tree: Any) -> Any:
    """A part of a configuration without its seeds and places."""
    if not isinstance(tree, dict):
        return tree
    return {key: _seedless(value) for key, value in tree.items() if key not in ("seed", "data_dir")}


def _shared(runs: Sequence[RunResults]) -> dict[str, dict[str, list[float]]]:
    found = {}
    for stage in runs[0].stages:
        each = [run.groups(stage, "return") for run in runs]
        worlds = [world for world in each[0] if all(world in by_world for by_world in each)]
        if worlds:
            found[stage] = {world: [by_world[world] for by_world in each] for world in worlds}
    return found


def returns(runs: Sequence[RunResults], single: bool = False) -> Table:
    """Return the table of returns: a row for every test set and run, a column for every world or group.

    Args:
        runs: the runs.
        single: without those that `mean_returns` tells of.
    """
    alike = seeds_of(runs) if single else []
    found: list[tuple[str, dict[str, str]]] = []
    for (stage, ood), run in product(test_sets(runs), runs):
        if in_set(run, stage, ood) and not any(seeds.tell(run, stage) for seeds in alike):
            by_world = run.groups(stage, "return")
            name = (f"{run.label}: " if len(runs) > 1 else "") + set_name(stage, ood)
            found.append((name, {w: with_error(value, run.return_error(stage, w)) for w, value in by_world.items()}))
    return _by_world("return", found, STANDARD_ERROR)


def mean_returns(runs: Sequence[RunResults]) -> Table:
    """Return the table of mean returns over seeds: a row for every test set and rival, a column for every world."""
    found: list[tuple[str, dict[str, str]]] = []
    for seeds in seeds_of(runs):
        name = f"{seeds.name}: " if len(seeds.runs) < len(runs) else ""
        for what, means in seeds.means():
            found.append((name + what, {world: with_error(*mean) for world, mean in means.items()}))
    note = "Means over seeds ± half of the 95 % interval of Student's t; differences are taken seed by seed."
    return _by_world("mean return", found, note)


def _by_world(title: str, found: Sequence[tuple[str, dict[str, str]]], note: str) -> Table:
    """Return a table of rows with a name each and a column for every world that some of them have."""
    worlds = sorted({world for _, by_world in found for world in by_world}, key=natural)
    rows = [[name, *(by_world.get(world, "-") for world in worlds)] for name, by_world in found if by_world]
    return Table([title, *worlds], rows, note)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two numbers and half of its 95 % interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


def return_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the mean returns of the groups of all test sets, where runs have them."""
    if returned := [run for run in runs if any(run.groups(stage, "return") for stage in run.stages)]:
        caption = "Mean return in every world or group, by test set, with its standard error; each has its own scale."
        yield picture("returns", caption, returns_by_group, returned, run_colours(runs))


def returns_by_group(runs: Sequence[RunResults], colours: dict[str, str]) -> Figure:
    """Draw mean returns with their standard errors: a panel per group, a row per test set, the runs side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    sets: dict[str, list[str]] = {}
    for run in runs:
        for stage in run.stages:
            for group in run.groups(stage, "return"):
                rows = sets.setdefault(group, [])
                rows += [stage] if stage not in rows else []
    heights = [0.35 + max(0.2, 0.12 * len(runs)) * len(rows) for rows in sets.values()]
    figure = Figure(figsize=(WIDTH, 0.5 + 0.2 * len(runs) + sum(heights)), layout="constrained")
    panels = figure.subplots(len(sets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (group, rows) in zip(panels, sets.items(), strict=True):
        for i, run in enumerate(runs):
            there = [stage for stage in rows if group in run.groups(stage, "return")]
            places = [rows.index(stage) + 0.6 * ((i + 0.5) / len(runs) - 0.5) for stage in there]
            errors = [run.return_error(stage, group) or 0.0 for stage in there]
            means = [run.groups(stage, "return")[group] for stage in there]
            style: dict[str, Any] = {"fmt": "o", "markersize": 4, "color": colours[run.label], "label": run.label}
            axes.errorbar(means, places, xerr=errors, **style)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.5, -0.5), title=group)
        axes.xaxis.set_major_locator(MaxNLocator(5))  # narrow ranges have long numbers
    panels[-1].set_xlabel("mean return")
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center")
    return figure
