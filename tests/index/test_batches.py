"""Searches of many queries at once, by codes in rows of bytes: what the lists find, to the bit."""

from __future__ import annotations

import index_codes
import numpy as np
import pytest

from csrkern import InvertedIndex, Rerank, reference, roofline

DIM = 64
CODES = index_codes.skewed(12_000, DIM, 12)
QUERIES = index_codes.skewed(128, DIM, 12, seed=1)


def built(**options):
    """Two segments, one of them with removed codes; each is large enough for batches."""
    index = InvertedIndex.build((CODES[0][:8000], CODES[1][:8000]), dim=DIM, **options)
    index.add((CODES[0][8000:], CODES[1][8000:]))
    index.remove(np.arange(100, 8000, 9))
    return index


def one_by_one(index, top_k, dense=None, **options):
    found = []
    for i in range(len(QUERIES[0])):
        if dense is not None:
            options["rerank"] = Rerank(dense[i : i + 1], shortlist=40)
        found.append(index.search(tuple(side[i : i + 1] for side in QUERIES), top_k, **options))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def search_until_worth(index, top_k=10, **options):
    """Repeat a search until the index has made rows for batches; return it then and before."""
    for _ in range(100):
        found = index.search(QUERIES, top_k, **options)
        if index.stats()["forward_bytes"] > 0:
            break
    # Without vector instructions lists are always faster.
    assert index.stats()["forward_bytes"] > 0 or roofline.isa() == "portable"
    return index.search(QUERIES, top_k, **options), found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "form",
    [
        {"metric": "cosine", "dtype": "float16"},
        {"metric": "cosine", "dtype": "uint8"},
        {"metric": "cosine", "dtype": "uint4"},
        {"metric": "ip", "dtype": "float32"},
    ],
    ids=lambda form: form["dtype"],
)
def test_batches_find_what_lists_find(form, threads):
    index = built(**form, cluster=False)
    values, indices = index.to_numpy()
    cosine = form["metric"] == "cosine"
    queries = index_codes.normalized(QUERIES[0]) if cosine else QUERIES[0], QUERIES[1]
    most = 1 if cosine else np.inf
    want = reference.search(values, indices, DIM, *queries, 10, index.ids, most)
    alone = one_by_one(index, 10, num_threads=1)
    for found in search_until_worth(index, num_threads=threads):
        for got, one, expected in zip(found, alone, want, strict=True):
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(got, one)


def test_batches_take_filters_bars_and_shortlists():
    index = built(cluster=False)
    search_until_worth(index, num_threads=1)
    some = np.arange(len(index)) % 7 != 0
    few = np.arange(0, len(index), 900)
    bar = float(np.median(one_by_one(index, 10)[0][:, 3]))
    for options in (
        {"filter": index.ids[some]},
        {"filter": index.ids[few]},
        {"min_score": bar},
        {"query_k": 3},
    ):
        got = index.search(QUERIES, 10, num_threads=1, **options)
        for one, other in zip(got, one_by_one(index, 10, num_threads=1, **options), strict=True):
            np.testing.assert_array_equal(one, other)
    dense = np.random.default_rng(0).standard_normal((len(QUERIES[0]), DIM), dtype=np.float32)
    got = index.search(QUERIES, 10, rerank=Rerank(dense, shortlist=40), num_threads=1)
    for one, other in zip(got, one_by_one(index, 10, dense), strict=True):
        np.testing.assert_array_equal(one, other)


def test_queries_of_a_batch_may_be_empty_or_strange():
    index = built(cluster=False)
    search_until_worth(index, num_threads=1)
    values, indices = QUERIES[0].copy(), QUERIES[1].copy()
    values[3] = 0
    values[4, 1:] = 0
    values[5] *= 1e30
    values[6] *= 1e-30
    got = index.search((values, indices), 10, num_threads=1)
    for i in range(3, 8):
        want = index.search((values[i : i + 1], indices[i : i + 1]), 10, num_threads=1)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one[i : i + 1], other)
    assert (got[1][3] == -1).all()
