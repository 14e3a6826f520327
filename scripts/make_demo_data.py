#!/usr/bin/env python3
"""Makes wordnet45.* of demo-data/: the definitions that `csrkern demo` learns from.

    python scripts/make_demo_data.py wordnet45.npz wordnet45.texts.jsonl.gz

The first file holds `train_emb`, `test_emb` [n, 384] (L2-normalised all-MiniLM-L6-v2
embeddings of WordNet 3.0 definitions, mean-pooled), `train_label`, `test_label` [n] and
`label_names`; the second one JSON object a line with `split`, `i` (the row), `text` (the
definition) and `lemmas` (its words). Each row is scaled so that its largest entry is ±127 and
rounded to int8; the scale is not kept, because rows have norm 1 and the loader restores that.
Prints the cosine 1-NN accuracy before and after, and fails if they differ by 0.1 point.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "demo-data" / "csrkern_demo_data"


def quantize(rows: np.ndarray) -> np.ndarray:
    """int8 [n, d]: each row scaled to its own largest magnitude."""
    rows = rows.astype(np.float32)
    return np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8)


def one_nn_accuracy(source: np.lib.npyio.NpzFile, train: np.ndarray, test: np.ndarray) -> float:
    """Percent of test rows whose nearest train row (cosine) has the same label."""
    train, test = train.astype(np.float32), test.astype(np.float32)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    nearest = (test @ train.T).argmax(axis=1)
    return 100 * float((source["train_label"][nearest] == source["test_label"]).mean())


def texts_in_row_order(path: Path, split: str, rows: int) -> list[str]:
    """One "words<TAB>definition" line for each row of the split."""
    lines = [""] * rows
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            if record["split"] == split:
                lines[record["i"]] = f"{record['lemmas']}\t{record['text']}"
    if not all(lines):
        raise SystemExit(f"{path} has no text for row {lines.index('')} of {split}")
    return lines


def main() -> None:
    """Read the two source files and write demo-data/csrkern_demo_data/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("texts", type=Path)
    arguments = parser.parse_args()

    source = np.load(arguments.embeddings, allow_pickle=False)
    train, test = quantize(source["train_emb"]), quantize(source["test_emb"])
    before = one_nn_accuracy(source, source["train_emb"], source["test_emb"])
    after = one_nn_accuracy(source, train, test)
    print(f"1-NN accuracy: {before:.2f}% before, {after:.2f}% after rounding to int8")
    if abs(before - after) >= 0.1:
        raise SystemExit("rounding to int8 moved the accuracy by 0.1 point or more")

    DATA.mkdir(exist_ok=True)
    np.savez_compressed(
        DATA / "wordnet45.npz",
        train=train,
        test=test,
        train_labels=source["train_label"].astype(np.uint8),
        test_labels=source["test_label"].astype(np.uint8),
        label_names=source["label_names"],
    )
    lines = [
        *texts_in_row_order(arguments.texts, "train", len(train)),
        *texts_in_row_order(arguments.texts, "test", len(test)),
    ]
    text = ("\n".join(lines) + "\n").encode()
    (DATA / "wordnet45.tsv.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    for file in sorted(DATA.iterdir()):
        print(f"{file.stat().st_size:>10,} bytes  {file.name}")


if __name__ == "__main__":
    main()
