"""Derivations, trees over primitives, as tables by which all of them are composed at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Compose = Callable[[Tensor, Tensor], Tensor]


class Forest(NamedTuple):
    """All distinct subtrees of some derivations, each once.

    Args:
        primitives: the distinct leaves, in the order in which they were met.
        leaves: ``[P]``, the node of each primitive.
        levels: for each height above the leaves the nodes, their left and their right parts, three vectors.
        nodes: number of distinct subtrees.
        roots: ``[n]``, the node of each derivation.
    """

    primitives: list[Hashable]
    leaves: Tensor
    levels: list[tuple[Tensor, ...]]
    nodes: int
    roots: Tensor

    @classmethod
    def of(cls, trees: Sequence[Any]) -> Forest:
        """Read nested tuples: a tuple is a node, anything else is a primitive.

        Nodes of more than two parts are composed from the left, ((a, b), c); a node of one part is that part.

        Raises:
            TypeError: a primitive that is not hashable.
            ValueError: an empty tuple.
        """
        known: dict[Any, int] = {}
        heights: list[int] = []

        def node(key: Any, height: int) -> int:
            if key not in known:
                known[key] = len(heights)
                heights.append(height)
            return known[key]

        def read(tree: Any) -> int:
            if not isinstance(tree, tuple):
                return node(("leaf", _hashable(tree)), 0)
            if not tree:
                raise ValueError("A derivation is a nested tuple of primitives, got an empty tuple inside of one.")
            left, *rest = map(read, tree)
            for right in rest:
                left = node((left, right), 1 + max(heights[left], heights[right]))
            return left

        roots = torch.tensor([read(tree) for tree in trees], dtype=torch.long)
        leaves = {key[1]: index for key, index in known.items() if key[0] == "leaf"}
        inner = [(heights[index], index, *key) for key, index in known.items() if key[0] != "leaf"]
        levels = [
            torch.tensor([row[1:] for row in inner if row[0] == height]).unbind(1)
            for height in range(1, max(heights, default=0) + 1)
        ]
        return cls(list(leaves), torch.tensor(list(leaves.values()), dtype=torch.long), levels, len(heights), roots)

    def composed(self, vectors: Tensor, compose: Compose) -> Tensor:
        """The vectors ``[n, d]`` of the derivations, from those of the primitives ``[P, d]``."""
        values = vectors.new_zeros(self.nodes, vectors.shape[1]).index_copy(0, self.leaves.to(vectors.device), vectors)
        for level in self.levels:
            nodes, left, right = (part.to(vectors.device) for part in level)
            values = values.index_copy(0, nodes, compose(values[left], values[right]))
        return values[self.roots.to(vectors.device)]

    def counts(self) -> Tensor:
        """How often each primitive occurs in each derivation, float64 ``[n, P]``."""
        P = len(self.primitives)
        return self.composed(torch.eye(P, dtype=torch.float64), torch.add)


def _hashable(primitive: Any) -> Hashable:
    try:
        hash(primitive)
    except TypeError:
        raise TypeError(
            f"A derivation is a nested tuple of hashable primitives, got a {type(primitive).__name__} among them."
        ) from None
    if isinstance(primitive, Tensor):
        raise TypeError("The primitives of a derivation are plain values, got a tensor: call tolist() first.")
    return primitive
