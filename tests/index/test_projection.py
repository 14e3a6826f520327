"""Projection: what it makes of embeddings, and quantizers behind one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from csrkern import FineQuantizer, InvertedIndex, Projection

P, D = 4, 7


def made(seed: int = 0, p: int = P, d: int = D) -> Projection:
    rng = np.random.default_rng(seed)
    return Projection(rng.standard_normal((p, d)), 0.1 * rng.standard_normal(d))


def rows(n: int = 30, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def plain(projection: Projection, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = (x - projection.center) @ projection.directions.T.astype(np.float64)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


@pytest.mark.parametrize("p", [1, P, D, 2 * D])
def test_it_is_what_numpy_makes(p):
    projection = made(p=p)
    assert (projection.width, projection.dim) == (p, D)
    largest, least = rows() * np.float32(1e14), np.rint(rows() * 9) * np.float32(2.0**-149)
    for x in (rows(), largest, rows() * np.float32(1e-30), least, rows().astype("f8")):
        out = projection(x)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, plain(projection, x), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)


def test_a_row_is_the_same_alone_among_others_and_with_more_threads():
    projection, x = made(), rows(300)
    whole = projection(x, num_threads=1)
    assert projection(x, num_threads=3).tobytes() == whole.tobytes()
    for i in range(0, 300, 37):
        assert projection(x[i : i + 1]).tobytes() == whole[i : i + 1].tobytes()
    assert projection(x.tolist()).tobytes() == whole.tobytes()
    assert projection(x[:0]).shape == (0, P)


def test_the_first_directions_are_a_projection_of_their_own():
    projection, x = made(), rows()
    first = projection.truncate(2)
    assert (first.width, first.dim) == (2, D)
    np.testing.assert_array_equal(first.directions, projection.directions[:2])
    np.testing.assert_allclose(first(x), plain(first, x), atol=1e-5)
    assert projection.truncate(P)(x).tobytes() == projection(x).tobytes()
    for wrong in (0, P + 1):
        with pytest.raises(ValueError, match=f"width: expected 1 <= width <= {P}, got {wrong}"):
            projection.truncate(wrong)


def test_rows_that_all_directions_miss_are_zeros():
    projection = Projection([[0.0, 1.0, 0.0]], np.zeros(3))
    assert projection([[1.0, 0.0, 5.0], [0.0, 0.0, 0.0]]).tolist() == [[0.0], [0.0]]
    of_zeros = made()(np.zeros((1, D)))  # only the center is left
    assert np.isfinite(of_zeros).all()
    assert of_zeros.any()


def test_the_largest_numbers_stay_finite():
    projection = Projection(np.full((2, D), 1e15), np.full(D, -1e15))
    assert projection(np.full((3, D), 1e15)) == pytest.approx(0.5**0.5)
    assert np.isfinite(projection(np.full((3, D), 1e-45))).all()


@pytest.mark.parametrize(
    ("directions", "center", "message"),
    [
        (np.ones((P, D + 1)), np.zeros(D), r"directions: expected \[p, 7\].* got \[4, 8\]"),
        (np.ones((0, D)), np.zeros(D), r"directions: expected \[p, 7\].* got \[0, 7\]"),
        (np.ones((P, 0)), np.zeros(0), r"directions: expected \[p, 0\].* got \[4, 0\]"),
        (np.ones(D), np.zeros(D), "directions: expected 2 axes, got 1"),
        (np.ones((P, D)), np.zeros((1, D)), "center: expected 1 axes, got 2"),
        (np.zeros((P, D)), np.zeros(D), "directions: expected some number that is not 0"),
        (np.full((P, D), np.nan), np.zeros(D), "directions: expected finite numbers up to .*nan"),
        (np.ones((P, D)), np.full(D, np.inf), "center: expected finite numbers up to"),
        (np.full((P, D), 1e16), np.zeros(D), r"directions: expected finite numbers up to 1e\+15"),
    ],
)
def test_arrays_that_do_not_fit_say_why(directions, center, message):
    with pytest.raises(ValueError, match=message):
        Projection(directions, center)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, D + 1)), ValueError, r"embeddings: expected shape \[n, 7\], got \[2, 8\]"),
        (np.ones(D), ValueError, r"embeddings: expected shape \[n, 7\], got \[7\]"),
        (np.full((1, D), np.nan), ValueError, "embeddings: expected finite numbers"),
        (np.full((1, D), 1e16), ValueError, "embeddings: expected finite numbers up to"),
        ([["a"] * D], TypeError, "embeddings: expected real numbers"),
    ],
)
def test_embeddings_that_do_not_fit_say_why(x, error, message):
    with pytest.raises(error, match=message):
        made()(x)


def quantizer_of(projection: Projection | None, **options) -> FineQuantizer:
    rng = np.random.default_rng(2)
    return FineQuantizer(
        rng.standard_normal((4, 256, P // 2)),
        0.1 * rng.standard_normal(P),
        parts=2,
        projection=projection,
        **options,
    )


@pytest.mark.parametrize("lengths", [None, np.geomspace(0.5, 9, 256)])
def test_a_quantizer_behind_one_codes_what_it_makes(lengths):
    projection, x = made(), rows(50)
    behind, before = (
        quantizer_of(projection, lengths=lengths),
        quantizer_of(None, lengths=lengths),
    )
    fine = behind.encode(x)
    assert fine.codes.tolist() == before.encode(projection(x)).codes.tolist()
    assert behind.decode(fine).shape == (50, P)
    for one, other in zip(behind.tables(x), before.tables(projection(x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert (behind.dim, before.dim) == (D, P)
    assert "projection=Projection(dim=7, width=4)" in repr(behind)


def test_codes_of_two_projections_do_not_mix():
    index = InvertedIndex.build(None, fine=quantizer_of(made()).encode(rows()))
    for other in (quantizer_of(made(1)), quantizer_of(None)):
        assert other.fingerprint != index.quantizer.fingerprint
    with pytest.raises(ValueError, match="fine: expected codes of the index's quantizer"):
        index.add(None, fine=quantizer_of(made(1)).encode(rows()))
    same = pickle.loads(pickle.dumps(index.quantizer))
    assert same.fingerprint == quantizer_of(made()).fingerprint
    index.add(None, fine=same.encode(rows()))
    assert len(index) == 60


def test_a_projection_that_does_not_fit_says_why():
    with pytest.raises(ValueError, match="projection: expected one to 4 dimensions, the length of"):
        quantizer_of(made(p=3))
    with pytest.raises(TypeError, match="projection: expected a Projection, got ndarray"):
        quantizer_of(np.ones((P, D)))


def test_a_file_gives_back_the_same(tmp_path):
    projection, x = made(), rows(20)
    path = tmp_path / "projection.npz"
    projection.save(path)
    assert Projection.load(path)(x).tobytes() == projection(x).tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["projection.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_other_files_are_no_projections(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.npz is not a projection"):
        Projection.load(path)
    np.savez(path, directions=np.eye(2))
    with pytest.raises(ValueError, match="center"):
        Projection.load(path)
    np.savez(path, directions=np.eye(3), center=np.zeros(2))
    with pytest.raises(ValueError, match="as wide as the center"):
        Projection.load(path)
    with pytest.raises(FileNotFoundError):
        Projection.load(tmp_path / "missing.npz")
