"""Make the largest set of the comparison: all 117,659 definitions of WordNet 3.0, embedded.

python wordnet.py /usr/share/wordnet all-MiniLM-L6-v2 wordnet_all.npz

The first folder is that of data.noun, data.verb, data.adj and data.adv (Debian: wordnet-base), the
second one of a Sentence Transformers model, or its name. The file is a set with labels as `sets.py`
reads it: the definitions without examples, the 45 classes of WordNet's lexicographers, and the ten
nearest of each test row. The 4,000 test rows are drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from sets import NEAREST

from csrkern.storage import write_atomically
from csrtrain.evaluation.metrics import search

PARTS = ("noun", "verb", "adj", "adv")
TESTED = 4000


def definitions(folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the definition and the class of every synset, in the order of the files."""
    texts, labels = [], []
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):  # the license
                continue
            fields, _, gloss = line.partition(" | ")
            texts.append(gloss.partition('; "')[0].strip())
            labels.append(int(fields.split()[1]))
    return texts, np.array(labels, np.int32)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    texts, labels = definitions(options.folder)
    rows = SentenceTransformer(options.model, device="cpu").encode(
        texts, batch_size=256, normalize_embeddings=True, show_progress_bar=True
    )
    tested = np.zeros(len(texts), bool)
    tested[np.random.default_rng(0).choice(len(texts), TESTED, replace=False)] = True
    rows = rows.astype(np.float16)
    train, test = rows[~tested], rows[tested]
    file = io.BytesIO()
    np.savez(
        file,
        train_emb=train,
        train_label=labels[~tested],
        test_emb=test,
        test_label=labels[tested],
        nearest_test=search(*(torch.from_numpy(part).float() for part in (train, test)), NEAREST),
    )
    write_atomically(options.output, file.getvalue())


if __name__ == "__main__":
    main()
