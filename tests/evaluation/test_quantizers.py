"""Quantizers against direct computations, and what they refuse."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csrtrain.evaluation import quantizers
from csrtrain.evaluation.comparison import left_out
from csrtrain.evaluation.quantizers import (
    QUANTIZERS,
    gaussian_codebook,
    nearest_by_angle,
    obstacle,
    quantize,
    random_rotation,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SCALAR = [name for name in QUANTIZERS if name.startswith(("RaBitQ", "TurboQuant"))]


def rows(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["PQ", "OPQ", "RQ", "PRQ", "LSQ", "PLSQ", *SCALAR])
def test_rows_at_norm_1_get_closer_with_more_bytes_and_follow_from_the_seed(name):
    if name not in SCALAR:
        pytest.importorskip("faiss")
    x = rows(600)
    unit = F.normalize(x)
    sizes = (4, 8) if name in SCALAR else (1, 2)
    stored = [quantize(name, x, x, size) for size in sizes]
    assert all(found.n_bytes <= size for found, size in zip(stored, sizes, strict=True))
    angles = [float(F.cosine_similarity(found.rows, unit).mean()) for found in stored]
    assert angles == sorted(angles)
    assert angles[-1] > 0.6
    # Length is no matter, even where its square is beyond float32.
    again = quantize(name, x * 2.0**120, x * 2.0**120, sizes[-1])
    assert torch.equal(again.rows, stored[-1].rows)
    other = quantize(name, x, x, sizes[-1], seed=1)
    assert not torch.equal(other.rows, stored[-1].rows)


def test_a_residual_quantizer_sums_codewords_chosen_one_after_another(monkeypatch):
    """As NumPy finds them in FAISS' codebooks, with a beam of 1."""
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr("csrtrain.training.quantizer._BEAM", 1)
    made = []

    class Kept(faiss.ResidualQuantizer):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            made.append(self)

    monkeypatch.setattr(faiss, "ResidualQuantizer", Kept)
    x = rows(400, 8)
    stored = quantize("RQ", x, x[:50], 3)
    books = faiss.vector_to_array(made[0].codebooks).reshape(3, 256, 8)
    left = F.normalize(x[:50]).numpy()
    total = np.zeros_like(left)
    for book in books:
        word = book[((left[:, None] - book) ** 2).sum(2).argmin(1)]
        left, total = left - word, total + word
    np.testing.assert_allclose(stored.rows.numpy(), total, atol=1e-5)
    assert (stored.active, stored.n_bytes) == (3, 3)


@pytest.mark.parametrize("inner", ["RQ", "LSQ"])
def test_parts_are_quantized_each_for_itself(inner):
    pytest.importorskip("faiss")
    x = F.normalize(rows(300, 8))
    learn = QUANTIZERS[inner].learn
    stored = quantizers._in_parts(learn, x.numpy(), x[:20].numpy(), 4, 0, part_bytes=2)
    halves = [learn(side.numpy().copy(), side[:20].numpy().copy(), 2, 0) for side in x.split(4, 1)]
    assert torch.equal(stored.rows, torch.cat([half.rows for half in halves], 1))
    assert (stored.active, stored.n_bytes) == (4, 4)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_rabitq_takes_the_point_at_the_least_angle(bits):
    x = rows(60, 4)
    values = [sign * (m + 0.5) for m in range(2 ** (bits - 1)) for sign in (-1, 1)]
    grid = torch.tensor(list(itertools.product(*[values] * 4)))
    least = (F.normalize(x) @ F.normalize(grid).T).amax(1)
    points = nearest_by_angle(x, bits)
    assert {*points.flatten().tolist()} <= {*values}
    torch.testing.assert_close(F.cosine_similarity(x, points), least)
    assert torch.equal(nearest_by_angle(torch.zeros(1, 4), bits), torch.full((1, 4), 0.5))


def test_rabitq_of_one_bit_is_that_of_faiss_but_for_the_length():
    faiss = pytest.importorskip("faiss", minversion="1.11")
    x = rows(200, 8) + 0.5
    unit = F.normalize(x)
    mean = unit.mean(0)
    stored = quantize("RaBitQ-1", x, x, 3)
    assert (stored.active, stored.n_bytes) == (8, 3)
    basis = quantizers.PCA(unit).directions @ random_rotation(8, 0)
    index = faiss.IndexRaBitQ(8, faiss.METRIC_L2)
    turned = ((unit - mean) @ basis).numpy()
    index.train(turned)
    theirs = torch.from_numpy(index.sa_decode(index.sa_encode(turned))) @ basis.T
    ours = stored.rows - mean
    torch.testing.assert_close(F.normalize(ours), F.normalize(theirs), atol=1e-3, rtol=0)
    # At the length of least squares what is left over is at right angles, up to float16.
    assert float(((unit - stored.rows) * ours).sum(1).abs().max()) < 1e-3


def test_turboquant_rounds_rotated_coordinates_to_lloyds_codebook():
    """By the tables of Max (1960) for a normal distribution."""
    torch.testing.assert_close(
        gaussian_codebook(1), torch.tensor([-0.7979, 0.7979]), atol=1e-4, rtol=0
    )
    expected = torch.tensor([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733])
    torch.testing.assert_close(gaussian_codebook(4)[8:], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(gaussian_codebook(4).flip(0), -gaussian_codebook(4))
    x = rows(50, 16)
    stored = quantize("TurboQuant-2", x, x, 4)
    assert (stored.active, stored.n_bytes) == (16, 4)
    unit = F.normalize(x)
    basis = quantizers.PCA(unit, -unit).directions @ random_rotation(16, 0)
    codebook = gaussian_codebook(2) / 4
    nearest = (unit @ basis)[:, :, None].sub(codebook).abs().argmin(2)
    torch.testing.assert_close(stored.rows, codebook[nearest] @ basis.T)


def test_what_does_not_fit_is_left_to_principal_directions():
    x = rows(100) * torch.tensor([9.0] * 4 + [0.1] * 12)
    for name in ("RaBitQ-4", "TurboQuant-4"):
        stored = quantize(name, x, x, 4)
        assert stored.active == (4 if name.startswith("RaBitQ") else 8)
        assert stored.n_bytes == 4
        assert float(F.cosine_similarity(stored.rows, x).mean()) > 0.98


def test_what_cannot_learn_says_why(monkeypatch):
    with pytest.raises(ValueError, match=r"quantizer: expected one of PQ, OPQ.*, got 'pq'"):
        quantize("pq", rows(300), rows(2), 4)
    with pytest.raises(ValueError, match="n_bytes: expected at least 3, got 2"):
        quantize("RaBitQ-1", rows(300), rows(2), 2)
    few = "expected at least 256 rows, got 255"
    learned = ["PQ", "OPQ", "RQ", "PRQ", "LSQ", "PLSQ"]
    monkeypatch.setattr(quantizers, "find_spec", lambda name: "a spec")
    assert left_out(rows(255), [*QUANTIZERS]) == dict.fromkeys(learned, few)
    with pytest.raises(ValueError, match=f"train: {few}"):
        quantize("LSQ", rows(255), rows(2), 4)
    assert "as many rows as dimensions, 10001, got 10000" in obstacle(
        "OPQ", torch.zeros(20_000, 10_001)
    )
    monkeypatch.setattr(quantizers, "find_spec", lambda name: None)
    missing = left_out(rows(300), [*QUANTIZERS])
    assert list(missing) == learned
    with pytest.raises(ImportError, match=r"train: needs FAISS.* pip install 'csrkern\[eval\]'"):
        quantize("RQ", rows(300), rows(2), 4)


def test_what_ends_the_process_in_faiss_is_refused():
    """OPQ writes past its buffers where there are fewer rows than dimensions."""
    pytest.importorskip("faiss")
    code = """
import torch
from csrtrain.evaluation.quantizers import quantize

for rows, d in ((256, 256), (300, 384), (383, 384), (256, 768), (1000, 1536)):
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(0))
    try:
        quantize("OPQ", x, x[:9], 16)
    except ValueError as error:
        assert rows < d
        assert str(error) == (
            f"train: expected at least as many rows as dimensions, {d}, got {rows}"
        ), error
    else:
        assert rows == d
    quantize("RQ", x, x[:9], 1)
print("done")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "done\n", "")
