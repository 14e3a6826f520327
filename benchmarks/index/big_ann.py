"""Recall against queries a second on files of big-ann-benchmarks' sparse track.

python -m benchmarks.index.big_ann base.csr queries.csr truth.gt --peers "SINDI float32"
python -m benchmarks.index.big_ann --draw 100000 folder   # writes three such files
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import csrkern
from benchmarks.harness import generators
from benchmarks.harness.race import Contestant, Missing
from benchmarks.index.data import QUERY_TERMS, TOP_K, Data
from benchmarks.index.engine import Field
from benchmarks.index.peers import OURS, SPARSE
from csrkern.integrations import big_ann

NAMES = "base.csr", "queries.csr", "truth.gt"


def draw(n: int, n_queries: int, folder: Path) -> None:
    """Writes rows of `generators.text`, queries, and their exact ground truth."""
    folder.mkdir(parents=True, exist_ok=True)
    base, queries = (
        generators.text(n, seed=1),
        generators.text(n_queries, terms=QUERY_TERMS, seed=2),
    )
    big_ann.write(base, folder / NAMES[0])
    big_ann.write(queries, folder / NAMES[1])
    big_ann.write_truth(*csrkern.similarity_top_k(queries, base, TOP_K), folder / NAMES[2])


def read(base: Path, queries: Path, truth: Path, most: int) -> Data:
    """The files, for the engines: all rows, and the first `most` queries.

    Plans of fast searches are measured on other queries, if there are any.
    """
    documents, asked = big_ann.read(base), big_ann.read(queries)
    _, ids = big_ann.read_truth(truth)
    if ids.shape[0] != asked.shape[0] or ids.shape[1] < TOP_K:
        sys.exit(
            f"{truth}: expected {TOP_K} hits for each of {asked.shape[0]} queries, "
            f"got {list(ids.shape)}"
        )
    return Data(
        documents,
        asked[:most],
        documents.shape[1],
        np.array(ids[:most, :TOP_K]),
        like=asked[most:] if asked.shape[0] > most else None,
    )


def race(data: Data, peers: list[str], threads: int, rounds: int) -> None:
    """Prints a line for each engine and setting; all take turns, medians count."""
    field = Field(data, threads, SPARSE)
    found = {name: field.best(name, threads, 0.999) for name in (OURS, *peers)}
    found |= field.frontier("csrkern fast", threads)
    sides = {name: side for name, side in found.items() if isinstance(side, Contestant)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side.run()
            seconds[name].append(time.perf_counter() - start)
    print(f"{'':44}  recall@{TOP_K}  queries/s  build s  bytes a row")
    n_queries = data.query_csr.shape[0]
    for name, side in found.items():
        if isinstance(side, Missing):
            print(f"{name:44}  {side.reason}")
            continue
        figures = side.figures
        print(
            f"{name:44}  {figures['recall']:9.4f}  "
            f"{n_queries / statistics.median(seconds[name]):9,.0f}  {figures['build_s']:7.1f}  "
            f"{figures['bytes_per_code']:11,.0f}  {figures.get('settings', '')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="base, queries and truth, or a folder")
    parser.add_argument("--draw", type=int, help="rows to draw into the folder instead")
    parser.add_argument("--queries", type=int, default=1000, help="to draw, or to ask at most")
    parser.add_argument("--peers", nargs="*", default=[], choices=sorted(SPARSE))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.draw is not None and len(given.files) == 1:
        draw(given.draw, given.queries, given.files[0])
        return
    files = [given.files[0] / name for name in NAMES] if len(given.files) == 1 else given.files
    if given.draw is not None or len(files) != len(NAMES):
        parser.error("expected three files, or a folder")
    race(read(*files, given.queries), given.peers, given.threads, given.rounds)


if __name__ == "__main__":
    main()
