"""Options of the recipe and ways to search, beside the default, on several seeds.

python options.py --data FOLDER --options default,whitened --seeds 0,1,2 --steps 200

Codes with codes, from 2 active latents to 32. Rows go to options.csv, one training at a time; what
is there already is not measured again, so a run may be stopped and started at will.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import output
import sets
from quality import STEPS

from csrkern import SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train
from csrtrain.evaluation.metrics import dead_share, search

KS = (2, 4, 8, 16, 32)
WIDEST = 128  # latents of a row of variable length, at most


def trained(data: sets.Set, seed: int, steps: int, **changes: Any) -> SparseAutoencoder:
    """A model of the default recipe with these changes."""
    config = TrainConfig(steps=steps, seed=seed, **changes)
    return train(data.train, config=config, progress=False)


OPTIONS: dict[str, Callable[[sets.Set, int, int], SparseAutoencoder]] = {
    "default": trained,
    "whitened": partial(trained, whitening=0.3),
    "shrunk": partial(trained, whitening=-0.3),
    "subspace": partial(trained, input_subspace=128),
    "k_aux 128": partial(trained, k_aux=128),
}
LENGTHS = "default"  # the option whose codes are scored at other lengths as well


def ways(
    database: SparseCodes, queries: SparseCodes, k: int
) -> Iterator[tuple[str, SparseCodes, SparseCodes]]:
    """Documents of k latents on average and queries of k or 2k, by the name of the way.

    The first one is k of both.
    """
    short, asked, longer = database.truncate(k), queries.truncate(k), queries.truncate(2 * k)
    yield "k each", short, asked
    shares = database.normalize()
    by_share = shares.above(shares.threshold(k)).trim()
    yield "documents by value", database.above(database.threshold(k)).trim(), asked
    yield "documents by share of the norm", by_share, asked
    yield "queries at 2k", short, longer
    yield "documents by share of the norm, queries at 2k", by_share, longer


def measure(data: sets.Set, option: str, seed: int, steps: int) -> Iterator[dict[str, Any]]:
    """The scores of one training."""
    began = time.process_time()
    model = OPTIONS[option](data, seed, steps)
    spent = round(time.process_time() - began, 1)
    about = {"dead_percent": round(100 * dead_share(model), 2), "steps": steps, "cpu_s": spent}
    widest = min(WIDEST, model.hidden_dim)
    database, queries = (
        model.encode(side.numpy(), widest) for side in (data.task.database, data.task.queries)
    )
    for k in KS:
        for way, stored, asked in ways(database, queries, k):
            scores = data.task.scores(search(stored, asked, data.task.depth))
            (name, score), *_ = scores.items()
            key = {"set": data.name, "option": option, "seed": seed, "k": k, "way": way}
            yield {**key, "measure": name, "score": round(100 * score, 2), **about}
            if option != LENGTHS:
                break


def main() -> None:
    """Adds to the table what it lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    output.folder_options(parser, ())
    parser.add_argument("--options", default=",".join(OPTIONS), help="(default: all)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=STEPS, help="(default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "options.csv"
    names = options.sets.split(",") if options.sets else sets.available(options.data)
    rows: list[dict[str, Any]] = list(output.read_rows(table))
    there = {(row["set"], row["option"], int(row["seed"]), int(row["steps"])) for row in rows}
    steps = 100 if options.quick else options.steps
    for option in options.options.split(","):
        for seed in map(int, options.seeds.split(",")):
            for name in names:
                data = sets.load(options.data / f"{name}.npz")
                if data is None or (name, option, seed, steps) in there:
                    continue
                began = time.perf_counter()
                rows += measure(data, option, seed, steps)
                output.write_rows(table, rows)
                print(f"{name} {option} {seed}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
