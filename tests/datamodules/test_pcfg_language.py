"""The language of PCFG SET: the interpreter against every published line, generated lines against their statistics."""

from collections import Counter

import pytest

from algornn.datamodules.files import read_text
from algornn.datamodules.pcfg_language import (
    FUNCTIONS,
    LETTERS,
    SHAPES,
    SYNONYMS,
    VOCABULARY,
    Corpus,
    functions_in,
    has_pair,
    interpret,
    strings_in,
)
from algornn.datamodules.split_datamodule import generator

BINARY = FUNCTIONS[6:]


def rows(path):
    return [line.split() for line in read_text(path).splitlines()]


def pairs(folder, pattern):
    for source in sorted(folder.rglob("*.src.gz")):
        if ("exception" in source.name) == (pattern == "exception"):
            yield source, zip(rows(source), rows(source.with_name(source.name.replace(".src", ".tgt"))), strict=True)


def depth(source, start=0):
    """Depth of the expression at `start` and where it ends: written anew, token by token."""
    if source[start] not in FUNCTIONS:
        end = start
        while end < len(source) and source[end] != ",":
            end += 1
        return 0, end
    deep, end = depth(source, start + 1)
    if source[start] in BINARY:
        second, end = depth(source, end + 1)
        deep = max(deep, second)
    return deep + 1, end


@pytest.fixture(scope="module")
def lines():
    return list(Corpus(generator("test"), set()).lines(10_000, lambda source: True))


def test_interpreter_gives_every_published_target(pcfgset_dir):
    wrong, checked = Counter(), 0
    for path, both in pairs(pcfgset_dir, "rule"):
        for source, target in both:
            checked += 1
            wrong[path.name] += interpret(source) != target
    for label, source, target in (
        line.split("\t") for line in read_text(pcfgset_dir / "localism" / "unrolled_test.tsv.gz").splitlines()
    ):
        if label == "original":
            checked += 1
            wrong["localism"] += interpret(source.split()) != target.split()
    assert (wrong.total(), checked) == (0, 146_473)


def test_interpreter_gives_every_published_exception(pcfgset_dir):
    checked = [
        interpret(source, exceptions=True) == target
        for _, both in pairs(pcfgset_dir, "exception")
        for source, target in both
    ]
    assert (sum(checked), len(checked)) == (747, 747)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("copy A1 B2", "A1 B2"),
        ("reverse A1 B2 C3", "C3 B2 A1"),
        ("shift A1 B2 C3", "B2 C3 A1"),
        ("echo A1 B2", "A1 B2 B2"),
        ("swap_first_last A1 B2 C3 D4", "D4 B2 C3 A1"),
        ("swap_first_last A1", "A1"),
        ("repeat A1 B2", "A1 B2 A1 B2"),
        ("append A1 B2 , C3", "A1 B2 C3"),
        ("prepend A1 B2 , C3", "C3 A1 B2"),
        ("remove_first A1 , B2", "B2"),
        ("remove_second A1 , B2", "A1"),
        ("append_twin reverse A1 B2 , repeat_twin C3", "B2 A1 C3 C3"),
        ("A1 B2", "A1 B2"),
    ],
)
def test_functions(line, meaning):
    assert " ".join(interpret(line.split())) == meaning


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected a function or a letter, found 'the end of the line'"),
        ("copy", "expected a function or a letter, found 'the end of the line'"),
        ("append A1 B2", "expected ',' and the second argument of 'append', found the end of the line"),
        ("append A1 B2 ,", "expected a function or a letter, found 'the end of the line'"),
        ("copy , A1", "expected a function or a letter, found ','"),
        ("copy A1 reverse B2", "expected a letter, ',' or the end of the line, found 'reverse'"),
        ("copy A1 , B2", "expected the end of the line, found ','"),
        ("copy A21", "expected a function or a letter, found 'A21'"),
        ("copy A1 *1", "expected a letter, ',' or the end of the line, found '\\*1'"),
    ],
)
def test_lines_that_do_not_parse_are_named(line, message):
    with pytest.raises(ValueError, match=message):
        interpret(line.split())


def test_vocabulary():
    assert (len(LETTERS), LETTERS[0], LETTERS[-1]) == (520, "A1", "Z20")
    assert (len(FUNCTIONS), len(SYNONYMS), len(VOCABULARY), len(set(VOCABULARY))) == (10, 4, 535, 535)


def test_generated_lines_are_right_and_no_string_repeats(lines):
    assert all(interpret(source) == target for source, target in lines)
    strings = [string for source, _ in lines for string in strings_in(source)]
    assert len(strings) == len(set(strings))
    assert all(len(" ".join(source)) < 500 for source, _ in lines)
    taken = set(strings[:1000])
    others = Corpus(generator("test"), taken).lines(100, lambda source: True)
    assert not taken & {string for source, _ in others for string in strings_in(source)}


def test_generated_lines_have_the_published_statistics(lines):
    total = sum(sum(row.values()) for row in SHAPES.values())
    assert total == 14_581
    shapes = Counter((functions_in(source), depth(source)[0]) for source, _ in lines)
    for functions, row in SHAPES.items():
        for deep, number in row.items():
            share = number / total
            assert abs(shapes[functions, deep] / 10_000 - share) < 5 * (share / 10_000) ** 0.5 + 1e-4
    names = Counter(word for source, _ in lines for word in source if word in FUNCTIONS)
    assert all(0.09 < names[name] / names.total() < 0.11 for name in FUNCTIONS)
    assert abs(sum(source[0] in BINARY for source, _ in lines) / 10_000 - 0.496) < 0.03
    assert abs(sum(len(source) for source, _ in lines) / 10_000 - 18.31) < 0.5
    assert abs(sum(len(target) for _, target in lines) / 10_000 - 9.3) < 0.5
    lengths = Counter(len(string) for source, _ in lines for string in strings_in(source))
    for length, number in zip((2, 3, 4, 5), (7_071, 13_185, 12_300, 11_841), strict=True):
        assert abs(lengths[length] / lengths.total() - number / 44_397) < 0.02


def test_shapes_are_those_of_the_published_lines(pcfgset_dir):
    sources = rows(pcfgset_dir / "pcfgset" / "dev.src.gz") + rows(pcfgset_dir / "pcfgset" / "test.src.gz")
    counted = Counter((functions_in(source), depth(source)[0]) for source in sources)
    assert counted == {(functions, deep): n for functions, row in SHAPES.items() for deep, n in row.items()}


def test_only_wanted_lines_are_given():
    unseen = (("append", "remove_second"),)
    lines = Corpus(generator("test"), set()).lines(500, lambda source: not has_pair(source, unseen))
    sources = [" ".join(source) for source, _ in lines]
    assert len(sources) == 500
    assert not any("append remove_second" in source for source in sources)
