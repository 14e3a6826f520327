"""What codes keep, beside every other way to a smaller vector (Table 4, Table 1, Figure 7b).

python quality.py --data FOLDER --methods dense,matryoshka,recommended --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import output
import sets

from csrtrain import TrainConfig, train
from csrtrain.comparison import Result, compare_adapter, compare_codes, compare_dense
from csrtrain.evaluate import dead_share, encode_all, unexplained_variance, use_skew
from csrtrain.matryoshka import train_matryoshka

KS = (4, 8, 16, 32, 64)
# One model for every k, trained at all of them.
MANY = {"k": 64, "prefixes": (4, 8, 16, 32)}
CONFIGS = {
    "sae": TrainConfig(contrast=None, **MANY),
    "paper": TrainConfig(**MANY),
    "recommended": TrainConfig.preset("recommended", **MANY, steps=400),
    "whitened": TrainConfig.preset("recommended", **MANY, steps=400, whitening=0.3),
    "subspace": TrainConfig.preset("recommended", **MANY, steps=400, input_subspace=128),
    "auto": TrainConfig.preset("recommended", **MANY, steps=400, input_subspace="auto"),
    "csrv2": TrainConfig(contrast="label", anneal=True, **MANY),
    "labels": TrainConfig.preset("recommended", **MANY, steps=400, contrast="label"),
    "pairs": TrainConfig.preset("recommended", **MANY, steps=400, contrast="clip"),
}
NAMES = {
    "sae": "TopK SAE",
    "paper": "CSR as published",
    "recommended": "CSR",
    "whitened": "CSR whitened by 0.3",
    "subspace": "CSR in 128 directions",
    "auto": "CSR auto",
    "csrv2": "CSRv2",
    "labels": "CSR with labels",
    "pairs": "CSR with pairs",
}
OURS = ("CSR", "CSR, roots", "CSR, asymmetric", "CSR, asymmetric, refitted")
NEEDS = {"csrv2": "labels", "labels": "labels", "pairs": "pairs", "matryoshka labels": "labels"}


def rows_of(data: sets.Set, method: str, seed: int) -> Iterator[dict[str, object]]:
    """The rows of one method on one set: a Result each, with what training took."""
    began = time.process_time()
    extra: dict[str, float] = {}
    if method == "dense":
        results: Iterator[Result] = compare_dense(data.task, data.train, KS)
    elif method.startswith("matryoshka"):
        labels = data.labels if method.endswith("labels") else None
        adapter = train_matryoshka(data.train, [*KS, 128], labels, seed=seed)
        extra["train_cpu_s"] = time.process_time() - began
        name = "Matryoshka heads, labels" if labels is not None else "Matryoshka-Adaptor"
        results = compare_adapter(data.task, adapter, KS, name)
    else:
        config = dataclasses.replace(CONFIGS[method], seed=seed)
        if method == "pairs":
            assert data.asked is not None
            model = train(
                data.asked,
                config=config,
                partners=data.task.database,
                pairs=data.pairs,
                progress=False,
            )
        else:
            model = train(data.train, data.labels, config, progress=False)
        extra["train_cpu_s"] = time.process_time() - began
        extra["dead"] = dead_share(model)
        codes = encode_all(model, data.task.database, 32)
        extra["skew_32"] = use_skew(codes)
        for k, share in unexplained_variance(model, data.task.database.numpy(), KS).items():
            extra[f"fvu_{k}"] = share
        results = compare_codes(data.task, model, KS, NAMES[method])
    for result in results:
        score, *others = result.scores.items()
        yield {
            "set": data.name,
            "method": result.method,
            "seed": seed,
            "active": result.active,
            "bytes": result.bytes_per_vector,
            "measure": score[0],
            "score": f"{100 * score[1]:.2f}",
            "more": " ".join(f"{n}={v:.4f}" for n, v in [*others, *extra.items()]),
        }


def main() -> None:
    """Appends to the table, one set and method after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=sets.DATA)
    parser.add_argument("--sets", default="", help="names, separated by commas; all if empty")
    parser.add_argument("--methods", default="dense,matryoshka,sae,paper,recommended,csrv2")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--output", "-o", type=Path, default=Path("paper-results"))
    parser.add_argument("--quick", action="store_true", help="one set, shorter trainings")
    options = parser.parse_args()
    table = options.output / "quality.csv"
    options.output.mkdir(parents=True, exist_ok=True)
    names = options.sets.split(",") if options.sets else sets.available(options.data)
    if options.quick:
        names = [sets.PACKAGED]
        for method, config in CONFIGS.items():
            CONFIGS[method] = dataclasses.replace(config, steps=100)
    for method in options.methods.split(","):
        for name in names:
            data = sets.load(options.data / f"{name}.npz")
            need = NEEDS.get(method)
            if need is not None and getattr(data, need) is None:
                continue
            for seed in map(int, options.seeds.split(",")):
                found = list(rows_of(data, method, seed))
                fresh = not table.exists()
                with table.open("a", newline="") as file:
                    writer = csv.DictWriter(file, found[0], lineterminator="\n")
                    if fresh:
                        writer.writeheader()
                    writer.writerows(found)
                print(f"{name} {method} seed {seed}: {len(found)} rows", flush=True)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in names:
        summarise(options.output, name, [row for row in rows if row["set"] == name])


def summarise(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    """The chart and the paragraph of one set: medians over the seeds, at equal bytes."""
    scores: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        key = row["method"], int(row["active"]), int(row["bytes"])
        scores.setdefault(key, []).append(float(row["score"]))
    medians = [
        {"method": method, "active": active, "bytes": size, "score": statistics.median(found)}
        for (method, active, size), found in scores.items()
    ]
    lines = []
    for k in KS:
        ours = [r for r in medians if r["method"] in OURS and r["active"] == k]
        # Bytes are compared with the most that a code of this k may take.
        others = [r for r in medians if not r["method"].startswith("CSR") and r["bytes"] <= 4 * k]
        if ours and others:
            top, peer = (max(group, key=lambda r: r["score"]) for group in (ours, others))
            lines.append(
                f"k = {k}, {4 * k} bytes: {top['score']:.2f} ({top['method']}) against "
                f"{peer['score']:.2f} ({peer['method']}, {peer['bytes']} bytes)"
            )
    dense = next((f"; dense {r['score']:.2f}" for r in medians if r["method"] == "dense"), "")
    output.write(
        folder,
        f"quality_{name}",
        medians,
        f"{name}, {rows[0]['measure']}, without labels, best of ours against best of the others at "
        f"no more bytes. {'; '.join(lines)}{dense}.",
        x="bytes",
        y="score",
        by="method",
        log_x=True,
    )


if __name__ == "__main__":
    main()
