"""fuse: what several searches find, in one ranking."""

from __future__ import annotations

import numpy as np
import pytest

from csrkern import fuse

WORDS = np.array([[9.0, 4.0, 1.0]]), np.array([[3, 8, 2]])
CODES = np.array([[0.8, 0.7]]), np.array([[8, 5]])


def plainly(results, weights, method):
    """Return the ranking of each query, with gains added up document by document."""
    rankings = []
    for row in range(len(results[0][1])):
        totals: dict[int, float] = {}
        for (scores, ids), weight in zip(results, weights, strict=True):
            hits = [(s, i) for s, i in zip(scores[row], ids[row], strict=True) if i >= 0]
            for rank, (score, document) in enumerate(hits, 1):
                if method == "ranks":
                    gain = 1 / (60 + rank)
                else:
                    least, best = min(hits)[0], max(hits)[0]
                    gain = (score - least) / (best - least) if best > least else 1.0
                totals[document] = totals.get(document, 0.0) + weight * gain
        rounded = {i: float(np.float32(total)) for i, total in totals.items()}
        rankings.append(sorted(rounded.items(), key=lambda pair: (-pair[1], pair[0])))
    return rankings


def test_ranks_and_scores_by_hand():
    scores, ids = fuse([WORDS, CODES], 10)
    assert ids[0, :4].tolist() == [8, 3, 5, 2]
    np.testing.assert_allclose(scores[0, :4], [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    assert (ids[0, 4:] == -1).all()
    assert np.isneginf(scores[0, 4:]).all()
    scores, ids = fuse([WORDS, CODES], 3, weights=[1, 0.5], method="scores")
    assert ids.tolist() == [[3, 8, 2]]  # 2 and 5 have nothing: the lower id
    np.testing.assert_allclose(scores, [[1, 3 / 8 + 0.5, 0]], rtol=1e-6)


@pytest.mark.parametrize("method", ["ranks", "scores"])
@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_a_loop_says(method, seed):
    rng = np.random.default_rng(seed)
    n, results = int(rng.integers(1, 5)), []
    for _ in range(int(rng.integers(1, 4))):
        k = int(rng.integers(0, 9))
        ids = np.stack([rng.permutation(12)[:k] for _ in range(n)]) if k else np.zeros((n, 0), int)
        scores = -np.sort(-rng.integers(0, 4, (n, k)).astype(np.float32), axis=1)
        missing = np.arange(k) >= rng.integers(0, k + 1, n)[:, None]
        results.append((np.where(missing, -np.inf, scores), np.where(missing, -1, ids)))
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], len(results)).tolist()
    scores, ids = fuse(results, 40, weights=weights, method=method)
    for row, ranking in enumerate(plainly(results, weights, method)):
        found = int((ids[row] >= 0).sum())
        assert ids[row, :found].tolist() == [document for document, _ in ranking]
        assert scores[row, :found].tolist() == [score for _, score in ranking]
        few, some = fuse(results, 2, weights=weights, method=method)
        np.testing.assert_array_equal(some[row], ids[row, :2])
        np.testing.assert_array_equal(few[row], scores[row, :2])


def test_one_result_keeps_its_order():
    scores, ids = fuse([WORDS], 3)
    np.testing.assert_array_equal(ids, WORDS[1])
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([], {}, "results: expected at least one"),
        ([WORDS, (np.zeros((2, 1)), np.zeros((2, 1), int))], {}, r"results\[1\]: expected 1 quer"),
        ([(np.zeros((1, 2)), np.zeros((1, 3), int))], {}, r"results\[0\]: expected scores and ids"),
        ([(np.zeros((1, 2)), np.zeros((1, 2)))], {}, r"results\[0\]: expected integers"),
        ([(np.zeros((1, 2)), np.array([[4, 4]]))], {}, "got 4 twice"),
        ([(np.array([[np.nan]]), np.array([[4]]))], {}, "expected finite scores"),
        ([(np.array([[np.inf]]), np.array([[4]]))], {}, "expected finite scores"),
        ([[1, 2]], {}, r"results\[0\]: expected \(scores, ids\)"),
        ([WORDS], {"weights": [1, 2]}, "weights: expected one for each of 1"),
        ([WORDS], {"weights": [-1]}, "weights: expected"),
        ([WORDS], {"method": "sum"}, "method: expected"),
        ([WORDS], {"top_k": 0}, "top_k: expected"),
    ],
)
def test_misuse_is_named(results, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fuse(results, **options)
