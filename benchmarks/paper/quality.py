"""What codes keep, beside every other way to a smaller vector (Table 4, Figure 7b).

python quality.py --data FOLDER --methods dense,matryoshka,recommended --seeds 0,1,2

Rows go to quality.csv, and what is known of each training to training.csv, one training at a
time; what is there already is not measured again, so a run may be stopped and started at will.
`summary.py` makes tables, charts and verdicts of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import output
import sets
import summary
import torch
from recipes import KS, paper_loss, recommended
from torch import Tensor

from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train
from csrtrain.evaluation.comparison import (
    Result,
    compare_adapter,
    compare_codes,
    compare_dense,
    compare_omp,
    compare_quantizers,
)
from csrtrain.evaluation.metrics import dead_share, unexplained_variance, use_skew
from csrtrain.training.matryoshka import train_matryoshka

STEPS = 400
DEDICATED = (8, 32)


@dataclass(frozen=True)
class Run:
    """A way to train codes.

    Attributes:
        name: of its results.
        recipe: k and options to a TrainConfig; None: the paper's preset for the set.
        options: of the recipe.
        each: train a model for each of these k alone, in place of one for all of `KS`.
        needs: "labels" or "pairs": what it trains with.
        first: learn a linear map from the pairs, and train on the embeddings that it makes.
        omp: compare codes found by `csrtrain.encode_omp` instead of the encoder's.
        neighbors: train on pairs of each row with the nearest other one.
        most: the largest k that its one model is trained for and compared at.
    """

    name: str
    recipe: Callable[..., TrainConfig] | None = recommended
    options: Mapping[str, Any] = field(default_factory=dict)
    each: tuple[int, ...] = ()
    needs: str | None = None
    first: bool = False
    omp: bool = False
    neighbors: bool = False
    most: int = KS[-1]

    @property
    def ks(self) -> tuple[int, ...]:
        """Sizes that it is compared at."""
        return self.each or tuple(k for k in KS if k <= self.most)

    def config(self, data: sets.Set, k: int, seed: int, steps: int) -> TrainConfig:
        """The settings for one of its models."""
        if self.recipe is None:
            return TrainConfig.preset(data.preset, k=k, seed=seed)
        ks = () if self.each else self.ks[:-1]
        common = {"ks": ks, "seed": seed, "steps": steps}
        return self.recipe(k, **{**common, **self.options})


RUNS = {
    "published": Run("CSR as published", None, each=DEDICATED),
    "sae": Run("TopK SAE", paper_loss, {"contrast": None}),
    "paper": Run("CSR, the paper's loss", paper_loss),
    "recommended": Run("CSR"),
    "default": Run("CSR, default", most=32),
    "omp": Run("CSR", omp=True),
    "dedicated": Run("CSR for one k", each=DEDICATED),
    "whitened": Run("CSR whitened by 0.3", options={"whitening": 0.3}),
    "shrunk": Run("CSR whitened by -0.6", options={"whitening": -0.6}),
    "subspace": Run("CSR in 128 directions", options={"input_subspace": 128}),
    "neighbors": Run(
        "CSR, neighbors as positives", options={"contrast": "pair", "gamma": 0.1}, neighbors=True
    ),
    # As many rows a step as "neighbors", whose examples are pairs.
    "wide-batches": Run("CSR, batches of 1,024", options={"batch_size": 1024}),
    "csrv2": Run("CSRv2", paper_loss, {"contrast": "label", "anneal": True}, needs="labels"),
    "labels": Run("CSR with labels", options={"contrast": "label"}, needs="labels"),
    "pair-contrast": Run("CSR with pair contrast", options={"contrast": "clip"}, needs="pairs"),
    "pairs": Run("CSR with pairs", needs="pairs", first=True),
}
MATRYOSHKA = {
    "matryoshka": ("Matryoshka-Adaptor", None),
    "matryoshka-labels": ("Matryoshka heads with labels", "labels"),
    "matryoshka-pairs": ("Matryoshka with pairs", "pairs"),
}
# Codebooks of each size are a run of their own, since those of 128 bytes take long to learn.
# OPQ takes minutes for 128 bytes, where PQ is already as good as dense.
QUANTIZED: dict[str, tuple[Sequence[str], Sequence[int]]] = {
    "pq": (("PQ",), KS[:-1]),
    "opq": (("OPQ",), KS[:-2]),
    **{
        f"{name.lower()}{4 * k}": ((name,), (k,))
        for name in ("RQ", "PRQ", "LSQ", "PLSQ")
        for k in KS[:-1]
    },
    **{
        name.lower(): ([f"{name}-{bits}" for bits in range(1, 5)], KS[:-1])
        for name in ("RaBitQ", "TurboQuant")
    },
}
BASELINES = ("dense", *QUANTIZED)
# The same on embeddings that a map learned from the pairs was applied to.
PAIRS = "-pairs"
METHODS = (*BASELINES, *(f"{plain}{PAIRS}" for plain in BASELINES), *MATRYOSHKA, *RUNS)
QUICK = "dense,pq,matryoshka,sae,paper,recommended"
DEFAULT = f"{QUICK},rabitq,opq,rq16,rq32,prq64,prq128"  # whose codebooks take minutes


def needs(method: str) -> str | None:
    """What a method trains with besides embeddings."""
    if method in MATRYOSHKA:
        return MATRYOSHKA[method][1]
    return RUNS[method].needs if method in RUNS else "pairs" if method.endswith("-pairs") else None


def measure(
    data: sets.Set, method: str, seed: int, steps: int, keep: Path | None = None
) -> tuple[Iterable[Result], list[dict[str, Any]]]:
    """The results of one method on one set, and a row for each training.

    With `keep`, models are saved under names of their own in that folder.
    """
    fitted = data.train if data.alike is None else data.alike
    if method == "dense":
        return compare_dense(data.task, fitted, KS), []
    if method in QUANTIZED:
        names, ks = QUANTIZED[method]
        return compare_quantizers(data.task, fitted, ks, names, seed), []
    if (plain := method.removesuffix(PAIRS)) in BASELINES:
        found, _ = measure(mapped(data, seed, steps), plain, seed, steps)
        return (replace(row, method=f"{row.method}, with pairs") for row in found), []
    began = time.process_time()
    if method in MATRYOSHKA:
        name, need = MATRYOSHKA[method]
        x, given = data.train, {}
        if need == "labels":
            given = {"labels": data.labels}
        elif need == "pairs":
            x, given = data.asked[data.pairs[:, 0]], {"partners": data.partners[data.pairs[:, 1]]}
        adapter = train_matryoshka(x, [*KS, 2 * KS[-1]], **given, steps=steps, seed=seed)
        spent = round(time.process_time() - began, 1)
        return compare_adapter(data.task, adapter, KS, name), [{"steps": steps, "cpu_s": spent}]
    run = RUNS[method]
    if run.first:
        data = mapped(data, seed, steps)
    models, trainings = {}, []
    for k in run.each or run.ks[-1:]:
        models[k], about = trained(data, run, run.config(data, k, seed, steps))
        trainings.append(about)
        if keep is not None:
            models[k].save_pretrained(keep / f"{data.name}-{method}-k{k}-seed{seed}")
    if run.omp:
        return compare_omp(data.task, models[KS[-1]], KS[:-1], run.name), trainings
    asked = models if run.each else models[run.most]
    return compare_codes(data.task, asked, run.ks, run.name), trainings


def mapped(data: sets.Set, seed: int, steps: int) -> sets.Set:
    """The set with all its embeddings mapped so that the pairs are near each other, at norm 1."""
    x, y = data.asked[data.pairs[:, 0]], data.partners[data.pairs[:, 1]]
    adapter = train_matryoshka(x, [x.shape[1]], partners=y, steps=steps, seed=seed)

    def moved(side: Tensor | None) -> Tensor | None:
        return None if side is None else torch.nn.functional.normalize(adapter(side), dim=1)

    database, queries, train, alike = map(
        moved, (data.task.database, data.task.queries, data.train, data.alike)
    )
    task = replace(data.task, database=database, queries=queries)
    return replace(data, task=task, train=train, alike=alike)


def trained(
    data: sets.Set, run: Run, config: TrainConfig
) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """A model and what is known of its training."""
    began = time.process_time()
    x, given = data.train, {}
    if run.needs == "labels":
        given = {"labels": data.labels}
    elif run.needs == "pairs" and not run.first:
        x, given = data.asked, {"partners": data.partners, "pairs": data.pairs}
    elif run.neighbors:
        given = {"partners": x, "pairs": nearest_others(x)}
    model = train(x, config=config, **given, progress=False)
    spent = time.process_time() - began
    settled = config.resolve(len(given["pairs"]) if "pairs" in given else len(x), x.shape[1])
    ks = (config.k,) if run.each else run.ks
    unexplained = unexplained_variance(model, data.task.database.numpy(), ks)
    return model, {
        "k": config.k,
        "hidden_dim": settled.hidden_dim,
        "steps": settled.steps,
        "batch": settled.batch_size,
        "subspace": settled.input_subspace,
        "whitening": settled.whitening,
        "beta": settled.beta,
        "cpu_s": round(spent, 1),
        "dead_percent": round(100 * dead_share(model), 3),
        "skew": round(use_skew(model.encode(data.task.database.numpy(), min(32, config.k))), 4),
        **{f"unexplained_{k}": round(share, 4) for k, share in unexplained.items()},
    }


def nearest_others(x: torch.Tensor) -> torch.Tensor:
    """[n, 2] each row's number, and that of its nearest other row by cosine."""
    x = torch.nn.functional.normalize(x, dim=1)
    near = []
    for start in range(0, len(x), 1000):
        scores = x[start : start + 1000] @ x.T
        own = torch.arange(len(scores))
        scores[own, start + own] = -2.0
        near.append(scores.argmax(1))
    return torch.stack([torch.arange(len(x)), torch.cat(near)], 1)


def main() -> None:
    """Adds to both tables what they lack."""
    parser = argparse.ArgumentParser(description=__doc__)
    output.folder_options(parser, ())
    parser.add_argument(
        "--methods", help=f"of {', '.join(METHODS)} (default: {DEFAULT}; --quick: {QUICK})"
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--models", type=Path, help="folder to keep the models in")
    options = parser.parse_args()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    names = options.sets.split(",") if options.sets else sets.available(options.data)
    methods = options.methods or DEFAULT
    if options.quick:
        names = names if options.sets else [sets.PACKAGED]
        methods = options.methods or QUICK
    rows: list[dict[str, Any]] = list(output.read_rows(folder / "quality.csv"))
    there = {_key(row) for row in rows}
    # A training without results was cut short before these were written.
    about: list[dict[str, Any]] = [
        row for row in output.read_rows(folder / "training.csv") if _key(row) in there
    ]
    for seed in map(int, options.seeds.split(",")):
        for method in methods.split(","):
            for name in names:
                if (name, method, seed) in there or (method == "dense" and seed):
                    continue
                data = sets.load(options.data / f"{name}.npz")
                need = needs(method)
                if data is None or (need is not None and getattr(data, need) is None):
                    continue
                began = time.perf_counter()
                steps = 100 if options.quick else STEPS
                results, trainings = measure(data, method, seed, steps, options.models)
                key = {"set": name, "run": method, "seed": seed}
                rows += [{**key, **row_of(result)} for result in results]
                about += [{**key, **training} for training in trainings]
                output.write_rows(folder / "training.csv", about)
                output.write_rows(folder / "quality.csv", rows)
                print(f"{name} {method} {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    summary.write(folder)


def _key(row: Mapping[str, str]) -> tuple[str, str, int]:
    return row["set"], row["run"], int(row["seed"])


def row_of(result: Result) -> dict[str, Any]:
    """A row of quality.csv."""
    (measure, score), *others = result.scores.items()
    return {
        "method": result.method,
        "active": result.active,
        "bytes": result.bytes_per_vector,
        "measure": measure,
        "score": round(100 * score, 2),
        "more": " ".join(f"{name}={100 * value:.2f}" for name, value in others),
    }


if __name__ == "__main__":
    main()
