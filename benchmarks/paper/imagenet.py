"""ImageNet-1k 1-NN on given embeddings, against the paper's accuracy at k = 8, 16 and 32.

python imagenet.py --train train.npz --val val.npz

The paper's authors publish embeddings of their ResNet-50 as .npz files of `data` [n, 2048] and
`label` [n]. For embeddings in .npy files, --train-labels and --val-labels name files of labels.

For each k a model is trained by the paper's recipe and kept in the output folder as model-k<k>. One
that is there already, such as the authors' (`load_pth(...).save_pretrained(...)`), is taken as it
is. Embeddings are read from mapped files, to train and to encode: those in .npz are unpacked into
the output folder first, and removed at the end. The search by the index is exact, of codes in
float32 by cosine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import output
import torch

from csrkern import InvertedIndex
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, load_embeddings, load_labels, train

PAPER = {8: 67.78, 16: 69.17, 32: 70.15}  # Wen et al., arXiv 2503.01776
TRAIN_ROWS, VAL_ROWS = 1_281_167, 50_000
# Loaders that leave out the last, smaller batch have a few rows less.
NEAR = 0.99


def main() -> None:
    """Measure every k; write imagenet.csv and imagenet.md."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".unpacked-") as unpacked:
        folder = Path(unpacked)
        train_rows = mapped(options.train, folder / "train.npy")
        val_rows = mapped(options.val, folder / "val.npy")
        sizes = [len(load_embeddings(path, check_finite=False)) for path in (train_rows, val_rows)]
        train_labels = labels(options.train, options.train_labels, sizes[0])
        val_labels = labels(options.val, options.val_labels, sizes[1])
        rows = []
        for k in sorted(options.ks):
            model = model_for(k, train_rows, options.output / f"model-k{k}")
            scored = round(
                100 * accuracy(model, k, train_rows, val_rows, train_labels, val_labels), 2
            )
            rows.append(
                {
                    "k": k,
                    "accuracy": scored,
                    "paper": PAPER[k],
                    "difference": round(scored - PAPER[k], 2),
                }
            )
            print("{k:>4}: {accuracy:.2f}, paper {paper:.2f}, {difference:+.2f}".format(**rows[-1]))
    output.write(options.output, "imagenet", rows, finding(rows, *sizes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side in ("train", "val"):
        parser.add_argument(f"--{side}", type=Path, required=True, help=".npz or .npy")
        parser.add_argument(f"--{side}-labels", type=Path, help="of embeddings in .npy")
    parser.add_argument("--ks", type=int, nargs="+", default=list(PAPER), choices=list(PAPER))
    parser.add_argument("--output", "-o", type=Path, default=Path("paper-results"))
    return parser.parse_args()


def mapped(path: Path, unpacked: Path) -> Path:
    """A .npy file of embeddings: that of `path` itself, or `data` of a .npz unpacked."""
    if path.suffix != ".npz":
        return path
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("data.npy") as stored,
        unpacked.open("wb") as file,
    ):
        shutil.copyfileobj(stored, file, 1 << 24)
    return unpacked


def labels(path: Path, given: Path | None, n: int) -> torch.Tensor:
    """The n labels of embeddings: `label` in their .npz, or a file of their own."""
    if given is None and path.suffix != ".npz":
        raise SystemExit(f"{path}: expected its labels too; give --train-labels and --val-labels")
    return load_labels(f"{path}:label" if given is None else given, n=n)


def model_for(k: int, train_rows: Path, folder: Path) -> SparseAutoencoder:
    """The model in `folder`, or one trained by the paper's recipe and saved there."""
    if not folder.exists():
        train(train_rows, config=TrainConfig.preset("imagenet", k=k)).save_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return SparseAutoencoder.from_pretrained(folder).to(device)


def accuracy(
    model: SparseAutoencoder,
    k: int,
    train_rows: Path,
    val_rows: Path,
    train_labels: torch.Tensor,
    val_labels: torch.Tensor,
) -> float:
    """The share of validation rows whose nearest training row has their label."""
    index = InvertedIndex.build(model.encode(train_rows, k), dtype="float32")
    _, ids = index.search(model.encode(val_rows, k), 1)
    nearest = ids[:, 0]
    # A code of zeros has no neighbor.
    return float(np.mean((nearest >= 0) & (train_labels.numpy()[nearest] == val_labels.numpy())))


def finding(rows: output.Rows, n_train: int, n_val: int) -> str:
    """A sentence with the accuracies; of other rows than ImageNet's, why they do not compare."""
    listed = "; ".join(
        f"k = {row['k']}: {row['accuracy']} here, {row['paper']} in the paper, "
        f"{row['difference']:+}"
        for row in rows
    )
    if n_val != VAL_ROWS or not NEAR * TRAIN_ROWS <= n_train <= TRAIN_ROWS:
        return (
            f"These are not the embeddings of ImageNet-1k: {n_train:,} rows to train on and "
            f"{n_val:,} to score by, where there are {TRAIN_ROWS:,} and {VAL_ROWS:,}. The "
            f"differences say nothing of the paper. {listed}."
        )
    return f"1-NN accuracy of ImageNet-1k in percent. {listed}."


if __name__ == "__main__":
    main()
