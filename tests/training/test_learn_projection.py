"""Directions that are learned: they are found where there are some, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import csrtrain
from csrkern import Projection
from csrtrain.training import projection as module

D, TOLD = 32, 4  # directions, and those that tell what belongs together


def drawn(n: int, seed: int, classes: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose class stands in few, weak directions, turned; and the classes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((D, D)))[0]
    centers = np.random.default_rng(98).standard_normal((classes, TOLD))
    labels = rng.integers(0, classes, n)
    x = rng.standard_normal((n, D))
    x[:, :TOLD] = centers[labels] + 0.05 * rng.standard_normal((n, TOLD))
    return (x @ turn).astype(np.float32), labels


def learned(*args, **options) -> Projection | None:
    return csrtrain.learn_projection(*args, progress=False, **options)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nearest(queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (unit(queries) @ unit(x).T).argmax(1)


def test_labels_in_few_directions_are_found():
    x, labels = drawn(1200, 0)
    unseen, wanted = drawn(300, 1)
    projection = learned(x, labels)
    before = (labels[nearest(unseen, x)] == wanted).mean()
    after = (labels[nearest(projection(unseen), projection(x))] == wanted).mean()
    assert after > 0.9 > before + 0.3
    names = np.array([f"class {label}" for label in labels])
    assert learned(x, names).directions.shape == projection.directions.shape


def test_the_same_data_and_seed_give_the_same(tmp_path):
    x, labels = drawn(600, 0)
    first = learned(x, labels)
    np.save(tmp_path / "x.npy", x)
    for again in (learned(x, labels), learned(tmp_path / "x.npy", torch.from_numpy(labels))):
        assert again.directions.tobytes() == first.directions.tobytes()
        assert again.center.tobytes() == first.center.tobytes()
    assert learned(x, labels, seed=5) is not None


def partners_of(x: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Other rows of the same classes: what tells of them is the same, all else is drawn again."""
    other = drawn(len(x), seed)[0]
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((D, D)))[0]
    mixed = other @ turn.T
    mixed[:, :TOLD] = (x @ turn.T)[:, :TOLD]
    return (mixed @ turn).astype(np.float32)


def spread_out(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that each have a place of their own in the directions that tell, and partners."""
    x, labels = drawn(n, seed, classes=5000)
    return x, partners_of(x, labels, seed + 1)


def found_share(projection: Projection | None, seed: int) -> float:
    queries, documents = spread_out(200, seed)
    if projection is not None:
        queries, documents = projection(queries), projection(documents)
    return float((nearest(queries, documents) == np.arange(200)).mean())


def test_partners_are_found():
    x, y = spread_out(1000, 2)
    projection = learned(x, partners=y)
    assert found_share(projection, 7) > 3 * found_share(None, 7)
    order = np.random.default_rng(0).permutation(1000)
    pairs = np.column_stack([np.arange(1000), np.argsort(order)])
    by_pairs = learned(x, partners=y[order], pairs=pairs)
    assert found_share(by_pairs, 7) > 3 * found_share(None, 7)


def test_pairs_within_the_same_rows_are_found():
    x, y = spread_out(400, 2)
    both = np.concatenate([x, y])
    pairs = np.column_stack([np.arange(400), 400 + np.arange(400)])
    projection = learned(both, pairs=pairs)
    assert found_share(projection, 7) > 3 * found_share(None, 7)
    twice = learned(both, partners=both.copy(), pairs=pairs)
    assert twice.directions.tobytes() == projection.directions.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_belongs_together_there_is_none(seed):
    x, labels = drawn(500, seed)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((500, 2 * D)).astype(np.float32)
    assert learned(x, rng.permutation(labels), seed=seed) is None
    assert learned(noise, partners=rng.permutation(noise), seed=seed) is None


@pytest.mark.parametrize("seed", range(3))
def test_pairs_in_both_orders_are_not_judged_by_themselves(seed, monkeypatch):
    """Fewer random pairs than dimensions: other directions make each pair one."""
    monkeypatch.setattr(module, "GAIN", 4.0)  # which a pair that was seen exceeds by far
    noise = np.random.default_rng(seed).standard_normal((400, 300)).astype(np.float32)
    pairs = np.arange(400).reshape(200, 2)
    assert learned(noise, pairs=np.concatenate([pairs, pairs[:, ::-1]]), seed=seed) is None


def test_a_gain_of_every_query_counts():
    """Plain search finds no partner, the projection each: a gain without a standard error."""
    ones, zeros = np.ones(60), np.zeros(60)
    assert module._gain(ones, zeros) == np.inf
    assert module._gain(zeros, zeros) == module._gain(zeros, ones) == 0
    assert module._gain(np.arange(60), zeros) > 1


def test_rows_do_not_find_themselves(monkeypatch):
    seen = []
    search = module._search

    def watched(rows, queries, own):
        found = search(rows, queries, own)
        seen.append((found, own.numpy()))
        return found

    monkeypatch.setattr(module, "_search", watched)
    x, _ = drawn(300, 0)
    learned(x, pairs=np.column_stack([np.arange(300), (np.arange(300) + 1) % 300]))
    found, own = seen[0]
    assert (own >= 0).all()
    assert not (found == own[:, None]).any()
    learned(x[:290], partners=x, pairs=np.column_stack([np.arange(290), np.arange(290)]))
    assert (seen[-1][1] == -1).all()


def test_of_more_than_ten_documents_ten_are_the_most_to_be_found():
    x, labels = drawn(300, 0)
    documents, of_documents = drawn(800, 1)
    pairs = np.argwhere(labels[:, None] == of_documents)
    assert np.bincount(pairs[:, 0]).max() > module.DEPTH
    evidence = module._by_pairs(
        module._unit(torch.from_numpy(x)), documents, pairs, torch.Generator().manual_seed(0)
    )
    evidence = next(iter(evidence.folds))
    held = len(evidence.queries)
    row_of = {row.tobytes(): i for i, row in enumerate(evidence.rows.numpy())}
    unit_documents = module._unit(torch.from_numpy(documents)).numpy()
    unit_queries = module._unit(torch.from_numpy(x)).numpy()
    query_of = {row.tobytes(): i for i, row in enumerate(unit_queries)}
    relevant = [
        [
            row_of[unit_documents[j].tobytes()]
            for j in np.flatnonzero(of_documents == labels[query_of[query.tobytes()]])
        ]
        for query in evidence.queries.numpy()
    ]
    wrong = [np.setdiff1d(np.arange(800), own)[:10] for own in relevant]
    best = np.array([own[:10] for own in relevant])
    assert evidence.judge(best) == pytest.approx(1)
    assert evidence.judge(np.array(wrong)) == pytest.approx(0)
    half = np.array([[*own[:1], *bad[:9]] for own, bad in zip(relevant, wrong, strict=True)])
    ideal = (1 / np.log2(np.arange(2, 12))).sum()
    assert evidence.judge(half) == pytest.approx(np.full(held, 1 / ideal))


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (drawn(300, 0)[0], np.zeros(300, int)),  # one class
        (drawn(300, 0)[0], np.arange(300)),  # classes of one row
        (np.ones((300, D)), np.arange(300) % 7),  # all rows equal
        (np.zeros((300, D)), np.arange(300) % 7),  # all rows zeros
        (np.ones((300, 1)), np.arange(300) % 2),  # one dimension
        (np.repeat(np.eye(3), 100, 0), np.repeat(np.arange(3), 100)),  # no difference in a class
    ],
)
def test_rows_that_teach_nothing_give_none(x, labels):
    assert learned(x, labels) is None


def test_some_zero_rows_and_classes_of_one_row_do_no_harm():
    x, labels = drawn(1200, 0)
    x[::40] = 0
    labels[:30] = 1000 + np.arange(30)
    projection = learned(x, labels)
    assert np.isfinite(projection.directions).all()
    unseen, wanted = drawn(300, 1)
    assert (labels[1:][nearest(projection(unseen), projection(x[1:]))] == wanted).mean() > 0.8


X, LABELS = drawn(300, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "labels: expected labels, partners or pairs to learn from, got none"),
        ({"labels": LABELS, "partners": X}, "labels: expected labels, or pairs, not both"),
        ({"labels": LABELS, "pairs": [[0, 1]]}, "labels: expected labels, or pairs, not both"),
        ({"labels": LABELS[:-1]}, "labels: expected 300 labels, one for each embedding, got 299"),
        ({"partners": X[:-1]}, "pairs: expected pairs, for there are 300 rows and 299 partners"),
        ({"partners": X[:, :-1]}, "partners: expected .*32"),
        ({"partners": X}, "pairs: expected pairs, for the partners are the embeddings, got none"),
        ({"pairs": np.zeros((9, 3), int)}, r"pairs: expected \[p, 2\] rows, got \[9, 3\]"),
        ({"pairs": np.zeros(9, int)}, "pairs: expected integers in rows"),
        ({"pairs": [[0, 300]]}, r"pairs: expected rows in 0\.\.299, got 300"),
        ({"pairs": [[-1, 3]]}, r"pairs: expected rows in 0\.\.299, got -1"),
        ({"pairs": [[5, 5]]}, "pairs: expected two different rows in each, got row 5 twice"),
        ({"partners": X[:50], "pairs": [[60, 50]]}, r"pairs: expected rows in 0\.\.49, got 50"),
        ({"pairs": [[0, 1]] * 300}, "pairs: expected at least 250 rows with a partner .* got 1"),
        ({"pairs": np.zeros((0, 2), int)}, "pairs: expected at least 250 rows with .* got 0"),
        ({"labels": LABELS, "seed": -1}, "seed: expected 0 <= seed"),
    ],
)
def test_what_cannot_be_learned_from_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        learned(X, **options)


def test_too_few_or_odd_rows_say_why():
    with pytest.raises(ValueError, match="embeddings: expected at least 250 rows to learn from"):
        learned(X[:200], LABELS[:200])
    with pytest.raises(ValueError, match="embeddings"):
        learned(np.where(X > 2, np.nan, X), LABELS)
    with pytest.raises(ValueError, match="embeddings"):
        learned(X[:0], LABELS[:0])
    with pytest.raises(TypeError, match="labels: expected integer or string labels"):
        learned(X, LABELS.astype(float))


def test_principal_directions_are_those_of_unit_rows():
    x = drawn(400, 0)[0] * np.geomspace(0.1, 10, 400, dtype=np.float32)[:, None]
    rows = unit(x.astype(np.float64))
    centered = rows - rows.mean(0)
    strongest = np.linalg.svd(centered, full_matrices=False)[2][:5]
    for given in (x, torch.from_numpy(x)):
        projection = csrtrain.principal_projection(given, 5)
        np.testing.assert_allclose(projection.center, rows.mean(0), atol=1e-6)
        turned = np.abs(projection.directions @ strongest.T)
        np.testing.assert_allclose(turned, np.eye(5), atol=1e-4)


def test_whitening_levels_variances():
    x, _ = drawn(400, 0)
    rows = unit(x.astype(np.float64))

    def deviations(whitening: float) -> np.ndarray:
        projection = csrtrain.principal_projection(x, D, whitening=whitening)
        return ((rows - projection.center) @ projection.directions.T).std(0)

    plain = deviations(0)
    assert (np.diff(plain) < 1e-6).all()
    np.testing.assert_allclose(deviations(0.5), plain**0.5, rtol=1e-3)
    np.testing.assert_allclose(deviations(1), 1, rtol=1e-3)


def test_directions_without_variance_are_not_blown_up():
    x = np.zeros((300, 4), np.float32)
    x[:, :2] = drawn(300, 0)[0][:, :2]
    projection = csrtrain.principal_projection(x, 4, whitening=1)
    assert np.isfinite(projection.directions).all()
    np.testing.assert_allclose(np.linalg.norm(projection(x), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "options", "message"),
    [
        (0, {}, "width: expected"),
        (D + 1, {}, "width: expected"),
        (4, {"whitening": -0.1}, r"whitening: expected a number in 0\.\.1"),
        (4, {"whitening": "much"}, "whitening: expected"),
    ],
)
def test_principal_misuse_is_named(width, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        csrtrain.principal_projection(drawn(300, 0)[0], width, **options)
