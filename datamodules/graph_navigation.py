"""Graph navigation: small directed graphs, known and unseen, in which an agent has to find its way."""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import Example, GroupedDataset, SplitDataModule, check_positive, generator

NO_EDGE = -1
DRAWS = 1_000  # until one should have been connected: with two actions or more, many are


class GraphBatch(NamedTuple):
    """A batch of B episodes.

    Attributes:
        edges: [B, N, A] int64, the node that action a leads to from node n; -1 where it leads nowhere.
        seed: [B] int64, of everything random in an episode.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    edges: torch.Tensor
    seed: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class GraphItem(NamedTuple):
    """One episode: edges [N, A], its seed, the group's index, its own index."""

    edges: NDArray[np.int64]
    seed: int
    group: int
    id: int


def draw_graph(draw: np.random.Generator, nodes: int, actions: int) -> NDArray[np.int64]:
    """One graph [N, A]: an edge out of every node, then one into every node, until every node reaches every other."""
    for _ in range(DRAWS):
        edges = np.full((nodes, actions), NO_EDGE)
        for node in range(nodes):
            target = draw.integers(nodes - 1)
            edges[node, draw.integers(actions)] = target + (target >= node)
        for node in range(nodes):
            free = [(a, b) for a, b in np.argwhere(edges == NO_EDGE) if a != node]
            if free:
                edges[free[draw.integers(len(free))]] = node
        if connected(edges):
            return edges
    raise ValueError(
        f"None of {DRAWS:,} graphs of {nodes} nodes and {actions} actions leads from every node to every other: choose "
        "more actions, or fewer nodes."
    )


def connected(edges: NDArray[np.int64]) -> bool:
    """Whether every node can be reached from every other one."""
    nodes = len(edges)
    reached = np.eye(nodes, dtype=bool)
    node, action = np.nonzero(edges != NO_EDGE)
    reached[node, edges[node, action]] = True
    for _ in range(nodes.bit_length()):
        reached = reached @ reached
    return bool(reached.all())


class Graphs(GroupedDataset):
    """Episodes in the graphs of a stage: item i is in graph i modulo their number, and its seed is of its own.

    Args:
        groups: Name of the one group.
        edges: [G, N, A].
        episodes: Episodes in every graph.
        first: Seed of item 0; the others count from it.
    """

    def __init__(self, groups: tuple[str, ...], edges: NDArray[np.int64], episodes: int, first: int) -> None:
        self.groups, self.edges, self.episodes, self.first = groups, edges, episodes, first

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.edges) * self.episodes

    def __getitem__(self, index: int) -> GraphItem:
        """Episode `index`."""
        index = range(len(self))[index]
        return GraphItem(self.edges[index % len(self.edges)], self.first + index, 0, index)

    def example(self, index: int) -> Example:
        """Episode `index`: the edges of its graph, such as "0 -2-> 3" for action 2 that leads from node 0 to node 3."""
        edges = self.edges[index % len(self.edges)]
        words = tuple(f"{n} -{a}-> {edges[n, a]}" for n, a in np.argwhere(edges != NO_EDGE))
        return Example(words, (), self.groups[0])


class GraphNavigation(SplitDataModule):
    """Episodes in random directed graphs, for an agent that has to learn each graph while it walks it.

    A graph has N nodes and A actions; every node gets an edge out of it (a random action to another node), then an edge
    into it (from a random node and action that have none yet), and it counts where every node reaches every other. The
    training graphs are the same for the whole training, `val` and `seen` have other episodes in them; those of the
    stages `val_unseen` and `test` are others, and no two are alike. What happens is `algornn.meta.GraphWorld`.

    Graphs and sizes are those of Schlag, Munkhdalai and Schmidhuber (2021, section 4.2 and the released code, whose
    graphs come from another generator's seed).

    Args:
        split: "graphs", the only one.
        data_dir: Not used; there are no files.
        batch_size: Episodes per batch and process.
        seed: Seed of the graphs, of the episodes and of the order of training.
        nodes: N, at least 2.
        actions: A.
        size: Graphs of every set.
        episodes: Episodes in every training graph; an epoch has all of them.
        test_episodes: Episodes in every graph of the other stages.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, fewer than 2 nodes, or too few graphs that are connected.

    Attributes:
        groups: "graph".
        input_size: Numbers that an observation consists of, 2 N + A + 4.
        output_size: A.
    """

    benchmark = "graph_navigation"
    splits = ("graphs",)
    groups = ("graph",)
    further = ("seen",)
    further_val = ("val_unseen",)
    ood = ("val_unseen", "test")

    def __init__(
        self,
        split: str = "graphs",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 600,
        seed: int = 0,
        nodes: int = 5,
        actions: int = 3,
        size: int = 600,
        episodes: int = 1000,
        test_episodes: int = 5,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(nodes=nodes, actions=actions, size=size, episodes=episodes, test_episodes=test_episodes)
        if nodes < 2:
            raise ValueError(f"nodes is the number of places, expected at least 2, not {nodes}.")
        self.nodes, self.actions, self.size = nodes, actions, size
        self.episodes, self.test_episodes = episodes, test_episodes
        self.input_size, self.output_size = 2 * nodes + actions + 4, actions
        self._graphs: dict[str, NDArray[np.int64]] = {}

    def dataset_of(self, stage: str) -> Graphs:
        """The episodes of a stage."""
        own = "train" if stage in ("val", "seen") else stage
        first = generator(self.benchmark, "episodes", stage, self.seed).integers(2**62)
        episodes = self.episodes if stage == "train" else self.test_episodes
        return Graphs(self.groups, self._drawn()[own], episodes, int(first))

    def _drawn(self) -> dict[str, NDArray[np.int64]]:
        """The graphs of the three sets, drawn once.

        Raises:
            ValueError: There are not so many different graphs.
        """
        if not self._graphs:
            draw = generator(self.benchmark, "graphs", self.nodes, self.actions, self.seed)
            found: dict[bytes, NDArray[np.int64]] = {}
            tries, wanted = 0, 3 * self.size
            while len(found) < wanted:
                edges = draw_graph(draw, self.nodes, self.actions)
                found.setdefault(edges.tobytes(), edges)
                tries += 1
                if tries > 20 * wanted:
                    raise ValueError(
                        f"Found only {len(found)} different graphs of {self.nodes} nodes and {self.actions} actions, "
                        f"expected three sets of {self.size}; choose more nodes or actions, or a smaller size."
                    )
            parts = np.split(np.stack(list(found.values())), 3)
            self._graphs = dict(zip(("train", "val_unseen", "test"), parts, strict=True))
        return self._graphs

    @staticmethod
    def collate(items: list[Any]) -> GraphBatch:
        """A batch of episodes."""
        edges = torch.from_numpy(np.stack([item.edges for item in items]))
        numbers = torch.tensor([[item.seed, item.group, item.id] for item in items])
        return GraphBatch(edges, *numbers.unbind(1))
