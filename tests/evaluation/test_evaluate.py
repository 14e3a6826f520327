"""Evaluation and baselines against small direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csrkern.codes.sparse import SparseCodes
from csrkern.embeddings import dataset
from csrkern.nn import SparseAutoencoder
from csrtrain.evaluation import metrics
from csrtrain.evaluation.baselines import dense_bytes, largest_entries, sparse_bytes, truncate
from csrtrain.pca import PCA

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> SparseAutoencoder:
    torch.manual_seed(0)
    model = SparseAutoencoder(12, 300, 6)
    with torch.no_grad():
        model.pre_bias.normal_()
        model.latent_bias.normal_(std=0.1)
    return model.eval()


def clusters(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around 8 fixed centers, not at the origin, and their centers' numbers."""
    centers = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) + 0.5
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (n,), generator=generator)
    return centers[labels] + 0.8 * torch.randn(n, 12, generator=generator), labels


def brute_force(database, labels, queries, query_labels) -> float:
    right = 0
    for query, label in zip(queries, query_labels, strict=True):
        scores = [
            float(query @ row / max(float(query.norm() * row.norm()), 1e-30)) for row in database
        ]
        right += int(labels[int(np.argmax(scores))] == label)
    return right / len(queries)


def test_dense_nearest_accuracy_equals_brute_force(monkeypatch):
    (db, db_labels), (q, q_labels) = clusters(150, 1), clusters(60, 2)
    expected = brute_force(db, db_labels, q, q_labels)
    assert 0.3 < expected < 1.0
    assert metrics.nearest_accuracy(db, db_labels, q, q_labels) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "_BLOCK_SCORES", 150 * 7)
    assert metrics.nearest_accuracy(db, db_labels, q, q_labels) == pytest.approx(expected)


def test_code_nearest_accuracy_equals_brute_force(model):
    (db, db_labels), (q, q_labels) = clusters(150, 1), clusters(60, 2)
    codes, query_codes = model.encode(db.numpy()), model.encode(q.numpy())
    expected = brute_force(codes.to_dense(), db_labels, query_codes.to_dense(), q_labels)
    got = metrics.nearest_accuracy(codes, db_labels, query_codes, q_labels)
    assert got == pytest.approx(expected, abs=1 / 60)  # stored in float16: one near tie may turn


def test_a_query_that_matches_nothing_is_wrong():
    labels = torch.zeros(2, dtype=torch.long)
    dense = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert metrics.nearest_accuracy(dense, labels, query, labels) == 0.5
    codes = SparseCodes.from_dense(dense, 1)
    assert metrics.nearest_accuracy(codes, labels, SparseCodes.from_dense(query, 1), labels) == 0.5


def test_rows_and_labels_must_match():
    x, y = clusters(10, 0)
    with pytest.raises(ValueError, match="queries: expected as many labels as rows"):
        metrics.nearest_accuracy(x, y, x, y[:4])
    with pytest.raises(ValueError, match=r"database: .* got 0 labels for 0 rows"):
        metrics.nearest_accuracy(x[:0], y[:0], x, y)


@pytest.mark.parametrize("standardize", [False, True])
def test_unexplained_variance_is_that_of_the_forward_pass(model, standardize, monkeypatch):
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * 12 * 17)
    model.standardize = standardize
    x, _ = clusters(100, 3)
    got = metrics.unexplained_variance(model, x, [2, 6, 24])
    for k in (2, 6, 24):
        rebuilt = model(x, k)[0].detach()
        expected = float((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum())
        assert got[k] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="all of them are equal"):
        metrics.unexplained_variance(model, torch.ones(5, 12), [2])


def test_encode_joins_its_pieces(model, monkeypatch):
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * 12 * 17)
    x, _ = clusters(100, 3)
    codes = model.encode(x.half().numpy(), 4)
    whole = model.encode(x.half().float(), 4)
    assert torch.equal(codes.indices, whole.indices)
    torch.testing.assert_close(codes.values, whole.values)


def test_skew_and_use():
    values = torch.ones(100, 2)
    even = SparseCodes(values, torch.arange(200, dtype=torch.int32).reshape(100, 2), 200)
    assert metrics.latent_use(even).tolist() == [1] * 200
    assert metrics.use_skew(even) == pytest.approx(0.01)
    hot = SparseCodes(values, torch.stack([torch.zeros(100), torch.arange(1, 101)], 1).int(), 200)
    assert metrics.latent_use(hot)[0] == 100
    assert metrics.use_skew(hot) == pytest.approx(101 / 200)
    padded = SparseCodes(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2, dtype=torch.int32), 200)
    assert metrics.latent_use(padded).sum() == 1  # padding means nothing
    empty = SparseCodes(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32), 200)
    assert metrics.use_skew(empty) == 0.0


def test_dead_share(model):
    model.stats_last_nonzero[:30] = 31
    assert metrics.dead_share(model) == pytest.approx(0.1)


def test_pca_equals_the_singular_vectors():
    x, _ = clusters(200, 4)
    pca = PCA(x)
    centered = (x - x.mean(0)).double()
    _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
    expected = (centered @ directions[:5].T).abs().float()
    torch.testing.assert_close(pca.project(x, 5).abs(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pca.variances, (singular.square() / 200).float())
    with pytest.raises(ValueError, match="1 <= dims <= 12, got 13"):
        pca.project(x, 13)


def test_training_free_baselines():
    x = torch.tensor([[0.1, -5.0, 2.0, 0.0], [3.0, 1.0, -2.0, 0.5]])
    assert largest_entries(x, 2).tolist() == [[0.0, -5.0, 2.0, 0.0], [3.0, 0.0, -2.0, 0.0]]
    assert truncate(x, 3).tolist() == [x[0, :3].tolist(), x[1, :3].tolist()]
    assert (dense_bytes(16), sparse_bytes(8, 1536), sparse_bytes(8, 100_000)) == (32, 32, 48)
    for k in (0, 5):
        with pytest.raises(ValueError, match="1 <= k <= 4"):
            largest_entries(x, k)
