"""Arrays of values in place of long lists: what the lists find, to the bit."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.sparse as sp

from csrkern import InvertedIndex, reference, similarity_top_k

DIM = 40


def rows(n: int, seed: int) -> np.ndarray:
    """The first latents are in most rows, the last in few; one in ten rows is empty."""
    rng = np.random.default_rng(seed)
    dense = rng.exponential(1, (n, DIM)) * (rng.random((n, DIM)) < np.linspace(0.9, 0.01, DIM))
    dense[rng.random(n) < 0.1] = 0
    return dense.astype(np.float16).astype(np.float32)


CODES, QUERIES = rows(3000, 0), rows(40, 1)


def searched(**options) -> InvertedIndex:
    """Return an index whose searches have paid for the arrays, unless it makes none."""
    index = InvertedIndex.build(sp.csr_array(CODES), metric="ip", window=512, **options)
    for _ in range(20):
        index.search(sp.csr_array(QUERIES))
    return index


def expected(top_k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    codes = CODES if allowed is None else np.where(allowed[:, None], CODES, 0)
    return reference.similarity_top_k(QUERIES, codes, top_k)


def assert_same(got, want) -> None:
    for side, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(side, wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("top_k", [1, 10, 400])
def test_they_find_what_lists_find(dtype, top_k):
    index = searched(dtype=dtype)
    stats = index.stats()
    long_lists = ((CODES > 0).sum(0) > len(CODES) // 4).sum()
    windows = 6 * 512 * np.dtype(dtype).itemsize
    assert stats["dense_bytes"] == long_lists * windows + 4 * stats["latents"]
    assert stats["resident_bytes"] >= stats["bytes"] + stats["dense_bytes"]
    assert_same(index.search(sp.csr_array(QUERIES), top_k), expected(top_k))
    allowed = np.arange(len(CODES)) % 3 > 0
    filtered = index.search(sp.csr_array(QUERIES), top_k, filter=allowed)
    assert_same(filtered, expected(top_k, allowed))


def test_queries_of_a_call_find_what_each_alone_finds():
    index = searched()
    index.add(sp.csr_array(CODES[:700]))  # a segment that has none
    queries = np.concatenate([QUERIES, np.zeros_like(QUERIES[:2]), rows(100, 3)])
    together = index.search(sp.csr_array(queries), 12, num_threads=1)
    for i, query in enumerate(queries):
        alone = index.search(sp.csr_array(query[None]), 12, num_threads=1)
        assert_same([side[i] for side in together], [side[0] for side in alone])
    codes = np.concatenate([CODES, CODES[:700]])
    assert_same(together, reference.similarity_top_k(queries, codes, 12))


@pytest.mark.parametrize("options", [{"dtype": "uint8"}, {"cluster": True}])
def test_forms_that_have_none(options):
    assert searched(**options).stats()["dense_bytes"] == 0


def test_a_single_query_by_several_threads():
    codes = np.tile(CODES, (60, 1))
    query = sp.csr_array(np.ones((1, DIM), np.float32))
    index = InvertedIndex.build(sp.csr_array(codes), metric="ip", cluster=False)
    for _ in range(9):
        got = index.search(query, 5, num_threads=3)
    assert index.stats()["dense_bytes"] > 0
    assert_same(got, reference.similarity_top_k(query.toarray(), codes, 5))


def test_made_while_others_search(tmp_path):
    want = expected(10)
    searched().save(tmp_path / "index")
    index = InvertedIndex.load(tmp_path / "index")
    wrong = []

    def search() -> None:
        for _ in range(20):
            got = index.search(sp.csr_array(QUERIES), num_threads=1)
            wrong.extend(got[i] for i in (0, 1) if not np.array_equal(got[i], want[i]))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert index.stats()["dense_bytes"] > 0


def test_values_of_either_sign():
    rng = np.random.default_rng(2)
    signs = [rng.choice([-1, 1], side.shape).astype(np.float32) for side in (CODES, QUERIES)]
    codes, queries = CODES * signs[0], np.tile(QUERIES * signs[1], (20, 1))
    got = similarity_top_k(sp.csr_array(queries), sp.csr_array(codes), 20)
    assert_same(got, reference.similarity_top_k(queries, codes, 20))


def test_a_damaged_list_is_refused(tmp_path):
    searched().save(tmp_path / "index")
    (postings,) = tmp_path.glob("index/**/*postings*")
    content = bytearray(postings.read_bytes())
    content[0] ^= 1  # of the longest list
    postings.write_bytes(content)
    index = InvertedIndex.load(tmp_path / "index")
    rest = sp.csr_array(np.tile(QUERIES * (np.arange(DIM) > 0), (20, 1)))
    with pytest.raises(ValueError, match="damaged"):
        index.search(rest, num_threads=1)
