"""similarity_top_k against the specification, to the id and to the bit of the score."""

from __future__ import annotations

import index_codes
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from digests import ISAS, assert_runs_with
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from csrkern import InvertedIndex, SparseCodes, reference, similarity, similarity_top_k

KINDS = index_codes.KINDS
MOST, LEAST = np.finfo(np.float32).max, np.float32(2.0**-149)


def rows(n: int, dim: int, density: float, seed: int, *, signed: bool = True) -> sp.csr_array:
    """Rows of unlike lengths, one in five of them empty; values come in steps, so scores tie."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-4 if signed else 1, 5, (n, dim)) / 4
    values[rng.random((n, dim)) > density * rng.random((n, 1)) * 2] = 0
    values[rng.random(n) < 0.2] = 0
    return sp.csr_array(values.astype(np.float32))


def assert_exact(queries, codes, top_k, **options):
    """SciPy matrices find what the specification finds in dense arrays."""
    scores, ids = similarity_top_k(sp.csr_array(queries), sp.csr_array(codes), top_k, **options)
    least = {"min_score": options["min_score"]} if "min_score" in options else {}
    want = reference.similarity_top_k(queries, codes, top_k, **least)
    want_scores, want_ids = (side[:, : scores.shape[1]] for side in want)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores.view(np.uint32), want_scores.view(np.uint32))
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    return scores, ids


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("top_k", [1, 10, 1500])
@pytest.mark.parametrize(
    ("n", "m", "dim", "density"), [(40, 3000, 60, 0.2), (1, 40_000, 40, 0.1), (9, 1, 7, 0.9)]
)
def test_equals_reference(n, m, dim, density, top_k, signed):
    queries = rows(n, dim, density, 1, signed=signed).toarray()
    assert_exact(queries, rows(m, dim, density, 2, signed=signed).toarray(), top_k)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_in_every_form(kind):
    queries, codes = KINDS[kind](30, 256, 12), KINDS[kind](3000, 256, 12, seed=1)
    want = InvertedIndex.build(codes, dim=256, metric="ip", dtype="float32").search(queries, 7)
    sides = [
        SparseCodes(torch.from_numpy(values), torch.from_numpy(latents), 256)
        for values, latents in (queries, codes)
    ]
    forms = [
        (sides[0], sides[1], {}),
        (sides[0].to_scipy(), sides[1].to_scipy().tocoo(), {}),
        (sides[0].to_dense().to_sparse(), sides[1].to_scipy().astype(np.float64), {}),
        (queries, codes, {"dim": 256}),
    ]
    for *pair, options in forms:
        for got, wanted in zip(similarity_top_k(*pair, 7, **options), want, strict=True):
            np.testing.assert_array_equal(got, wanted)
    dense = similarity(*sides).numpy()
    np.testing.assert_allclose(np.sort(dense, 1)[:, :-8:-1], np.maximum(want[0], 0), rtol=1e-5)


def test_ties_go_to_the_lower_id():
    codes = np.tile(np.eye(4, dtype=np.float32), (50_000, 1))
    scores, ids = assert_exact(codes[:4], codes, 3)
    np.testing.assert_array_equal(ids, np.arange(4)[:, None] + [[0, 4, 8]])
    assert (scores == 1).all()


def test_scores_that_are_not_positive_are_left_out():
    queries = np.array([[1, 1, 0], [-1, 0, 0], [0, 0, 0]], np.float32)
    codes = np.array([[1, -1, 0], [-2, 1, 5], [0, 0, 3], [2, 1, 0]], np.float32)
    scores, ids = assert_exact(queries, codes, 3)
    np.testing.assert_array_equal(ids, [[3, -1, -1], [1, -1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(scores[:, 0], [3, 2, -np.inf])


@pytest.mark.parametrize("least", [-1.0, 0.5, 0.75, 100])
def test_min_score(least):
    queries, codes = (rows(n, 40, 0.2, n).toarray() for n in (20, 500))
    assert_exact(queries, codes, 5, min_score=least)


def test_long_rows():
    rng = np.random.default_rng(0)
    queries, codes = (rng.standard_normal((n, 5000), np.float32) for n in (3, 200))
    codes[::2, 40:] = 0
    assert_exact(queries, codes, 10)
    assert_exact(np.abs(queries), np.abs(codes), 10)


def test_values_at_the_edges_of_float32():
    values = np.array([LEAST, -LEAST, 1e-38, -1e-38, 1e-30, 1, -1, 9e18, -9e18], np.float32)
    grid = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    assert_exact(grid, grid[::-1], 20)
    # Sums of positive values may overflow; equal infinities are ties.
    large = np.array([[MOST, MOST], [1, MOST], [MOST, 0], [0, 1]], np.float32)
    with np.errstate(over="ignore"):
        _, ids = assert_exact(large[:1], large, 4)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3]])


def test_no_rows():
    scores, ids = similarity_top_k(sp.csr_array((0, 5)), rows(3, 5, 0.5, 0), 4)
    assert scores.shape == ids.shape == (0, 4)
    scores, ids = similarity_top_k(rows(3, 5, 0.5, 0), sp.csr_array((0, 5)), 4)
    assert (ids == -1).all()
    assert scores.shape == (3, 4)


def test_more_than_there_are():
    queries, codes = rows(3, 20, 0.5, 1), rows(5, 20, 0.5, 2)
    assert similarity_top_k(queries, codes, 10**9)[0].shape == (3, 1024)


@pytest.mark.parametrize("n", [1, 100])
def test_the_same_with_every_number_of_threads(n):
    queries, codes = rows(n, 30, 0.4, 1), rows(70_000, 30, 0.4, 2)
    want = similarity_top_k(queries, codes, 10, num_threads=1)
    for threads in (2, 5):
        got = similarity_top_k(queries, codes, 10, num_threads=threads)
        assert [side.tobytes() for side in got] == [side.tobytes() for side in want]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa):
    code = (
        "import numpy as np, test_top_k as t\n"
        "for n, m, top_k in ((20, 3000, 10), (3, 40_000, 300)):\n"
        "    sides = (t.rows(size, 50, 0.3, size).toarray() for size in (n, m))\n"
        "    t.assert_exact(*sides, top_k)"
    )
    assert_runs_with(isa, code)


finite = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-4, 4, width=32),
    st.sampled_from([2.0**-149, 2.0**50, -(2.0**50)]),
)


@settings(deadline=None)
@given(data=st.data(), top_k=st.integers(1, 12), threads=st.integers(1, 3))
def test_any_rows(data, top_k, threads):
    dim = data.draw(st.integers(1, 9))
    n, m = (data.draw(st.integers(1, 20)) for _ in range(2))
    sides = [
        data.draw(
            npst.arrays(np.float32, (rows, dim), elements=finite.map(np.float32), fill=st.just(0))
        )
        for rows in (n, m)
    ]
    assert_exact(*sides, top_k, num_threads=threads)


EYE = sp.csr_array(np.eye(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("queries", "codes", "options", "error", "message"),
    [
        (np.eye(3), EYE, {}, TypeError, "queries: expected SparseCodes, a SciPy sparse matrix"),
        (EYE, np.eye(3), {}, TypeError, "codes: expected SparseCodes, a SciPy sparse matrix"),
        (EYE.astype(complex), EYE, {}, TypeError, "values of queries: expected real numbers"),
        (EYE, sp.csr_array(np.eye(4)), {}, ValueError, "queries: expected codes over 4 latents"),
        (EYE * np.nan, EYE, {}, ValueError, "queries: expected finite values, got nan in row"),
        (EYE, EYE * np.float32(np.inf), {}, ValueError, "codes: expected finite values, got inf"),
        (EYE * -1e30, EYE * 1e30, {}, ValueError, "got up to 1e.30 in queries .* scale them"),
        (([[1]], [[0]]), ([[1]], [[0]]), {}, ValueError, "codes: a .* pair needs dim="),
        (([[1]], [[9]]), EYE, {}, ValueError, r"queries: expected latents in 0\.\.2, got 9"),
        (([[1, 2]], [[0, 0]]), EYE, {}, ValueError, "queries: latent 0 occurs twice in row 0"),
        (EYE, EYE, {"top_k": 0}, ValueError, "top_k: expected 1 <= top_k"),
        (EYE, EYE, {"min_score": np.nan}, ValueError, "min_score: expected a number, got nan"),
        (EYE, EYE, {"num_threads": 0}, ValueError, "num_threads: expected 1"),
    ],
)
def test_errors_name_the_argument(queries, codes, options, error, message):
    with pytest.raises(error, match=message):
        similarity_top_k(queries, codes, **options)
