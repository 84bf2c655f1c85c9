"""Control tasks: the lives of agents in worlds, of which one is kept for agents that learn by a frozen rule."""

import os
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import (
    EpochOrder,
    Example,
    GroupedDataset,
    ResumableLoader,
    SplitDataModule,
    check_positive,
    generator,
)

_TENSOR_WORLDS = ("point_mass", "reacher", "pendulum", "cart_pole")
_SPLITS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{held: (tuple(name for name in _TENSOR_WORLDS if name != held), (held,)) for held in _TENSOR_WORLDS},
    "lunar_lander": (("half_cheetah", "hopper"), ("lunar_lander",)),
    "hopper": (("lunar_lander", "half_cheetah"), ("hopper",)),
    "half_cheetah": (("lunar_lander", "hopper", "walker", "ant"), ("half_cheetah",)),
}


class LifeBatch(NamedTuple):
    """A batch of B agents.

    Attributes:
        world: B names of worlds.
        seed: [B] int64, of everything random in an agent's life.
        group: [B] int64, index of the world among the data module's `groups`.
        id: [B] int64, number of the agent.
    """

    world: tuple[str, ...]
    seed: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class Life(NamedTuple):
    """One agent: its world, its seed, the world's index, its number."""

    world: str
    seed: int
    group: int
    id: int


class Lives(GroupedDataset):
    """Agents, dealt to worlds in turn.

    Args:
        groups: Names of all worlds.
        worlds: Names of the worlds that these agents live in.
        seeds: Their seeds.
        repeats: How often they are given; item i is agent i modulo their number.
    """

    def __init__(
        self, groups: tuple[str, ...], worlds: tuple[str, ...], seeds: NDArray[np.int64], repeats: int = 1
    ) -> None:
        self.groups, self.worlds, self.seeds, self.repeats = groups, worlds, seeds, repeats

    def __len__(self) -> int:
        """Number of items."""
        return len(self.seeds) * self.repeats

    def __getitem__(self, index: int) -> Life:
        """Item `index`."""
        agent = range(len(self))[index] % len(self.seeds)
        world = self.worlds[agent % len(self.worlds)]
        return Life(world, int(self.seeds[agent]), self.groups.index(world), agent)

    def example(self, index: int) -> Example:
        """The world and the seed of item `index`."""
        life = self[index]
        return Example((life.world, str(life.seed)), (), life.world)


class InTurn(EpochOrder):
    """Batches in the order of the items; each process has neighbours, so that it has all worlds."""

    def order(self) -> NDArray[np.int64]:
        """0, 1, 2, ..., dealt so that process r of W has the r-th part of every batch."""
        rows = np.arange(self.size - self.size % (self.batch_size * self.world))
        return rows.reshape(-1, self.world, self.batch_size).swapaxes(1, 2).flatten()


class ControlTasks(SplitDataModule):
    """Lives of agents for meta-learners of reinforcement learning: every agent has a world and a seed.

    | split | agents train in | test (out of distribution) |
    |---|---|---|
    | "point_mass", "reacher", "pendulum", "cart_pole" | the other three of these | the world of that name |
    | "lunar_lander" | half_cheetah, hopper | lunar_lander |
    | "hopper" | lunar_lander, half_cheetah | hopper |
    | "half_cheetah" | lunar_lander, hopper, walker, ant | half_cheetah |

    The stages `val` and `seen` have other agents in the worlds of training. What a world is says the meta-learner,
    which gets its name. A training batch has the same agents every time: with W processes each has `agents` / W of
    them, so `batch_size` must be that.

    The last three splits are those of Kirsch, van Steenkiste and Schmidhuber (2020), table 1; the others are this
    library's. A subclass with `tasks` and `splits` of its own has worlds of any names that the meta-learner knows.

    Args:
        split: One of the table.
        data_dir: Not used; there are no files.
        batch_size: Agents per batch and process.
        seed: Seed of the agents' seeds.
        agents: Agents that train.
        test_agents: Agents in every world of the test.
        seen_agents: Agents in every world of `val` and `seen`; None: as many as in the test.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, `tasks` that name a world twice, or agents that the batches do not
            share out.

    Attributes:
        groups: Names of the worlds.
        tasks: The worlds of training and those of the test, by split.
    """

    benchmark = "control_tasks"
    tasks: ClassVar[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = _SPLITS
    splits = tuple(_SPLITS)
    further = ("seen",)
    ood = ("test",)

    def __init__(
        self,
        split: str = "pendulum",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 12,
        seed: int = 0,
        agents: int = 12,
        test_agents: int = 5,
        seen_agents: int | None = None,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        seen_agents = test_agents if seen_agents is None else seen_agents
        check_positive(agents=agents, test_agents=test_agents, seen_agents=seen_agents)
        self.agents, self.test_agents, self.seen_agents = agents, test_agents, seen_agents
        self.trained, self.held_out = self.tasks[self.split]
        self.groups = (*self.trained, *self.held_out)
        if len(set(self.groups)) < len(self.groups):
            raise ValueError(
                f"`tasks` name every world once, to train in or to test in, got {self.trained} and {self.held_out}: "
                "the stage `seen` tests in those of training."
            )

    def dataset_of(self, stage: str) -> Lives:
        """The agents of a stage."""
        worlds = self.held_out if stage == "test" else self.trained
        number = {"train": self.agents, "test": self.test_agents * len(worlds)}.get(
            stage, self.seen_agents * len(worlds)
        )
        seeds = generator(self.benchmark, self.split, stage, self.seed).integers(2**62, size=number)
        return Lives(self.groups, worlds, seeds, repeats=1000 if stage == "train" else 1)

    def train_dataloader(self) -> ResumableLoader:
        """All agents in every batch, in the same order; of W processes each has as many neighbours."""
        rank, world = self._place()
        if self.agents % world:
            raise ValueError(
                f"{self.agents} agents cannot be shared out evenly to {world} processes: choose a multiple as `agents`."
            )
        if self.batch_size * world != self.agents:
            raise ValueError(
                f"Every training batch has all agents: with {self.agents} agents and {world} processes set batch_size "
                f"to {self.agents // world}, not {self.batch_size}."
            )
        if world > 1 and self.batch_size < len(self.trained):
            raise ValueError(
                f"Every process needs agents in all {len(self.trained)} worlds, {self.agents} agents make "
                f"{self.batch_size} for each of {world} processes: choose more `agents`, or fewer processes."
            )
        dataset = self.dataset("train")
        return ResumableLoader(dataset, InTurn((), len(dataset), self.batch_size, rank, world), self.collate)

    @staticmethod
    def collate(items: list[Any]) -> LifeBatch:
        """A batch of agents."""
        numbers = torch.tensor([[item.seed, item.group, item.id] for item in items])
        return LifeBatch(tuple(item.world for item in items), *numbers.unbind(1))
