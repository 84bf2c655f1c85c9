"""Compositions of functions that are tables over a few symbols: values, tokens, and languages of compositions."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.sequence_sampling import Sequences

IN, OUT = "IN", "OUT"  # names of the state before the first function, and of the end


def trace(tables: NDArray[np.int64], functions: NDArray[np.int64], symbol: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values that compositions pass through.

    Args:
        tables: [F, S], function f takes symbol s to `tables[f, s]`.
        functions: [n, D], in the order of application.
        symbol: [n], the symbols that they are applied to.

    Returns:
        [n, D + 1]: the symbol, then the value after every function.
    """
    values = np.empty((len(symbol), functions.shape[1] + 1), dtype=np.int64)
    values[:, 0] = symbol
    for step in range(functions.shape[1]):
        values[:, step + 1] = tables[functions[:, step], values[:, step]]
    return values


def write(
    tables: NDArray[np.int64],
    functions: NDArray[np.int64],
    depth: NDArray[np.int64],
    symbol: NDArray[np.int64],
    backward: bool,
) -> Sequences:
    """The first `depth` functions of every row as tokens, labelled with their value; the kind is the depth.

    Ids: 1 is the first symbol, 1 + S the first function (0 is padding).

    Args:
        tables: [F, S].
        functions: [n, D], in the order of application.
        depth: [n], 0 to D.
        symbol: [n].
        backward: The last function first and the symbol last, as in f(g(x)); otherwise the symbol first and the
            functions in the order of application.
    """
    values = trace(tables, functions, symbol)
    tokens = np.concatenate([1 + symbol[:, None], 1 + tables.shape[1] + functions], axis=1).astype(np.uint8)
    real = np.arange(tokens.shape[1]) <= depth[:, None]
    turn = slice(None, None, -1 if backward else 1)
    label = values[np.arange(len(symbol)), depth]
    return Sequences(tokens[:, turn][real[:, turn]], depth + 1, label, depth)


class FunctionLanguage:
    """The compositions that a finite automaton over groups of functions allows.

    A state is named after the group whose function led there, with a dot and more where one group has several states:
    "o.a" is a state of group "o". A state leads by any function of a group to the state of that group among its
    successors (one at most), unless an edge is restricted to some symbols.

    Args:
        tables: [F, S].
        groups: The functions of every group.
        edges: The successors of every state, `IN` and `OUT` among the names.
        allowed: Where (group, group) is in it: [F, S] bool, whether a function of the second may follow one of the
            first on a symbol. Other steps are allowed on every symbol.
    """

    def __init__(
        self,
        tables: NDArray[np.int64],
        groups: Mapping[str, NDArray[np.int64]],
        edges: Mapping[str, tuple[str, ...]],
        allowed: Mapping[tuple[str, str], NDArray[np.bool_]] | None = None,
    ) -> None:
        self.tables, states = tables, list(edges)
        self._end = np.array([OUT in edges[state] for state in states])
        self._start = states.index(IN)
        # [state, function, symbol]: the state that it leads to, or -1
        self._leads = np.full((len(states), *tables.shape), -1)
        for state in states:
            for successor in set(edges[state]) - {OUT}:
                source, group = state.split(".")[0], successor.split(".")[0]
                free = np.ones(tables.shape, dtype=bool)[groups[group]]
                free = allowed[source, group][groups[group]] if allowed and (source, group) in allowed else free
                target = np.where(free, states.index(successor), -1)
                self._leads[states.index(state), groups[group]] = target
        self._ways = [np.repeat(self._end[:, None].astype(np.int64), tables.shape[1], axis=1)]

    def count(self, depth: int) -> int:
        """The number of compositions of `depth` functions, each with a symbol."""
        return int(self._completions(depth)[self._start].sum())

    def draw(self, number: int, depth: int, draw: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw `number` compositions of `depth` functions uniformly: functions [number, depth] and symbols [number]."""
        symbol = _pick(np.repeat(self._completions(depth)[[self._start]], number, axis=0), draw)
        functions = np.empty((number, depth), dtype=np.int64)
        state, value = np.full(number, self._start), symbol
        for step in range(depth):
            functions[:, step] = _pick(self._choices(depth - step)[state, :, value], draw)
            state = self._leads[state, functions[:, step], value]
            value = self.tables[functions[:, step], value]
        return functions, symbol

    def every(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All compositions of `depth` functions: functions [n, depth] and symbols [n]. Their number is `count`."""
        state = np.repeat(self._start, self.tables.shape[1])
        symbol = value = np.arange(self.tables.shape[1])
        functions = np.empty((len(symbol), 0), dtype=np.int64)
        for step in range(depth):
            row, function = np.nonzero(self._choices(depth - step)[state, :, value])
            state = self._leads[state[row], function, value[row]]
            symbol, value = symbol[row], self.tables[function, value[row]]
            functions = np.concatenate([functions[row], function[:, None]], axis=1)
        return functions, symbol

    def _completions(self, depth: int) -> NDArray[np.int64]:
        """[state, symbol]: the ways to come to the end by exactly `depth` functions."""
        while len(self._ways) <= depth:
            self._ways.append(self._choices(len(self._ways)).sum(axis=1))
        return self._ways[depth]

    def _choices(self, depth: int) -> NDArray[np.int64]:
        """[state, function, symbol]: the ways to come to the end by this function and `depth` - 1 more."""
        return np.where(self._leads >= 0, self._completions(depth - 1)[self._leads, self.tables], 0)


def _pick(weights: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """A column of every row of whole weights [n, C], with chances in proportion to them."""
    upto = weights.cumsum(axis=1)
    return (upto <= draw.integers(upto[:, -1])[:, None]).sum(axis=1)
