"""Values of 8 and 4 bits: rounded once, to the nearest square, whatever happens to the index."""

from __future__ import annotations

import json
import pickle

import index_codes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern import _C, InvertedIndex, reference
from csrkern.index import file as index_file

DIM = 60
squares = pytest.mark.parametrize("dtype", ["uint8", "uint4"])
# Lists in uint4 are never clustered.
squares_clustered = pytest.mark.parametrize(
    ("dtype", "cluster"), [("uint8", False), ("uint8", True), ("uint4", False)]
)
CODES = index_codes.skewed(3000, DIM, 7)
QUERIES = index_codes.skewed(20, DIM, 9, seed=1)


def some(rows):
    return CODES[0][rows], CODES[1][rows]


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_rounded_once(index, codes):
    """Each code is what it was when it came, rounded, and is searched as such."""
    assert index.metric == "ip"
    stored, indices = index.to_numpy()
    want = reference.stored_values(codes[0][index.ids], index.dtype, index.stats()["largest"])
    for got, one in zip(
        index_codes.in_order(stored, indices),
        index_codes.in_order(want, codes[1][index.ids]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, one)
    want = reference.search(stored, indices, index.dim, *QUERIES, 15, index.ids)
    assert_same(index.search(QUERIES, 15), want)


positive = st.floats(0, 2.0**127, width=32, exclude_min=True)


@settings(max_examples=200)
@given(st.lists(positive, min_size=1, max_size=40), st.integers(0, 30), st.sampled_from([8, 4]))
def test_rounding(values, above, bits):
    values = np.array([values], np.float32)
    largest = min(float(values.max()) * 2.0**above, 2.0**127)
    latents = np.arange(values.size)[None]
    index = InvertedIndex.build(
        (values, latents), dim=DIM, metric="ip", dtype=f"uint{bits}", largest=largest
    )
    top = index.stats()["largest"]
    assert largest <= top
    assert top < 2 * largest or top < 2.0**-90
    rows = index.snapshot().segments[0].native.rows()
    assert rows[0].tolist() == [0, values.size]
    np.testing.assert_array_equal(rows[2], reference.stored_values(values[0], f"uint{bits}", top))
    assert (rows[2] > 0).all()
    # The distance between neighboring squares, at most.
    exact = values[0].astype(np.float64)
    steps = 2**bits
    bound = (np.sqrt(exact * top) + top / steps) / steps
    assert (abs(rows[2] - exact) <= np.maximum(bound, 2.0**-125)).all()
    again = InvertedIndex.build(
        (rows[2][None], latents), dim=DIM, metric="ip", dtype=f"uint{bits}", largest=top
    )
    np.testing.assert_array_equal(again.snapshot().segments[0].native.rows()[2], rows[2])


@squares_clustered
def test_merging_does_not_round_again(dtype, cluster):
    first = np.argsort(CODES[0].max(1))[::-1][:200]
    index = InvertedIndex.build(
        some(first), first, dim=DIM, metric="ip", dtype=dtype, cluster=cluster, window=256
    )
    rest = np.setdiff1d(np.arange(3000), first)
    for ids in np.array_split(rest, 40):
        index.add(some(ids), ids)
    assert_rounded_once(index, CODES)
    index.remove(rest[::3])
    index.compact()
    assert_rounded_once(index, CODES)
    # What was rounded for 5 latents a code is rounded no more for 2.
    short = index.truncate(2)
    by_id = np.argsort(index.ids), np.argsort(short.ids)
    for got, whole in zip(short.to_numpy(), index.to_numpy(), strict=True):
        np.testing.assert_array_equal(got[by_id[1]], whole[by_id[0], :2])
    assert short.stats()["largest"] == index.stats()["largest"]


@squares
def test_extreme_values(dtype):
    tiny, large = np.float32(1e-45), np.float32(2.0**127)
    latents = np.arange(3)[None]
    for values in ([tiny, tiny, 0], [large, tiny, 1], [large, large, large]):
        codes = np.array([values], np.float32), latents
        index = InvertedIndex.build(codes, dim=3, metric="ip", dtype=dtype)
        stored = index.to_numpy()
        for weight in (1e-45, 1e-30, 1, 1e38):
            query = np.full((1, 3), weight, np.float32), latents
            with np.errstate(over="ignore"):
                assert_same(index.search(query, 1), reference.search(*stored, 3, *query, 1))
    assert index.to_numpy()[0].tolist() == [[large] * 3]
    with pytest.raises(ValueError, match=r"in row 0 exceeds 2\^127, the largest"):
        InvertedIndex.build((codes[0] * np.float32(1.5), latents), dim=3, metric="ip", dtype=dtype)


@squares
def test_weights_that_the_unit_makes_denormal(dtype):
    index = InvertedIndex.build(CODES, dim=DIM, metric="ip", dtype=dtype, largest=16)
    stored, indices = index.to_numpy()
    unit = 16.0 / {"uint8": 256, "uint4": 16}[dtype] ** 2
    for edge in (2.0**-126 / unit, 2.0**128):
        for weight in edge * np.array([1 - 2.0**-24, 1 - 2.0**-23, 1, 1 + 2.0**-23]):
            if weight >= 2.0**128:
                continue
            query = np.full((4, 9), weight, np.float32), np.sort(QUERIES[1][:4], axis=1)
            with np.errstate(over="ignore"):
                want = reference.search(stored, indices, DIM, *query, 15, index.ids)
            assert_same(index.search(query, 15), want)


def test_negative_zero_is_an_empty_slot():
    codes = np.array([[1, -0.0]], np.float32), np.array([[3, 4]])
    for dtype in ("float16", "uint8", "uint4", "float32"):
        assert InvertedIndex.build(codes, dim=5, metric="ip", dtype=dtype).stats()["postings"] == 1


def test_the_largest_value():
    index = InvertedIndex.build(some(np.arange(0)), dim=DIM, metric="ip", dtype="uint8")
    assert index.stats()["largest"] is None
    index.add((np.zeros((2, 1)), np.zeros((2, 1), int)))
    assert index.stats()["largest"] is None
    index.add((np.array([[5.0]]), np.array([[1]])))
    assert index.stats()["largest"] == 8
    index.add((np.array([[8.0]]), np.array([[1]])))
    before = index.ids
    with pytest.raises(ValueError, match=r"value 9 in row 0 exceeds 2\^3, .*build it with"):
        index.add((np.array([[9.0]]), np.array([[1]])))
    np.testing.assert_array_equal(index.ids, before)
    wide = InvertedIndex.build(some(np.arange(9)), dim=DIM, metric="ip", dtype="uint8", largest=100)
    assert wide.stats()["largest"] == 128
    assert InvertedIndex.build(some([0]), dim=DIM, metric="ip").stats()["largest"] is None
    cosine = InvertedIndex.build(some(np.arange(0)), dim=DIM, dtype="uint8", metric="cosine")
    assert cosine.stats()["largest"] == 1
    cosine.add((np.array([[9.0]]), np.array([[1]])))
    assert cosine.to_numpy()[0].max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "uint8", "largest": 0}, "expected 0 < largest"),
        ({"dtype": "uint8", "largest": -1.5}, "expected 0 < largest"),
        ({"dtype": "uint8", "largest": 1e39}, "expected 0 < largest"),
        ({"dtype": "uint8", "largest": np.nan}, "expected a number"),
        ({"dtype": "uint8", "largest": 2, "metric": "cosine"}, "only with dtype='uint8' or"),
        ({"dtype": "float16", "largest": 2}, "only with dtype='uint8' or 'uint4'"),
        ({"dtype": "uint8", "largest": 1}, r"exceeds 2\^0"),
        ({"dtype": "uint16"}, "dtype: expected one of 'float16', 'uint8', 'uint4', 'float32', got"),
        ({"dtype": "uint4", "largest": 1}, r"exceeds 2\^0"),
        ({"dtype": "uint4", "cluster": True}, "cluster: lists in uint4 are not in order"),
        ({"dtype": "uint4", "window": 65_536}, "window: expected at most 65,472"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        InvertedIndex.build(CODES, **{"dim": DIM, "metric": "ip", **options})


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@squares_clustered
def test_saved_loaded_and_pickled(metric, dtype, cluster, tmp_path):
    index = InvertedIndex.build(CODES, dim=DIM, dtype=dtype, metric=metric, cluster=cluster)
    index.save(tmp_path)
    assert (
        json.loads((tmp_path / "index.json").read_text())["version"]
        == {"uint8": 3, "uint4": 6}[dtype]
    )
    for again in (
        InvertedIndex.load(tmp_path, verify=True),
        InvertedIndex.load(tmp_path, mmap=False),
        pickle.loads(pickle.dumps(index)),
    ):
        assert repr(again) == repr(index)
        # What searches have made in memory is not saved.
        for name, stat in index.stats().items():
            if name not in ("mapped_bytes", "resident_bytes"):
                assert again.stats()[name] == (0 if name == "forward_bytes" else stat)
        assert_same(again.search(QUERIES), index.search(QUERIES))
        again.add(some([5]))
        again.compact()
    InvertedIndex.build(CODES, dim=DIM, metric="ip").save(tmp_path)
    assert json.loads((tmp_path / "index.json").read_text())["version"] == 2


def forge(folder, **changes):
    header = json.loads((folder / "index.json").read_text())
    header["index"].update(changes)
    header["crc32c"] = _C.crc32c(index_file._canonical(header["index"]))
    (folder / "index.json").write_text(json.dumps(header))


@pytest.mark.parametrize("exponent", [None, -95, 128, 2**70, 1.0, "1", True, [], "absent"])
def test_forged_exponents(tmp_path, exponent):
    InvertedIndex.build(CODES, dim=DIM, metric="ip", dtype="uint8").save(tmp_path)
    if exponent is None:
        forge(tmp_path, values="float16")
    else:
        forge(tmp_path, exponent=exponent)
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": "uint16"}, "values in uint16 are not supported; build the index again"),
        ({"values": "float32", "exponent": None}, "damaged"),
        ({"values": "uint4"}, "damaged"),
    ],
)
def test_forged_types(tmp_path, change, message):
    InvertedIndex.build(CODES, dim=DIM, metric="ip", dtype="uint8").save(tmp_path)
    forge(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        InvertedIndex.load(tmp_path)


@pytest.mark.parametrize("documents", [2**21, 2**31, 2**40])
def test_claims_of_very_many_documents(tmp_path, documents):
    nothing = np.zeros((10, 1)), np.zeros((10, 1), int)
    InvertedIndex.build(nothing, dim=DIM, metric="ip").save(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["index"]["segments"][0]["documents"] = documents
    forge(tmp_path, segments=header["index"]["segments"])
    with pytest.raises(ValueError, match="damaged: it claims more documents than"):
        InvertedIndex.load(tmp_path)


def test_very_many_empty_codes(tmp_path):
    n = 2**20 + 1
    InvertedIndex.build((np.zeros((n, 1)), np.zeros((n, 1), int)), dim=3, metric="ip").save(
        tmp_path
    )
    assert len(InvertedIndex.load(tmp_path, verify=True)) == n


@squares
def test_build_streaming(dtype, tmp_path):
    codes = CODES[0] * np.float32(3), CODES[1]
    pieces = [(codes[0][i : i + 700], codes[1][i : i + 700]) for i in range(0, 3000, 700)]
    top = float(codes[0].max())
    for source, largest in ((codes, None), (pieces, top)):
        index = InvertedIndex.build_streaming(
            source, tmp_path, chunk=700, dim=DIM, metric="ip", dtype=dtype, largest=largest
        )
        assert index.stats()["segments"] == 5
        assert_rounded_once(index, codes)
        assert_same(index.search(QUERIES), InvertedIndex.load(tmp_path).search(QUERIES))
    weak = pieces[0][0] / np.float32(64), pieces[0][1]
    with pytest.raises(ValueError, match="build it with largest="):
        InvertedIndex.build_streaming(
            [weak, *pieces], tmp_path, dim=DIM, metric="ip", dtype=dtype, chunk=700
        )
    assert len(InvertedIndex.load(tmp_path, verify=True)) == 3000
    gathered = InvertedIndex.build_streaming(
        [weak, *pieces], tmp_path, dim=DIM, metric="ip", dtype=dtype
    )
    assert len(gathered) == 3700  # one chunk, of which the largest is known


def test_bytes_and_recall():
    codes = index_codes.skewed(20_000, 2048, 32)
    queries = index_codes.skewed(200, 2048, 32, seed=1)
    built = {
        dtype: InvertedIndex.build(codes, dim=2048, metric="ip", dtype=dtype, cluster=False)
        for dtype in ("float32", "uint8", "uint4")
    }
    truth = built["float32"].search(queries)[1]
    for dtype, most_bytes, least in (("uint8", 105, 0.97), ("uint4", 73, 0.75)):
        found = built[dtype].search(queries)[1]
        assert built[dtype].stats()["bytes_per_code"] < most_bytes
        assert np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]) > least
