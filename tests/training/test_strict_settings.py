"""Main paths where the user lets NumPy raise and turns warnings into errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train

D, H = 16, 64


@pytest.fixture
def strict() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


def embeddings() -> np.ndarray:
    """float64 rows with numbers that float32 does not hold."""
    x = np.random.default_rng(0).standard_normal((200, D))
    x[::3, 2] = 1e-50
    return x


def test_embeddings_that_underflow(strict: None) -> None:
    model = SparseAutoencoder(D, H, 4).eval()
    x = embeddings()
    codes = model.encode(x)
    assert model.encode(x.astype(">f8")).equal(codes)
    train(x, config=TrainConfig(hidden_dim=H, k=4, steps=2, batch_size=32), progress=False)
    x[7, 1] = 1e300
    with pytest.raises(ValueError, match="row 7 holds 1 values"):
        model.encode(x)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_an_index_of_values_that_underflow(
    strict: None, tmp_path: Path, metric: str, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    weights = np.sort(rng.random((50, 4)), axis=1)[:, ::-1] + 0.1
    weights[:, 3] = 1e-50
    latents = np.argsort(rng.random((50, H)), axis=1)[:, :4]
    largest = 2.0 if metric == "ip" and dtype.startswith("uint") else None
    index = InvertedIndex.build(
        (weights, latents), dim=H, metric=metric, dtype=dtype, largest=largest
    )
    index.add((weights, latents), ids=np.arange(100, 150))
    index.save(tmp_path)
    index = InvertedIndex.load(tmp_path)
    kept = weights.copy()
    kept[:, 3] = 0
    _, found = index.search((weights[:5], latents[:5]), 3)
    assert np.array_equal(found, index.search((kept[:5], latents[:5]), 3)[1])
    index.profile((np.full((1, 1), 1e-50), latents[:1, :1]))


def test_codes_that_underflow(strict: None, tmp_path: Path) -> None:
    codes = SparseCodes.from_numpy([[1.0, 1e-50]], [[3, 1]], 8)
    narrow = codes.to(dtype=torch.float32)
    assert narrow.values.tolist() == [[1.0, 2.0**-149]]  # active latents stay active
    InvertedIndex.build(codes.to_scipy(), dim=8).search(narrow, 1)


COMMANDS = """
import sys
import numpy as np
np.seterr(all="raise")
x = np.random.default_rng(0).standard_normal((300, 16))
x[::3, 2] = 1e-50
np.save("x.npy", x.astype(">f8"))
np.save("y.npy", np.arange(300).astype(">i4") % 3)
from csrtrain.cli.app import main
for words in (
    "train x.npy --labels y.npy -o model --steps 3 --k 4 --batch-size 32 --hidden-dim 64",
    "encode model x.npy -o codes.safetensors",
    "index codes.safetensors -o index",
    "search index x.npy --model model --json",
    "doctor",
):
    code = main(words.split())
    assert code == 0, words
"""


def test_commands_with_warnings_as_errors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMANDS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
