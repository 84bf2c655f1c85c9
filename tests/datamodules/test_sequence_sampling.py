"""Different sequences of every kind: ragged arrays, keys, equal shares, and quotas that cannot be filled."""

from collections import Counter

import numpy as np
import pytest

from algornn.datamodules.sequence_sampling import Sequences, draw_different, join, keys, shares, take


def packed(rows):
    """Sequences whose kind is their length and whose label is their first token."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Sequences(np.concatenate(rows).astype(np.uint8), lengths, np.array([row[0] for row in rows]), lengths)


def unpacked(sequences):
    return [tuple(row.tolist()) for row in np.split(sequences.tokens, np.cumsum(sequences.lengths)[:-1])]


def test_sequences_are_taken_and_joined():
    rows = [(1, 2, 3), (4,), (5, 6), (7, 8, 9, 1)]
    sequences = packed(rows)
    assert unpacked(sequences) == rows
    assert unpacked(take(sequences, np.array([3, 0, 0]))) == [rows[3], rows[0], rows[0]]
    assert take(sequences, np.array([3, 0])).label.tolist() == [7, 1]
    assert unpacked(take(sequences, np.array([False, True, True, False]))) == rows[1:3]
    assert unpacked(join([sequences, take(sequences, np.array([1]))])) == [*rows, (4,)]


def test_equal_sequences_have_equal_keys_and_others_do_not():
    rows = [(a, b) for a in range(1, 30) for b in range(1, 30)] + [(a,) for a in range(1, 30)]
    first = keys(packed(rows))
    assert len(set(first.tolist())) == len(rows)
    assert keys(packed(rows[::-1])).tolist() == first[::-1].tolist()
    assert first[:2].tolist() == [1397686616701864724, 3776131277557140016], "the same on every machine"


def test_shares_are_equal_unless_limited():
    assert shares(10, {2: 100, 3: 100, 4: 100}) == {2: 4, 3: 3, 4: 3}
    assert shares(100, {2: 10, 3: 20, 4: 90}) == {2: 10, 3: 20, 4: 70}
    with pytest.raises(ValueError, match="There are 12 sequences to choose from, expected 20; ask for fewer"):
        shares(20, {2: 10, 3: 2})


def sampler(seed, letters=4):
    draw = np.random.default_rng(seed)
    return lambda size: packed(
        [tuple(draw.integers(1, letters + 1, size=draw.integers(1, 5)).tolist()) for _ in range(size)]
    )


def test_every_kind_gets_its_quota_of_different_sequences_and_none_that_is_taken():
    taken = packed([(1, 1), (2, 2), (3,)])
    drawn = draw_different(sampler(0), {1: 3, 2: 14, 4: 100}, keys(taken))
    rows = unpacked(drawn)
    assert Counter(map(len, rows)) == {1: 3, 2: 14, 4: 100}
    assert len(set(rows)) == 117
    assert not set(rows) & set(unpacked(taken))
    assert unpacked(draw_different(sampler(0), {1: 3, 2: 14, 4: 100}, keys(taken))) == rows
    assert drawn.label.tolist() == [row[0] for row in rows]


def test_sequences_of_a_kind_are_the_first_that_come():
    first = []
    for row in unpacked(sampler(3)(1400)):
        if len(row) == 3 and row not in first:
            first.append(row)
    assert unpacked(draw_different(sampler(3), {3: 20})) == first[:20]


def test_quotas_that_cannot_be_filled_are_refused():
    with pytest.raises(ValueError, match="There are not 17 different sequences, 1 are missing; ask for fewer"):
        draw_different(lambda size: sampler(size)(300), {2: 17})
