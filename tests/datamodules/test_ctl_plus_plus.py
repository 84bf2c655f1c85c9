"""CTL++: legality of every stage by regular expressions, overlaps of symbols, counts, and what training leaves out."""

import re
from collections import defaultdict
from itertools import pairwise, product

import numpy as np
import pytest

from algornn.datamodules import CTLPlusPlus

SMALL = {"train_size": 3000, "test_size": 60}
# One letter for every group: a, b, o; in two stages p = a1, q = a2, r = b1, s = b2.
LETTERS = {"alternate": "ab", "parallel_branch": "ab", "parallel_branch_2stage": "pqrs"}
SWAP, LOOP = r"(ab)*a?|(ba)*b?", r"(.)\1*"
RULES = {
    "alternate": {"train": SWAP, "self_loop": LOOP, "all": ".+", "all_pairs": "..", "pairs": "ab|ba"},
    "parallel_branch": {
        "train": "a+(oa+)*o?|b+(ob+)*o?",
        "group_alternate": SWAP,
        "self_loop": LOOP,
        "all": ".+",
        "all_overlap": "([ab]o)+",
        "all_pairs": "..",
        "pairs": "aa|bb|ao|bo",
    },
    "parallel_branch_2stage": {
        "train": "(p[qo]|r[so])+",
        "group_alternate": "(ps|rq)+",
        "self_loop": LOOP,
        "all": ".+",
        "all_overlap": "([pr]o)+",
        "cross_unseen_symbols": "[pr]o",
        "unseen_pairs": "ps|rq|[pr]o",
        "all_pairs": "[pr][qso]",
        "pairs": "p[qo]|r[so]",
    },
}
CASES = [
    ("alternate", 0, 8),
    ("parallel_branch", 0, 8),
    ("parallel_branch", 8, 3),
    ("parallel_branch_2stage", 0, 8),
    ("parallel_branch_2stage", 4, 2),
    ("parallel_branch_2stage", 16, 7),
]
NAMES = "abcdefghijklmnopqrstuvwxyzABCDEF"


def group_of(data):
    """The letter of every function: the first functions are those of o, then all groups have as many, in order."""
    letters = LETTERS[data.split]
    each = (32 - data.overlap) // len(letters)
    return dict(zip(NAMES, "o" * data.overlap + "".join(letter * each for letter in letters), strict=True))


def steps(data, example):
    """The functions of a sequence in the order of application, each with the value that it is applied to."""
    symbol, *names = example.source[::-1] if data.backward else example.source
    value, found = int(symbol), []
    for name in names:
        found.append((name, value))
        value = int(data.functions.tables[NAMES.index(name)][value])
    assert example.target == (str(value),)
    return found


def met(data, stage):
    """(group before, function of o) -> the symbols on which they meet in a stage."""
    groups, found = group_of(data), defaultdict(set)
    for example in data.examples(stage):
        sequence = steps(data, example)
        for (before, _), (name, value) in pairwise(sequence):
            if groups[name] == "o":
                found[groups[before], name].add(value)
    return found


@pytest.fixture(scope="module", params=CASES, ids=str)
def data(request):
    split, overlap, symbol_overlap = request.param
    return CTLPlusPlus(split, overlap=overlap, symbol_overlap=symbol_overlap, **SMALL)


def test_every_sequence_is_legal_where_it_is(data):
    groups, rules = group_of(data), RULES[data.split]
    absent = {"all_overlap", "cross_unseen_symbols"} if data.overlap == 0 else set()
    assert set(data.further) == set(rules) - {"train"} - absent
    for stage in data.stages:
        rule = re.compile(rules["train" if stage in ("val", "test") else stage])
        for example in data.examples(stage):
            sequence = steps(data, example)
            assert rule.fullmatch("".join(groups[name] for name, _ in sequence))
            assert 2 <= len(sequence) <= 6
            assert example.group == ("iid" if stage in ("val", "test") else stage)


def test_symbols_of_the_overlap_are_shared_out(data):
    sources, seen = ("p", "r") if "2stage" in data.split else ("a", "b"), met(data, "pairs")
    for name in NAMES[: data.overlap]:
        first, second = (seen[source, name] for source in sources)
        assert len(first & second) == data.symbol_overlap
        assert first | second == set(range(8))
        assert abs(len(first) - len(second)) <= 1
    for stage in ("train", "val", "test"):
        assert all(symbols <= seen[step] for step, symbols in met(data, stage).items())
    if "cross_unseen_symbols" in data.further:
        unseen = met(data, "cross_unseen_symbols")
        assert all(unseen[source, name] == set(range(8)) - seen[source, name] for source, name in unseen)
        assert sum(map(len, unseen.values())) == data.overlap * (8 - data.symbol_overlap)


def test_pairs_are_all_that_there_are(data):
    groups = group_of(data)
    seen = met(data, "pairs")

    def unseen(first, second, symbol):
        value = int(data.functions.tables[NAMES.index(first)][symbol])
        return groups[second] == "o" and value not in seen[groups[first], second]

    every = [(a, b, s) for a, b, s in product(NAMES, NAMES, range(8))]
    for stage in set(data.further) & {"all_pairs", "pairs", "unseen_pairs", "cross_unseen_symbols"}:
        fits = [step for step in every if re.fullmatch(RULES[data.split][stage], groups[step[0]] + groups[step[1]])]
        if stage == "pairs":
            fits = [step for step in fits if not unseen(*step)]
        elif stage != "all_pairs":
            fits = [step for step in fits if unseen(*step) or groups[step[1]] != "o"]
        found = [steps(data, example) for example in data.examples(stage)]
        assert sorted((x[0][0], x[1][0], x[0][1]) for x in found) == sorted(fits)


def test_sizes_and_training_leaves_out_evaluation(data):
    sources = {stage: [example.source for example in data.examples(stage)] for stage in data.stages}
    exhaustive = {"all_pairs", "pairs", "unseen_pairs", "cross_unseen_symbols"}
    train = set(sources["train"])
    assert len(train) == len(sources["train"]) >= 3000
    for stage in set(data.stages) - exhaustive - {"train"}:
        assert len(set(sources[stage])) == len(sources[stage]) == 60
        assert not train & set(sources[stage])
        lengths = np.bincount([len(source) - 1 for source in sources[stage]])
        if stage not in ("val", "test"):
            assert np.ptp(lengths[lengths > 0]) == 0
    assert not set(sources["val"]) & set(sources["test"])
    left_out = set.union(*(set(sources[stage]) for stage in set(data.stages) - exhaustive - {"train"}))
    assert train >= set(sources["pairs"]) - left_out
    fewer = CTLPlusPlus(data.split, overlap=data.overlap, symbol_overlap=data.symbol_overlap, pairs=False, **SMALL)
    assert [example.source for example in fewer.examples("train")] == sources["train"][:3000]


@pytest.mark.parametrize("split", ["alternate", "parallel_branch"])
def test_published_counts(split):
    data = CTLPlusPlus(split)
    assert (data.train_size, data.test_size, data.vocab_size, data.output_size) == (300_000, 1_000, 41, 8)
    assert [data._train.count(length) for length in range(2, 7)] == [8 * 2 * 16**length for length in range(2, 7)]
    assert (len(data.examples("pairs")), len(data.examples("all_pairs"))) == (4_096, 8_192)
    assert len({tuple(row) for row in data.functions.tables.tolist()}) == 32


def test_training_takes_half_of_the_short_ones_and_as_many_of_the_long_ones():
    data = CTLPlusPlus("alternate", pairs=False, train_size=20_000, test_size=200)
    pool = [len(example.source) - 1 for stage in ("train", "val", "test") for example in data.examples(stage)]
    assert np.bincount(pool)[2:].tolist() == [2048, 4588, 4588, 4588, 4588]


def test_known_stages_are_not_out_of_distribution(data):
    assert set(data.ood) <= set(data.further)
    assert "pairs" not in data.ood
    assert ("self_loop" in data.ood) == (data.split != "parallel_branch" or data.overlap > 0)
    assert {"all", "all_pairs"} <= set(data.ood)


def test_of_what_is_out_of_distribution_only_all_pairs_are_partly_in_train(data):
    train = {example.source for example in data.examples("train")}
    shares = {stage: np.mean([example.source in train for example in data.examples(stage)]) for stage in data.ood}
    assert 0.25 < shares.pop("all_pairs") < 0.8
    assert not any(shares.values())


def test_data_depend_on_the_seed_only_and_turn_around():
    options = {"split": "parallel_branch_2stage", "overlap": 8, "symbol_overlap": 4, **SMALL}

    def sources(**more):
        return [example.source for example in CTLPlusPlus(**options, **more).examples("all_overlap")]

    assert sources() == sources()
    assert sources() != sources(seed=1)
    assert sources(backward=False) == [source[::-1] for source in sources()]
    forward = CTLPlusPlus(**options, backward=False)
    assert steps(forward, forward.examples("train")[0])
    first = CTLPlusPlus("alternate", seed=1).functions.tables
    assert (first == CTLPlusPlus(**options, seed=1).functions.tables).all()
    assert (first != CTLPlusPlus("alternate").functions.tables).any()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "paralel_branch"}, ValueError, "did you mean 'parallel_branch'"),
        ({"split": "alternate", "overlap": 4}, ValueError, "'alternate' has no group o, expected overlap=0, not 4"),
        ({"overlap": 3}, ValueError, "expected 0 to 30 in steps of 2, so that the other groups are of one size, not 3"),
        ({"split": "parallel_branch_2stage", "overlap": 32}, ValueError, "expected 0 to 28 in steps of 4"),
        ({"symbol_overlap": 9}, ValueError, "symbol_overlap is a number of symbols, expected 1 to 8, not 9"),
        ({"overlap": 0.5}, TypeError, "overlap must be a whole number"),
        ({"train_size": 0}, ValueError, "train_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        CTLPlusPlus(**wrong)


def test_more_sequences_than_there_are_are_refused():
    data = CTLPlusPlus("parallel_branch_2stage", train_size=10_000_000, test_size=10)
    with pytest.raises(ValueError, match="There are 8454656 sequences to choose from, expected 10000020; ask for few"):
        data.dataset("train")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fewer_sequences_than_lengths_are_drawn(size):
    data = CTLPlusPlus("alternate", train_size=size, test_size=size, pairs=False)
    assert [len(data.dataset(stage)) for stage in ("train", "val", "test", "self_loop", "all")] == [size] * 5
