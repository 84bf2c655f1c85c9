"""Seconds to generate the data sets that need no training files, and their sizes.

    python benchmarks/data_generation.py [--only WORD ...] [--out benchmarks/results/data_generation.json]

Processor time of one call on one thread, from the constructor to the numbers of all generated stages. The training
lines of PCFG SET leave out the strings of its evaluation files, which must be at hand (`ALGORNN_DATA`): the time to
read these is part of the figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import write_results

from algornn.datamodules import SCAN, PCFGSet, SplitDataModule
from algornn.datamodules.scan import FILES, commands


def scan_grammar() -> int:
    commands.cache_clear()
    return len(commands())


def stages(benchmark: type[SplitDataModule], split: str, *names: str) -> int:
    """Make stages of a benchmark (none: all); return the number of their examples."""
    data = benchmark(split)
    return sum(len(data.dataset(name)) for name in names or data.stages)


def scan(split: str) -> int:
    commands.cache_clear()
    return stages(SCAN, split)


ROWS: list[tuple[str, Callable[[], int]]] = [
    ("SCAN grammar", scan_grammar),
    *((f"SCAN {split}", partial(scan, split)) for split in SCAN.splits if split not in FILES),
    *((f"PCFG SET {split}, train", partial(stages, PCFGSet, split, "train")) for split in PCFGSet.splits),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these words")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    print("| data | examples | seconds |\n|---|---|---|")
    for name, generate in ROWS:
        if any(word in name for word in args.only):
            start = time.process_time()
            examples = generate()
            rows.append({"data": name, "examples": examples, "seconds": time.process_time() - start})
            print(f"| {name} | {examples} | {rows[-1]['seconds']:.2f} |", flush=True)
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
