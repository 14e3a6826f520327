"""Codebooks that are learned, and an index with the codes that they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import csrkern
import csrtrain
from csrtrain.training.quantizer import RIDGE, fit_words, most_bytes, train_quantizers

pytest.importorskip("faiss")

D = 16


def rows(n: int = 700, seed: int = 0) -> np.ndarray:
    """Rows around 30 centers, off the origin."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((30, D))
    return (1 + centers[np.arange(n) % 30] + 0.3 * rng.standard_normal((n, D))).astype(np.float32)


def error(quantizer: csrkern.FineQuantizer, x: np.ndarray) -> float:
    """The squared error of decoded rows as a share of the variance."""
    lost = np.square(x - quantizer.encode(x).decode()).sum()
    return float(lost / np.square(x - x.mean(0)).sum())


def test_more_bytes_lose_less_and_seeds_repeat():
    x = rows()
    made = [csrtrain.train_quantizer(x, n, cosine=False, progress=False) for n in (1, 2, 4)]
    assert [quantizer.n_bytes for quantizer in made] == [1, 2, 4]
    errors = [error(quantizer, x) for quantizer in made]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
    again = csrtrain.train_quantizer(torch.from_numpy(x), 2, cosine=False, progress=False)
    assert again.fingerprint == made[1].fingerprint
    other = csrtrain.train_quantizer(x, 2, cosine=False, seed=1, progress=False)
    assert other.fingerprint != again.fingerprint


def test_fitting_all_words_together_is_no_worse_than_faiss():
    import faiss

    x = rows()
    centered = x - x.mean(0)
    faiss_own = faiss.ResidualQuantizer(D, 3, 8)
    faiss_own.max_beam_size = 5
    faiss_own.cp.min_points_per_centroid = 1
    faiss_own.train(centered)
    theirs = faiss.vector_to_array(faiss_own.codebooks).reshape(3, 256, D)
    plain = csrkern.FineQuantizer(theirs, x.mean(0))
    assert error(csrtrain.train_quantizer(x, 3, cosine=False, progress=False), x) < error(plain, x)


def test_fitted_words_solve_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    x, words = torch.randn(60, 4, generator=generator), torch.randn(10, 4, generator=generator)
    chosen = torch.stack(
        [torch.randint(0, 5, (60,), generator=generator) for _ in range(2)], 1
    ) + torch.tensor([0, 5])
    moved = fit_words(x, chosen, words)
    counts = torch.zeros(60, 10).scatter_(1, chosen, 1.0).double()
    gram = counts.T @ counts + RIDGE * torch.eye(10)
    expected = words + torch.linalg.solve(gram, counts.T @ (x - counts.float() @ words).double())
    torch.testing.assert_close(moved, expected.float(), rtol=1e-3, atol=1e-3)


def test_many_codebooks_part_the_dimensions(monkeypatch):
    monkeypatch.setattr("csrtrain.training.quantizer.MOST_BOOKS", 3)
    made = csrtrain.train_quantizer(rows(300), 9, progress=False)
    assert (made.parts, made.books, made.n_bytes) == (4, 8, 9)
    assert error(made, rows(300)) < 0.1


def test_fewer_rows_than_dimensions_will_do():
    x = np.random.default_rng(0).standard_normal((260, 300)).astype(np.float32)
    made = csrtrain.train_quantizer(x, 2, progress=False)
    assert (made.dim, made.n_bytes) == (300, 2)
    assert error(made, x) < 0.2  # nearly every row has a word of its own


def test_several_sizes_are_what_each_alone_is(monkeypatch):
    monkeypatch.setattr("csrtrain.training.quantizer.MOST_BOOKS", 3)
    x = rows(300)
    made = train_quantizers(x, (3, 9, 4))
    assert {size: quantizer.parts for size, quantizer in made.items()} == {3: 1, 9: 4, 4: 1}
    for size, quantizer in made.items():
        alone = csrtrain.train_quantizer(x, size, progress=False)
        assert quantizer.fingerprint == alone.fingerprint


def test_the_most_bytes_are_those_that_parts_can_share():
    assert [most_bytes(n, 12) for n in (2, 33, 34, 35, 36, 38)] == [2, 33, 34, 35, 35, 37]
    assert most_bytes(100, 7) == 99  # 98 books in 7 parts


def test_lengths_cover_the_rows():
    x = rows() * np.geomspace(0.1, 10, 700, dtype=np.float32)[:, None]
    quantizer = csrtrain.train_quantizer(x, 5, progress=False)
    fine = quantizer.encode(x)
    norms = np.linalg.norm(fine.decode(), axis=1)
    stored = quantizer.lengths[fine.codes[:, -1]]
    assert stored == pytest.approx(norms, rel=0.02)


def test_behind_a_projection_what_it_makes_is_learned():
    rng = np.random.default_rng(3)
    projection = csrkern.Projection(rng.standard_normal((6, D)), 0.1 * rng.standard_normal(D))
    x = rows()
    behind = csrtrain.train_quantizer(x, 7, projection=projection, parts=3, progress=False)
    before = csrtrain.train_quantizer(projection(x), 7, parts=3, progress=False)
    assert (behind.dim, behind.parts, behind.n_bytes) == (D, 3, 7)
    assert behind.encode(x).codes.tolist() == before.encode(projection(x)).codes.tolist()
    index = csrkern.InvertedIndex.build(None, fine=behind.encode(x))
    found = index.search_fine(x[:100], 1)[1][:, 0]
    assert (found % 30 == np.arange(100) % 30).mean() > 0.8  # of the same center


def test_rows_of_zeros_have_lengths():
    quantizer = csrtrain.train_quantizer(np.zeros((256, D)), 3, progress=False)
    assert np.isfinite(quantizer.scales).all()


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (255, {}, "embeddings: expected at least 256 rows to learn from, got 255"),
        (300, {"n_bytes": 1}, "n_bytes: expected"),
        (300, {"n_bytes": 40}, "n_bytes: expected codebooks that parts of 16 dimensions"),
        (300, {"parts": 3}, "parts: expected codebooks that parts .*, got 15 codebooks in 3 parts"),
        (300, {"parts": 0}, "parts: expected 1 <= parts <= 15"),
    ],
)
def test_what_cannot_be_learned_says_why(n, options, message):
    with pytest.raises(ValueError, match=message):
        csrtrain.train_quantizer(rows(n), progress=False, **options)


def test_without_faiss_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("csrtrain.training.quantizer.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'csrkern\[eval\]'"):
        csrtrain.train_quantizer(rows(300))


def test_an_index_in_one_call_finds_what_dense_search_finds(tmp_path):
    x, queries = rows(), rows(60, seed=5)
    config = csrtrain.TrainConfig(hidden_dim=64, k=8, steps=60, batch_size=64)
    model = csrtrain.train(x, config=config, progress=False)
    np.save(tmp_path / "x.npy", x)
    index = csrtrain.build_index(model, tmp_path / "x.npy", 4, n_bytes=9, progress=False)
    assert index.dtype == "uint4"
    scores, ids = index.search(model.encode(queries), rerank=csrkern.Refine(queries))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = queries @ unit.T / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.argsort(-cosines, 1)[:, :10]
    kept = np.mean([len(set(a) & set(b)) for a, b in zip(ids, best, strict=True)]) / 10
    codes_alone = index.search(model.encode(queries))[1]
    alone = np.mean([len(set(a) & set(b)) for a, b in zip(codes_alone, best, strict=True)]) / 10
    assert kept > max(0.7, alone)
    found = np.take_along_axis(cosines, np.maximum(ids, 0), 1)
    assert np.abs(scores - found)[ids >= 0].max() < 0.1
    more = rows(50, seed=8)
    index.add(model.encode(more, 4), fine=index.quantizer.encode(more))
    assert len(index) == 750


def test_an_index_of_fine_codes_alone_takes_no_model():
    x, labels = rows(), np.arange(700) % 30
    projection = csrkern.Projection(np.eye(4, D), x.mean(0))
    index = csrtrain.build_index(None, x, n_bytes=5, projection=projection, progress=False)
    assert (len(index), index.k, index.quantizer.n_bytes) == (700, 0, 5)
    assert index.quantizer.projection is projection
    ids = index.search_fine(x, 2)[1]
    assert np.mean(labels[ids[:, 1]] == labels) > 0.5
    with pytest.raises(ValueError, match="projection: expected None with a quantizer"):
        csrtrain.build_index(None, x, projection=projection, quantizer=index.quantizer)
