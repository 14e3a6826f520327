"""Files of big-ann-benchmarks' sparse track, there and back, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from csrkern import InvertedIndex, similarity_top_k
from csrkern.integrations import big_ann


def rows(n: int, dim: int = 300, seed: int = 0) -> sp.csr_array:
    """Rows of 0 to 40 entries."""
    rng = np.random.default_rng(seed)
    matrix = sp.random(n, dim, 0.1, "csr", np.float32, rng=rng)
    matrix.data[rng.random(len(matrix.data)) < 0.1] = 0
    return sp.csr_array(matrix)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csr"


def test_the_bytes_of_rows(path):
    big_ann.write(sp.csr_array(np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3]], np.float32)), path)
    want = struct.pack("<3q4q3i3f", 3, 3, 3, 0, 1, 1, 3, 1, 0, 2, 2, 1, 3)
    assert path.read_bytes() == want


def test_the_bytes_of_a_truth(path):
    big_ann.write_truth([[2, 1], [4, -np.inf]], [[5, 6], [7, -1]], path)
    assert path.read_bytes() == struct.pack("<2I4i4f", 2, 2, 5, 6, 7, -1, 2, 1, 4, -np.inf)


@pytest.mark.parametrize("n", [0, 1, 500])
def test_rows_come_back_mapped(path, n):
    given = rows(n)
    big_ann.write(given, path)
    found = big_ann.read(path)
    given.eliminate_zeros()
    np.testing.assert_array_equal(found.toarray(), given.toarray())
    assert (found.shape, found.data.dtype) == (given.shape, np.float32)
    assert n == 0 or not found.data.flags.writeable


def test_any_form_is_written(path):
    pair = np.array([[3, 1, 0], [2, 0, 0]], np.float32), np.array([[7, 2, 0], [9, 0, 0]])
    big_ann.write(pair, path, dim=10)
    found = big_ann.read(path)
    np.testing.assert_array_equal(found.indices, [2, 7, 9])
    np.testing.assert_array_equal(found.data, [1, 3, 2])


def test_an_index_of_a_file_finds_its_truth(tmp_path):
    base, queries = rows(2000), rows(30, seed=1)
    big_ann.write(base, tmp_path / "base.csr")
    big_ann.write(queries, tmp_path / "queries.csr")
    big_ann.write_truth(*similarity_top_k(queries, base, 10), tmp_path / "truth.gt")
    index = InvertedIndex.build(big_ann.read(tmp_path / "base.csr"), metric="ip", dtype="float32")
    scores, ids = index.search(big_ann.read(tmp_path / "queries.csr"))
    want_scores, want_ids = big_ann.read_truth(tmp_path / "truth.gt")
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores, want_scores)


def test_a_file_that_is_not_there(path):
    for read in (big_ann.read, big_ann.read_truth):
        with pytest.raises(FileNotFoundError, match=r"no file at .*rows\.csr"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the header of a .csr file, got 0 bytes"),
        (b"12345", "expected the header of a .csr file, got 5 bytes"),
        (struct.pack("<4q", 1, 3, 2, 0), r"expected a .csr file of 56 bytes.*got 32.*cut short"),
        (struct.pack("<3q", -1, 3, 0), "the -1 rows, 3 columns and 0 entries in its header"),
        (struct.pack("<4q", 0, 2**31, 0, 0), "2,147,483,648 columns"),
        (struct.pack("<5qif", 1, 3, 1, 0, 2, 0, 1), "expected 2 row starts from 0 that never"),
        (struct.pack("<5qif", 1, 3, 1, 0, 1, 3, 1), r"expected columns in 0\.\.2, got 3"),
        (struct.pack("<5qif", 1, 3, 1, 0, 1, -1, 1), r"expected columns in 0\.\.2, got -1"),
    ],
)
def test_rows_that_are_damaged(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.csr.*{message}"):
        big_ann.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"123", "expected the header of a ground truth, got 3 bytes"),
        (struct.pack("<2I2i", 1, 2, 0, 0), "24 bytes for 1 queries with 2 hits each, got 16"),
    ],
)
def test_a_truth_that_is_damaged(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        big_ann.read_truth(path)


def test_what_is_not_written(path):
    with pytest.raises(TypeError, match="codes: expected SparseCodes, a SciPy"):
        big_ann.write(np.eye(3), path)
    with pytest.raises(ValueError, match=r"codes: expected latents in 0\.\.2, got 5"):
        big_ann.write(([[1.0]], np.array([[5]], np.int32)), path, dim=3)
    with pytest.raises(ValueError, match=r"ids: expected scores and ids of one shape"):
        big_ann.write_truth([[1.0]], [[1, 2]], path)
    with pytest.raises(ValueError, match="ids: expected integers below 2\\^31, got 2147483648"):
        big_ann.write_truth([[1.0]], [[2**31]], path)
    assert not path.exists()
