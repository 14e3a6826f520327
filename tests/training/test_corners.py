"""train: the smallest and largest settings and embeddings that are allowed."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import csrkern
from csrkern import InvertedIndex, PackedCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def quiet(x: np.ndarray, config: TrainConfig) -> SparseAutoencoder:
    return train(x, config=config, progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4, "k_aux": 0},
        {"k": 4, "k_aux": 10_000},
        {"k": 12, "hidden_dim": 16},  # 4k > h
        {"k": 16, "hidden_dim": 16},
        {"k": 2, "hidden_dim": 4},  # h < d
        {"k": 1, "hidden_dim": 1},
        {"k": 2, "batch_size": 1},
        {"k": 2, "batch_size": 10_000},
        {"k": 9, "ks": (1, 2, 3, 5, 7, 8)},
        {"k": 2, "whitening": 1.0, "input_subspace": 1},
        {"k": 2, "gamma": 0.0, "beta": 0.0, "contrast": None},
        {"k": 2, "steps": 1, "anneal": True},
    ],
    ids=str,
)
def test_every_legal_corner_trains(x, options):
    config = TrainConfig(**{"hidden_dim": 64, "steps": 3, **options})
    model = quiet(x[:100], config=config)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    codes = model.encode(x[:50])
    assert codes.k == options["k"]
    assert bool(codes.active.any())


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_embeddings_of_other_sizes_train_as_well(x, factor):
    config = TrainConfig(k=4, ks=(), hidden_dim=64, batch_size=64, steps=5)
    plain, scaled = (quiet(rows, config=config) for rows in (x, x * np.float32(factor)))
    codes, others = plain.encode(x[:50]), scaled.encode(x[:50] * np.float32(factor))
    assert (codes.indices == others.indices).float().mean() > 0.9


@pytest.mark.parametrize("contrast", ["self", None])
def test_one_feature(x, contrast):
    config = TrainConfig(k=1, hidden_dim=4, steps=3, contrast=contrast)
    model = quiet(x[:100, :1], config=config)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


# 4k > h at k = 3; h < d at d = 16; k = h; the smallest k and h.
SIZES = [(1, 1), (1, 2), (2, 2), (3, 8), (8, 8)]
CORNERS = [*product(SIZES, (1, 2, 16), (2, 60), (0, 10_000), (True, False))]


@pytest.mark.parametrize(("contrast", "labels"), [("self", False), ("label", True), (None, False)])
def test_corners_of_sizes_give_codes_that_are_found(x, contrast, labels):
    for (k, h), d, n, k_aux, tied in CORNERS:
        rows = x[:n, :d]
        case = f"k={k}, h={h}, d={d}, n={n}, k_aux={k_aux}, tied={tied}"
        config = TrainConfig(
            k=k, hidden_dim=h, k_aux=k_aux, tied=tied, contrast=contrast, steps=2, dead_threshold=1
        )
        given = np.arange(n) % 2 if labels else None
        model = train(rows, given, config, progress=False)
        codes = model.encode(rows).validate()
        assert codes.k == k, case
        assert bool(torch.isfinite(model.decode(codes)).all()), case
        packed = PackedCodes.pack(codes).unpack()
        assert (packed.to_dense() > 0).equal(codes.to_dense() > 0), case
        index = InvertedIndex.build(codes, metric="ip", dtype="float32")
        scores, _ = index.search(codes[:1], 1)
        best = float(csrkern.similarity(codes[:1], codes).max())
        # Documents without a latent of the query are no hits.
        assert scores[0, 0] == pytest.approx(best or -np.inf, rel=1e-6), case


@pytest.mark.filterwarnings("ignore:std")  # PyTorch's, where there is no row
@pytest.mark.parametrize(("d", "h", "n"), [*product((1, 3), (1, 5), (0, 1, 4))])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_models_of_the_smallest_sizes(d, h, n, tied, standardize):
    if standardize and d == 1:
        with pytest.raises(ValueError, match="standardize: expected False with input_dim = 1"):
            SparseAutoencoder(d, h, 1, standardize=True)
        return
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    for k, k_aux in product({1, h}, (0, 1, 10_000)):
        model = SparseAutoencoder(d, h, k, k_aux, standardize, 0, tied)
        model.stats_last_nonzero.fill_(1)
        reconstruction, codes = model(rows)
        revived = model.reconstruct_dead(rows)
        assert (revived is None) == (k_aux == 0)
        total = reconstruction.sum() + (0 if revived is None else revived.sum())
        total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(t).all()) for t in [*grads, reconstruction.detach()])
        assert codes.validate().values.shape == (n, k)
        index = InvertedIndex.build(codes.detach())
        assert index.search(codes.detach(), 3)[0].shape == (n, 3)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"k": 9, "hidden_dim": 8}, "k: expected at most hidden_dim = 8, got 9"),
    ({"hidden_dim": None, "k": 65}, r"k: expected at most 4 \* 16 = 64 latents, got 65"),
    ({"hidden_dim": 2**31, "k": 2}, "hidden_dim: expected 1 <= hidden_dim <= 2147483647"),
    ({"k": 4, "ks": (4,)}, "ks: expected k's below k = 4"),
    ({"input_subspace": 17}, "input_subspace: expected at most the 16 dimensions"),
    ({"contrast": "label"}, "labels: expected one per embedding"),
    ({"contrast": "pair"}, "partners: expected embeddings"),
    ({"standardize": True}, "standardize: expected False with"),
    ({"temperature": 1e300}, "temperature and weights of terms nearer 1"),
    ({"gamma": 1e300}, "temperature and weights of terms nearer 1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_other_corners_say_why_not(x, options, message):
    with pytest.raises((ValueError, FloatingPointError), match=message):
        quiet(x, TrainConfig(**{"k": 2, "hidden_dim": 64, "steps": 2, **options}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (slice(0, 1), "expected at least 2 rows to train on, got 1"),
        ([3, 3, 3], "expected rows that differ"),
    ],
)
def test_rows_that_teach_nothing(x, rows, message):
    with pytest.raises(ValueError, match=message):
        quiet(x[rows], TrainConfig(k=2, hidden_dim=8, steps=2))


def test_sizes_of_untied_models_are_those_asked_for():
    model = SparseAutoencoder(4, 16, 2, tied=False)
    with pytest.raises(ValueError, match=r"ks\[1\]: expected 1 <= ks\[1\] <= h = 16, got 20"):
        model.autoencode(torch.randn(3, 4), [1, 20])
