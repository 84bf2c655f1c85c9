"""The language of PCFG SET: ten functions on strings of letters, their interpreter, and a generator of lines."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Words = list[str]
Line = tuple[Words, Words]  # source, target

_UNARY: dict[str, Callable[[Words], Words]] = {
    "copy": lambda s: s,
    "reverse": lambda s: s[::-1],
    "shift": lambda s: s[1:] + s[:1],
    "echo": lambda s: s + s[-1:],
    "swap_first_last": lambda s: s[-1:] + s[1:-1] + s[:1] if len(s) > 1 else s,
    "repeat": lambda s: s + s,
}
_BINARY: dict[str, Callable[[Words, Words], Words]] = {
    "append": lambda a, b: a + b,
    "prepend": lambda a, b: b + a,
    "remove_first": lambda a, b: b,
    "remove_second": lambda a, b: a,
}
FUNCTIONS = (*_UNARY, *_BINARY)
SYNONYMS = {name: f"{name}_twin" for name in ("swap_first_last", "repeat", "append", "remove_second")}
_MEANING: dict[str, Any] = {**_UNARY, **_BINARY}
_MEANING.update({twin: _MEANING[name] for name, twin in SYNONYMS.items()})
_BY_ARITY = {1: tuple(_UNARY), 2: tuple(_BINARY)}
_ARITY = {name: 2 if name.removesuffix("_twin") in _BINARY else 1 for name in _MEANING}

LETTERS = tuple(f"{letter}{number}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for number in range(1, 21))
_LETTER_SET = frozenset(LETTERS)
VOCABULARY = (*FUNCTIONS, *SYNONYMS.values(), ",", *LETTERS)  # of sources
# Two functions in a row that mean two others, in the overgeneralisation test.
EXCEPTIONS = {
    ("reverse", "echo"): ("echo", "copy"),
    ("prepend", "remove_first"): ("remove_second", "append"),
    ("echo", "remove_first"): ("copy", "append"),
    ("prepend", "reverse"): ("remove_second", "echo"),
}

# How many of the published development and test lines (14,581) have {functions: {depth: lines}}.
SHAPES = {
    1: {1: 225},
    2: {2: 1870},
    3: {2: 60, 3: 2767},
    4: {3: 474, 4: 2271},
    5: {3: 63, 4: 744, 5: 1124},
    6: {3: 4, 4: 285, 5: 667, 6: 539},
    7: {4: 74, 5: 294, 6: 351, 7: 248},
    8: {4: 14, 5: 152, 6: 252, 7: 213, 8: 109},
    9: {4: 3, 5: 52, 6: 106, 7: 150, 8: 132, 9: 57},
    10: {4: 1, 5: 24, 6: 55, 7: 86, 8: 114, 9: 61, 10: 25},
    11: {5: 5, 6: 30, 7: 57, 8: 86, 9: 64, 10: 27, 11: 10},
    12: {5: 1, 6: 9, 7: 46, 8: 69, 9: 61, 10: 21, 11: 6, 12: 2},
    13: {6: 2, 7: 11, 8: 28, 9: 31, 10: 28, 11: 11, 12: 4, 13: 3},
    14: {7: 7, 8: 25, 9: 31, 10: 21, 11: 10, 12: 2, 13: 3},
    15: {7: 3, 8: 16, 9: 12, 10: 12, 11: 8, 12: 6, 13: 6},
    16: {6: 1, 8: 2, 9: 8, 10: 8, 11: 5, 12: 5, 13: 2},
    17: {7: 1, 8: 3, 9: 4, 10: 5, 11: 5, 12: 3, 13: 2},
    18: {9: 7, 10: 4, 11: 3, 12: 6, 13: 7},
    19: {9: 3, 10: 4, 11: 3, 12: 2, 13: 4},
    20: {10: 4, 11: 1, 12: 4, 13: 1},
    21: {9: 2, 12: 2, 13: 6},
    22: {10: 2, 11: 2, 12: 1, 13: 1, 17: 2},
    23: {11: 1, 13: 1, 14: 2, 17: 2},
    24: {12: 2, 13: 2, 17: 1},
    25: {12: 2},
    28: {17: 2},
    30: {14: 1},
}
# Chances that the root is unary, and that an argument of a function of this arity is unary or binary: with them, lines
# of these shapes have the published shares of unary functions (0.60; 0.50 at the root) and the published mean length.
_ROOT_UNARY = 0.54
_ARGUMENT = {1: (0.405, 0.237), 2: (0.307, 0.216)}
_STRING_LENGTHS = (0.159, 0.297, 0.277, 0.267)  # 2 to 5 letters, measured
_MOST_FUNCTIONS = max(SHAPES)
_MOST_CHARACTERS, _MOST_LETTERS = 500, 736  # of a source, and of the longest published target


def functions_in(source: Sequence[str]) -> int:
    """Number of functions of a line."""
    return sum(word in _ARITY for word in source)


def has_pair(source: Sequence[str], pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether two neighbouring words of a line are one of `pairs`."""
    return any(pair in pairs for pair in pairwise(source))


def strings_in(source: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The strings of letters of a line."""
    run: list[str] = []
    for word in (*source, ","):
        if word != "," and word not in _ARITY:
            run.append(word)
        elif run:
            yield tuple(run)
            run = []


def interpret(source: Sequence[str], exceptions: bool = False) -> Words:
    """The meaning of a line in prefix notation without brackets: `append A1 B2 , reverse C3 D4` is A1 B2 D4 C3.

    Args:
        source: The words of the line; an argument is a function with its arguments or a run of letters, and a comma
            stands between the two arguments of a binary function.
        exceptions: Whether two functions in a row that are in `EXCEPTIONS` are read as the two that they stand for. Of
            several such pairs in a line, only the first in the order of `EXCEPTIONS` is re-read, wherever it occurs: so
            are all published targets.

    Raises:
        ValueError: The line is not of the language; the message says what was expected and found.
    """
    words = _reread(source) if exceptions else source
    value, end = _argument(words, 0)
    if end < len(words):
        raise ValueError(f"expected the end of the line, found {words[end]!r}")
    return value


def _reread(source: Sequence[str]) -> Words:
    words = list(source)
    if pair := next((pair for pair in EXCEPTIONS if pair in pairwise(source)), None):
        for i in range(len(words) - 1):
            if (words[i], words[i + 1]) == pair:
                words[i : i + 2] = EXCEPTIONS[pair]
    return words


def _argument(words: Sequence[str], start: int) -> tuple[Words, int]:
    """The meaning of the argument at `start`, and where it ends."""
    word = words[start] if start < len(words) else "the end of the line"
    if arity := _ARITY.get(word):
        first, end = _argument(words, start + 1)
        if arity == 1:
            return _MEANING[word](first), end
        if end == len(words):
            raise ValueError(f"expected ',' and the second argument of {word!r}, found the end of the line")
        second, end = _argument(words, end + 1)
        return _MEANING[word](first, second), end
    end = start
    while end < len(words) and words[end] in _LETTER_SET:
        end += 1
    if end == start:
        raise ValueError(f"expected a function or a letter, found {word!r}")
    if end < len(words) and words[end] != ",":
        raise ValueError(f"expected a letter, ',' or the end of the line, found {words[end]!r}")
    return list(words[start:end]), end


class Corpus:
    """Draws lines with the statistics of the published ones; no string of letters comes twice.

    A line is a tree of functions. Its number of functions and its depth are drawn together from `SHAPES`; trees grow
    from the root, an argument being unary, binary or a string by chance, and one that has these numbers is taken. The
    functions of one arity are equally likely, and so are letters. The published corpus was drawn without a seed and
    resampled to the depths and lengths of the parse trees of English sentences.

    Args:
        draw: Where the draws come from.
        taken: Strings that may not be used.
    """

    def __init__(self, draw: np.random.Generator, taken: set[tuple[str, ...]]) -> None:
        self.taken, self._draw, self._numbers = set(taken), draw, self._stream(draw)

    @staticmethod
    def _stream(draw: np.random.Generator) -> Iterator[float]:
        """Numbers from 0 to 1."""
        while True:
            yield from draw.random(4096).tolist()

    def _choose(self, options: Sequence[str]) -> str:
        return options[int(next(self._numbers) * len(options))]

    def lines(self, number: int, wanted: Callable[[Words], bool]) -> Iterator[Line]:
        """`number` lines whose source is `wanted`; the others are drawn, too, and left out."""
        while number > 0:
            for arities in self._trees(number):
                source, target = self._fill(iter(arities))
                fits = len(" ".join(source)) < _MOST_CHARACTERS and len(target) <= _MOST_LETTERS
                if fits and wanted(source):
                    number -= 1
                    yield source, target

    def single(self, name: str) -> Line:
        """A line with one function."""
        return self._call(name, [self._fill(iter([0])) for _ in range(_ARITY[name])])

    def _fill(self, arities: Iterator[int]) -> Line:
        """A line whose functions and strings, in order, have these arities (0: a string)."""
        arity = next(arities)
        if not arity:
            letters = self._string()
            return letters, letters
        name = self._choose(_BY_ARITY[arity])
        return self._call(name, [self._fill(arities) for _ in range(arity)])

    @staticmethod
    def _call(name: str, arguments: list[Line]) -> Line:
        source = [name, *arguments[0][0]]
        if len(arguments) == 2:
            source += [",", *arguments[1][0]]
        return source, _MEANING[name](*(target for _, target in arguments))

    def _string(self) -> Words:
        while True:
            chance, length = next(self._numbers), 2
            for share in _STRING_LENGTHS[:-1]:
                if chance < share:
                    break
                chance, length = chance - share, length + 1
            letters = [self._choose(LETTERS) for _ in range(length)]
            if (key := tuple(letters)) not in self.taken:
                self.taken.add(key)
                return letters

    def _trees(self, number: int) -> list[list[int]]:
        """`number` trees, each as the arities of its functions and strings in order, with the shapes of `SHAPES`."""
        cells = [(functions, depth) for functions, row in SHAPES.items() for depth in row]
        lines = np.array([SHAPES[functions][depth] for functions, depth in cells])
        drawn = [cells[i] for i in self._draw.choice(len(cells), size=number, p=lines / lines.sum()).tolist()]
        missing = Counter(drawn)
        found: dict[tuple[int, int], list[list[int]]] = {cell: [] for cell in cells}
        left = number
        while left:
            tree, shape = self._tree()
            if missing[shape]:
                missing[shape] -= 1
                left -= 1
                found[shape].append(tree)
        return [found[shape].pop() for shape in drawn]

    def _tree(self) -> tuple[list[int], tuple[int, int]]:
        """A tree as arities in order, with its number of functions and its depth; too large a one is cut off."""
        draws, functions, deepest = self._numbers, 0, 0
        arities: list[int] = []
        open_nodes = [(1 if next(draws) < _ROOT_UNARY else 2, 1)]
        while open_nodes:
            arity, depth = open_nodes.pop()
            arities.append(arity)
            if not arity:
                continue
            functions, deepest = functions + 1, max(deepest, depth)
            if functions > _MOST_FUNCTIONS:
                break
            unary, binary = _ARGUMENT[arity]
            for _ in range(arity):
                chance = next(draws)
                open_nodes.append((1 if chance < unary else 2 if chance < unary + binary else 0, depth + 1))
        return arities, (functions, deepest)
