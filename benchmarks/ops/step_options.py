"""Time that each option of the loss adds to a training step, against two bare encoder products.

python -m benchmarks.ops.step_options

A step is zero, forward, backward and a fused Adam, with a quarter of the latents dead, as in
bench_train_step.py. Sides take turns; times are those of the processor, of one thread. The table is
printed, and kept in benchmarks/results/<machine>/step-options.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import provenance
from benchmarks.ops.bench_train_step import BETA, GAMMA, TEMPERATURE, kill_a_quarter, stepper
from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss

K, K_AUX, ROUNDS = 32, 512, 7
SHAPES = ((512, 384, 4096), (1024, 768, 8192))  # rows, width, latents
SERVED = (4, 8, 16)
OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's loss at one k": {},
    "k_aux of 128": {"k_aux": 128},
    "without the auxiliary term": {"k_aux": 0},
    "in bfloat16 (autocast)": {"autocast": True},
    "in bfloat16, k_aux of 128": {"autocast": True, "k_aux": 128},
    "without the contrast": {"contrast": None},
    "reconstruction at k = 4, 8, 16, 32, no contrast": {"contrast": None, "ks": SERVED},
    "reconstruction at every k, no contrast": {"contrast": None, "ks": range(1, K)},
    "all at k = 4, 8, 16, 32 (the default)": {"ks": SERVED},
    "labels": {"contrast": "label"},
    "pairs": {"contrast": "clip"},
    "load balance": {"balance": 0.01},
    "labels and load balance at k = 4, 8, 16, 32": {
        "contrast": "label",
        "ks": SERVED,
        "balance": 0.01,
    },
}


def step_of(shape: tuple[int, int, int], changes: dict[str, Any]) -> Callable[[], None]:
    """One step with these changes to the paper's loss."""
    n, d, h = shape
    changes = dict(changes)
    model = SparseAutoencoder(d, h, K, k_aux=changes.pop("k_aux", K_AUX))
    kill_a_quarter(model)
    x, labels = torch.randn(n, d), torch.arange(n) % 45
    autocast = changes.pop("autocast", False)
    loss = CSRLoss(BETA, GAMMA, TEMPERATURE, **changes)

    def total() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if loss.contrast == "clip":  # as many rows in all
                return loss(model, x[: n // 2], partners=x[n // 2 :])["loss"]
            return loss(model, x, labels if loss.contrast == "label" else None)["loss"]

    return stepper(model, total)


def two_products(shape: tuple[int, int, int]) -> Callable[[], None]:
    """The encoder's product, bias included, twice."""
    n, d, h = shape
    x, weight, bias, out = torch.randn(n, d), torch.randn(h, d), torch.zeros(h), torch.empty(n, h)

    def products() -> None:
        for _ in range(2):
            torch.addmm(bias, x, weight.T, out=out)

    return products


def measure(shape: tuple[int, int, int]) -> dict[str, float]:
    """The median time of each option's step, as a multiple of two products."""
    sides = {"two products": two_products(shape)}
    sides |= {name: step_of(shape, changes) for name, changes in OPTIONS.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):
        for name, side in sides.items():
            begin = time.process_time()
            side()
            times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}
    bare = medians.pop("two products")
    return {name: spent / bare for name, spent in medians.items()}


def main() -> None:
    """Print a table, a column for each shape, and keep it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    columns = [measure(shape) for shape in SHAPES]
    heads = [f"{n} rows, d = {d}, h = {h:,}" for n, d, h in SHAPES]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in OPTIONS:
        print(f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns)} |")
    table = dict(zip(heads, columns, strict=True))
    print(provenance.save("step-options.json", times_of_two_products=table))


if __name__ == "__main__":
    main()
