"""Token sequences drawn until there are enough different ones of every kind, for the tasks that are generated."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import generator

_LONGEST = 512  # tokens of a sequence that has a key
_BLOCK = 250_000  # sequences per call of a sampler, at most
_MOST_BARREN = 20  # blocks in a row without anything new


class Sequences(NamedTuple):
    """n labelled sequences of any lengths, one after the other.

    Attributes:
        tokens: [m] uint8 ids of all sequences.
        lengths: [n] int64, their sum is m.
        label: [n] class of every sequence.
        kind: [n] what a quota counts, usually a depth.
    """

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    label: NDArray[Any]
    kind: NDArray[Any]


def take(sequences: Sequences, order: NDArray[Any]) -> Sequences:
    """The sequences at `order` (indices or a mask), in that order."""
    lengths = sequences.lengths[order]
    starts = (np.cumsum(sequences.lengths) - sequences.lengths)[order]
    places = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return Sequences(sequences.tokens[places], lengths, sequences.label[order], sequences.kind[order])


def join(parts: Sequence[Sequences]) -> Sequences:
    """All sequences of several parts, in order."""
    return Sequences(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def keys(sequences: Sequences) -> NDArray[np.uint64]:
    """A 64-bit key of every sequence: equal sequences have equal keys, two different ones hardly ever.

    Each (place, token) has a random number and a key is their sum modulo 2^64 (Zobrist hashing). Where keys stand for
    sequences, a chance match of two different ones costs one sequence; a repeated one never goes unseen.
    """
    numbers = generator("sequence_sampling", "keys").integers(2**64, size=(_LONGEST, 256), dtype=np.uint64)
    starts = np.cumsum(sequences.lengths) - sequences.lengths
    places = np.arange(len(sequences.tokens)) - np.repeat(starts, sequences.lengths)
    if not len(places):
        return np.zeros(len(sequences.lengths), dtype=np.uint64)
    return np.add.reduceat(numbers[places, sequences.tokens], starts)


def shares(total: int, limits: dict[int, int]) -> dict[int, int]:
    """Divide `total` equally among kinds, none above its limit; what one cannot take goes to those after it.

    Raises:
        ValueError: The limits add up to less than `total`.
    """
    given, rest = {}, total
    for left, (kind, limit) in zip(range(len(limits), 0, -1), limits.items(), strict=True):
        given[kind] = min(limit, -(-rest // left))
        rest -= given[kind]
    if rest:
        raise ValueError(f"There are {sum(limits.values())} sequences to choose from, expected {total}; ask for fewer.")
    return given


def draw_different(
    draw: Callable[[int], Sequences], quotas: dict[int, int], taken: NDArray[np.uint64] | None = None
) -> Sequences:
    """Draw until every kind has its quota of sequences that are all different.

    A sequence is kept when its kind still lacks one, so sequences of a kind keep the sampler's distribution.

    Args:
        draw: Gives about as many sequences as it is asked for (it may leave out some).
        quotas: Number of sequences of every kind; other kinds are dropped.
        taken: Keys of sequences that must not be drawn.

    Raises:
        ValueError: The sampler gives nothing new any more.
    """
    missing = np.zeros(max(quotas) + 1, dtype=np.int64)
    missing[list(quotas)] = list(quotas.values())
    known = np.unique(taken) if taken is not None else np.empty(0, dtype=np.uint64)
    parts: list[Sequences] = []
    size, barren = 1000 + 2 * int(missing.sum()), 0
    while missing.any():
        size = min(_BLOCK, 2 * size)
        drawn, fresh = _new(draw(size), missing, known)
        parts.append(drawn)
        known = np.sort(np.concatenate([known, np.sort(fresh)]), kind="stable")  # a merge of two sorted runs
        missing -= np.bincount(drawn.kind, minlength=len(missing))
        barren = 0 if len(fresh) else barren + 1
        if barren == _MOST_BARREN:
            raise ValueError(
                f"There are not {sum(quotas.values())} different sequences, {missing.sum()} are missing; ask for fewer."
            )
    return join(parts)


def _new(
    drawn: Sequences, missing: NDArray[np.int64], known: NDArray[np.uint64]
) -> tuple[Sequences, NDArray[np.uint64]]:
    """The sequences that are not known, once each and no more of a kind than are missing; and their keys."""
    wanted = drawn.kind < len(missing)
    wanted[wanted] = missing[drawn.kind[wanted]] > 0
    drawn = take(drawn, wanted)
    key = keys(drawn)
    _, first = np.unique(key, return_index=True)
    place = np.minimum(np.searchsorted(known, key[first]), len(known) - 1)
    first = np.sort(first[known[place] != key[first]] if len(known) else first)
    kind = drawn.kind[first]
    chosen = np.concatenate(
        [first[kind == k][: missing[k]] for k in np.flatnonzero(missing)] or [np.empty(0, dtype=np.int64)]
    )
    chosen = np.sort(chosen)
    return take(drawn, chosen), key[chosen]


class DrawnStages:
    """The sequences of every stage, drawn once; train leaves out those of val and test, val those of test.

    Args:
        draw: Called with a stage and the keys of the sequences that it must leave out.
    """

    def __init__(self, draw: Callable[[str, NDArray[np.uint64]], Sequences]) -> None:
        self._draw = draw
        self._drawn: dict[str, Sequences] = {}

    def __call__(self, stage: str) -> Sequences:
        """The sequences of a stage."""
        if stage not in self._drawn:
            others = {"train": ("val", "test"), "val": ("test",)}.get(stage, ())
            taken = np.concatenate([np.empty(0, dtype=np.uint64), *(keys(self(other)) for other in others)])
            self._drawn[stage] = self._draw(stage, taken)
        return self._drawn[stage]
