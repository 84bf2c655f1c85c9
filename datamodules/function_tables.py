"""Compositions of functions that are tables over a few symbols: their values and their tokens."""

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.sequence_sampling import Sequences


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
