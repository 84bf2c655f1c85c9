"""Role schemes: which role a filler has in a sequence, and the pairs of filler and role that occur."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SCHEMES = ("left_to_right", "right_to_left", "bidirectional", "wickelrole", "bag_of_words")
GIVEN = "given"


class Sequences(NamedTuple):
    """Sequences of fillers, the written places first.

    Args:
        fillers: ``[n, T]``, numbered from 0.
        written: ``[n, T]`` bool, False behind a sequence's end.
        given: ``[n, T]``, the user's roles, numbered from 0; None if there are none.
    """

    fillers: Tensor
    written: Tensor
    given: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, written: Tensor, given: Tensor | None = None) -> Sequences:
        """Number fillers and roles, and move the written places ``[n, T]`` to the front in their order."""
        order = written.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        tables = [_numbered(table).gather(1, order) for table in (tokens, given) if table is not None]
        return cls(tables[0], written.gather(1, order), tables[1] if given is not None else None)

    def roles(self, scheme: str) -> Tensor:
        """The role of every place ``[n, T]``, any whole numbers; what stands at unwritten places has no meaning.

        * "left_to_right": how many fillers stand before it;
        * "right_to_left": how many stand after it;
        * "bidirectional": both;
        * "wickelrole": which filler stands before it and which after it;
        * "bag_of_words": the same for all;
        * "given": the user's.
        """
        n, T = self.fillers.shape
        before = torch.arange(T).expand(n, T)
        after = (self.written.sum(1, keepdim=True) - 1 - before).clamp(min=0)
        if scheme == GIVEN and self.given is not None:
            return self.given
        if scheme == "wickelrole":
            # 0 is the edge: nothing written stands there.
            neighbour = torch.nn.functional.pad((self.fillers + 1) * self.written, (1, 1))
            return neighbour[:, :-2] * (neighbour.max() + 1) + neighbour[:, 2:]
        return {
            "left_to_right": before,
            "right_to_left": after,
            "bidirectional": before * T + after,
            "bag_of_words": torch.zeros_like(before),
        }[scheme]

    def pairs(self, scheme: str) -> tuple[Tensor, int]:
        """The pair of filler and role at every place ``[n, T]``, numbered from 0, and their number P.

        Unwritten places have P, one more than the last.
        """
        roles = _numbered(self.roles(scheme))
        both = self.fillers * (int(roles.max()) + 1) + roles
        seen, inverse = both[self.written].unique(return_inverse=True)
        return torch.full_like(both, len(seen)).masked_scatter(self.written, inverse), len(seen)


def equivalent(a: Tensor, b: Tensor, written: Tensor) -> bool:
    """Whether two schemes' pairs ``[n, T]`` are the same up to their numbering, so that no data can tell them apart."""
    a, b = a[written], b[written]
    both = torch.stack([a, b], 1).unique(dim=0)
    return len(both) == len(a.unique()) == len(b.unique())


def counts_of(pairs: Tensor, P: int) -> Tensor:
    """How often each pair occurs in each sequence, float64 ``[n, P]``."""
    counts = torch.zeros(len(pairs), P + 1, dtype=torch.float64)
    return counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=torch.float64))[:, :P]


def numbers_of(roles: Any, shape: torch.Size) -> Any:
    """A batch's roles as whole numbers ``[B, T]`` or as B lists of T hashable roles, the latter as they are.

    Raises:
        ValueError: another shape.
    """
    widths = [] if isinstance(roles, Tensor) else sorted({len(row) for row in roles})
    found = list(roles.shape) if isinstance(roles, Tensor) else [len(roles), *widths]
    if found != list(shape):
        raise ValueError(f"role must give one role per filler, {list(shape)}, it gave {found}.")
    return roles.long() if isinstance(roles, Tensor) else [list(row) for row in roles]


def numbered_roles(rows: list[list[Any]], T: int) -> Tensor:
    """Roles of any hashable kind as whole numbers ``[n, T]``, in the order in which they were met."""
    known: dict[Any, int] = {}
    table = torch.zeros(len(rows), T, dtype=torch.long)
    for index, row in enumerate(rows):
        numbers = [known.setdefault(role, len(known)) for role in row]
        table[index, : len(row)] = torch.tensor(numbers, dtype=torch.long)
    return table


def _numbered(table: Tensor) -> Tensor:
    return table.unique(return_inverse=True)[1]
