"""Seconds to generate the data of the benchmarks: python benchmarks/data_generation.py [name ...] [--out FILE].

A row is a name and a function that makes a data module; every stage of it is made, on one thread. Seconds are of
processor time, sizes are examples. The test sets of PCFG SET are read from its files (`ALGORNN_DATA`), which the
generated training lines leave out; the time to read them is part of the figure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

from measure import results_file, write_results

from algornn.datamodules import (
    SCAN,
    AddMul,
    CompositionalTableLookup,
    CTLPlusPlus,
    DoubleAddition,
    ListOps,
    PCFGSet,
    SimpleArithmetic,
    SplitDataModule,
)
from algornn.datamodules.scan import FILES, commands

ROWS: list[tuple[str, Callable[[], SplitDataModule]]] = [
    ("CompositionalTableLookup forward", lambda: CompositionalTableLookup("forward")),
    ("CompositionalTableLookup backward", lambda: CompositionalTableLookup("backward")),
    ("AddMul", AddMul),
    ("AddMul held_out", lambda: AddMul(held_out=0.1)),
    ("DoubleAddition", DoubleAddition),
    ("CTLPlusPlus alternate", lambda: CTLPlusPlus("alternate")),
    ("CTLPlusPlus parallel_branch", lambda: CTLPlusPlus("parallel_branch")),
    ("CTLPlusPlus 2stage", lambda: CTLPlusPlus("parallel_branch_2stage", overlap=8, symbol_overlap=4)),
    ("ListOps balanced", ListOps),
    ("SimpleArithmetic balanced", SimpleArithmetic),
    ("SimpleArithmetic balanced, 100,000", lambda: SimpleArithmetic(train_size=100_000)),
    *((f"SCAN {split}", partial(SCAN, split)) for split in SCAN.splits if split not in FILES),
    *((f"PCFGSet {split}", partial(PCFGSet, split)) for split in PCFGSet.splits),
]


def generate(name: str, make: Callable[[], SplitDataModule]) -> dict:
    """Make every stage of a benchmark."""
    commands.cache_clear()  # every split of SCAN makes the grammar anew
    start = time.process_time()
    data = make()
    sizes = {stage: len(data.examples(stage)) for stage in data.stages}
    return {"name": name, "seconds": round(time.process_time() - start, 2), "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of the names of the rows to run; all without")
    parser.add_argument("--out", type=results_file, help="write the rows to this JSON file")
    options = parser.parse_args()
    rows = []
    for name, make in ROWS:
        if not options.names or name.startswith(tuple(options.names)):
            rows.append(generate(name, make))
            print(json.dumps(rows[-1]), flush=True)
    write_results(options.out, rows)


if __name__ == "__main__":
    main()
