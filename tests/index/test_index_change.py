"""InvertedIndex.add, remove and compact: like a fresh build, at every moment, for everybody."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
import time

import index_codes
import numpy as np
import pytest

from csrkern import InvertedIndex
from csrkern.index import collection as index_collection
from csrkern.index import file as index_file

DIM = 80
CODES = index_codes.skewed(6000, DIM, 7)
QUERIES = index_codes.skewed(12, DIM, 9, seed=1)


def some(rows):
    return CODES[0][rows], CODES[1][rows]


def assert_like_a_fresh_build(index, **options):
    """To the id and to the bit, for all that a search can be asked."""
    ids = np.sort(index.ids)
    fresh = InvertedIndex.build(some(ids % 6000), ids, dim=DIM, **options)
    assert len(index) == len(fresh) == len(ids)
    for top_k in (1, 20, 500):
        assert_same(index.search(QUERIES, top_k), fresh.search(QUERIES, top_k))
    single = QUERIES[0][:1], QUERIES[1][:1]
    assert_same(index.search(single, 9, num_threads=3), fresh.search(single, 9))
    chosen = ids[:: max(1, len(ids) // 50)]
    for few in (chosen, chosen[:3], ids[::2]):
        assert_same(index.search(QUERIES, 9, filter=few), fresh.search(QUERIES, 9, filter=few))
    assert_same(index.search_above(QUERIES, 1.5), fresh.search_above(QUERIES, 1.5))


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize(
    ("dtype", "limit", "cluster"),
    [
        *itertools.product(["float16"], [200, 131_072], [False, True]),
        *(("uint8", 200, False), ("uint8", 200, True), ("uint4", 200, False)),
    ],
)
def test_any_way_leads_to_the_same_index(metric, cluster, dtype, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(index_collection, "LARGEST_MERGED", limit)
    options = {"metric": metric, "cluster": cluster, "window": 512, "dtype": dtype}
    if dtype.startswith("uint") and metric == "ip":
        options["largest"] = CODES[0].max()
    rng = np.random.default_rng(0)
    index = InvertedIndex.build(some(np.arange(0)), dim=DIM, **options)
    free = set(range(6000))
    for step in range(30):
        ids = rng.choice(sorted(free), int(rng.integers(1, 120)), replace=False)
        index.add(some(ids), ids)
        free -= set(ids.tolist())
        if step % 3 == 1:
            gone = rng.choice(index.ids, len(index) // 4, replace=False)
            index.remove(gone)
            free |= set(gone.tolist())
        if step % 10 == 5:
            index.compact()
            assert index.stats()["segments"] == 1
            assert index.stats()["removed"] == 0
        if step % 10 == 8:
            index.save(tmp_path / "index")
            index = InvertedIndex.load(tmp_path / "index")
        if step % 7 == 0:
            assert_like_a_fresh_build(index, **options)
    assert_like_a_fresh_build(index, **options)
    assert_like_a_fresh_build(pickle.loads(pickle.dumps(index)), **options)
    index.compact()
    assert_like_a_fresh_build(index, **options)
    index.remove(index.ids)
    assert len(index) == 0
    assert (index.search(QUERIES, 3)[1] == -1).all()
    index.compact()
    assert index.stats()["postings"] == 0


@pytest.mark.parametrize("cluster", [False, True])
def test_codes_are_replaced_in_one_instant(cluster):
    rows = np.arange(2000)  # of `CODES`, by id
    index = InvertedIndex.build(some(rows), dim=DIM, cluster=cluster, window=512)
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = rng.choice(len(rows) + 50, 300, replace=False)
        ids = np.unique(np.where(ids >= len(rows), len(rows) + np.arange(300), ids))
        new = rng.integers(2000, 6000, len(ids))
        index.add(some(new), ids, replace=True)
        rows = np.concatenate([rows, np.zeros(max(0, ids.max() + 1 - len(rows)), int)])
        rows[ids] = new
        held = np.sort(index.ids)
        fresh = InvertedIndex.build(some(rows[held]), held, dim=DIM)
        assert_same(index.search(QUERIES, 50), fresh.search(QUERIES, 50))
    everything = np.sort(index.ids)
    index.add(some(everything % 6000), everything, replace=True)
    assert_like_a_fresh_build(index, cluster=cluster, window=512)


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint4"])
def test_codes_are_read_by_id(cluster, dtype, tmp_path):
    ids = np.random.default_rng(0).permutation(9000)[:3000]
    cluster = cluster and dtype != "uint4"
    options = {"dim": DIM, "cluster": cluster, "window": 512, "dtype": dtype}
    index = InvertedIndex.build(some(np.arange(2000)), ids[:2000], **options)
    index.add(some(np.arange(2000, 3000)), ids[2000:])
    index.remove(ids[50:70])
    index.save(tmp_path)
    values, indices = index.to_numpy()
    place = {int(i): at for at, i in enumerate(index.ids)}
    for opened in (index, InvertedIndex.load(tmp_path)):
        # Few are found in the lists, many by way of the forward index, then few as well.
        for asked in (ids[:1], ids[1990:2010][::-1], np.repeat(ids[:3], 2), index.ids, ids[:3]):
            rows = [place[int(i)] for i in asked]
            assert_same(opened.get(asked), (values[rows], indices[rows]))
    assert_same(index.get(int(ids[7])), index.get([int(ids[7])]))
    assert [side.shape for side in index.get([])] == [(0, 7), (0, 7)]
    for wrong in (ids[55], 9001, -1):
        with pytest.raises(ValueError, match=f"ids: {wrong} is not in the index"):
            index.get([ids[0], wrong])
    with pytest.raises(TypeError, match="ids: expected integers"):
        index.get([0.5])
    with pytest.raises(TypeError, match="replace: expected a bool"):
        index.add(some([0]), [1], replace=1)


def test_few_codes_are_read_without_a_copy_of_all():
    index = InvertedIndex.build(some(np.arange(6000)), dim=DIM)
    index.get([3, 5])
    assert index.stats()["forward_bytes"] == 0
    index.get(np.arange(6000))
    assert index.stats()["forward_bytes"] > 0


def test_many_small_additions_stay_few_segments():
    index = InvertedIndex.build(some(np.arange(3000)), dim=DIM)
    for i in range(3000, 3500):
        index.add(some(np.array([i])))
    assert index.stats()["segments"] < 12
    np.testing.assert_array_equal(index.ids, np.arange(3500))
    assert_like_a_fresh_build(index)


def test_new_ids_follow_the_highest_there_ever_was(tmp_path):
    index = InvertedIndex.build(some(np.arange(5)), [3, 90, 7, 1, 8], dim=DIM)
    index.remove([90])
    index.save(tmp_path)
    index = InvertedIndex.load(tmp_path)
    index.add(some(np.arange(2)))
    assert index.ids.tolist() == [3, 7, 1, 8, 91, 92]
    index.add(some(np.arange(1)), [90])
    assert 90 in index.ids


def test_what_is_refused_changes_nothing():
    index = InvertedIndex.build(some(np.arange(10)), dim=DIM)
    index.remove([4])
    want = index.search(QUERIES, 10)
    for message, change in {
        "ids: 7 is in the index already; add with replace=True": lambda: index.add(
            some(np.arange(2)), [11, 7]
        ),
        "ids: expected distinct": lambda: index.add(some(np.arange(2)), [11, 11]),
        "distinct ids; one occurs": lambda: index.add(some(np.arange(2)), [7, 7], replace=True),
        "ids: expected those to replace": lambda: index.add(some(np.arange(2)), replace=True),
        "got 81": lambda: index.add(index_codes_matrix(81), [3], replace=True),
        "one id for each of 2": lambda: index.add(some(np.arange(2)), [11]),
        "ids: 4 is not in the index": lambda: index.remove([3, 4]),
        "ids: 99 is not in the index": lambda: index.remove([99]),
        "distinct ids; one occurs twice": lambda: index.remove([3, 3]),
        "over 80 latents, got 81": lambda: index.add(
            index_codes_matrix(81),
        ),
        "norms: expected each code without norms": lambda: index.add(
            some(np.arange(1)), norms=[1.0]
        ),
        "not negative": lambda: index.add((-CODES[0][:1], CODES[1][:1])),
    }.items():
        with pytest.raises(ValueError, match=message):
            change()
    with pytest.raises(TypeError, match="expected integers"):
        index.remove([1.5])
    assert_same(index.search(QUERIES, 10), want)
    assert len(index) == 9
    index.remove([])
    index.add(some(np.arange(0)))
    assert len(index) == 9


def index_codes_matrix(dim):
    import scipy.sparse

    return scipy.sparse.csr_array(([1.0], [0], [0, 1]), shape=(1, dim))


def test_masks_follow_the_order_of_ids():
    index = InvertedIndex.build(
        some(np.arange(400)), dim=DIM, metric="ip", cluster=True, window=128
    )
    index.add(some(np.arange(400, 500)))
    index.remove(np.arange(0, 500, 7))
    mask = np.random.default_rng(0).random(len(index)) < 0.3
    by_mask = index.search(QUERIES, 20, filter=mask)
    assert_same(by_mask, index.search(QUERIES, 20, filter=index.ids[mask]))
    assert np.isin(by_mask[1], [*index.ids[mask], -1]).all()
    values, indices = index.to_numpy()
    np.testing.assert_array_equal(values, CODES[0][index.ids].astype(np.float16))
    np.testing.assert_array_equal(indices, CODES[1][index.ids])


def test_saving_again_writes_only_what_is_new(tmp_path):
    index = InvertedIndex.build(some(np.arange(5000)), dim=DIM)
    index.save(tmp_path)
    large = max(tmp_path.glob("postings-*"), key=lambda f: f.stat().st_size)
    before = large.stat().st_mtime_ns
    index.add(some(np.arange(5000, 5010)))
    index.remove([17])
    index.save(tmp_path)
    assert large.stat().st_mtime_ns == before
    assert_like_a_fresh_build(InvertedIndex.load(tmp_path, verify=True))
    again = InvertedIndex.load(tmp_path)
    again.compact()
    again.save(tmp_path)
    assert not large.exists()
    assert_like_a_fresh_build(InvertedIndex.load(tmp_path, verify=True))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("write", ["save", "build_streaming"])
def test_writers_wait_for_their_turn(write, tmp_path):
    index = InvertedIndex.build(some(np.arange(10)), dim=DIM)
    write = {
        "save": lambda: index.save(tmp_path),
        "build_streaming": lambda: InvertedIndex.build_streaming(CODES, tmp_path, dim=DIM),
    }[write]
    waiting = threading.Thread(target=write)
    with index_file.SAVING:
        waiting.start()
        waiting.join(0.2)
        index.add(some(np.arange(10, 6000)))  # an older state may not be written after it
        assert waiting.is_alive()
        assert list(tmp_path.iterdir()) == []
    waiting.join()
    assert len(InvertedIndex.load(tmp_path, verify=True)) == 6000


def test_kill_while_changing_and_saving(tmp_path):
    """Each save holds the ids 0..n-1 without multiples of 10 below some m: never half a change."""
    folder = tmp_path / "index"
    InvertedIndex.build(some(np.arange(100)), dim=DIM).save(folder)
    np.savez(tmp_path / "codes.npz", values=CODES[0], latents=CODES[1])
    script = f"""
import csrkern, numpy as np
codes = np.load({str(tmp_path / "codes.npz")!r})
values, latents = codes["values"], codes["latents"]
index = csrkern.InvertedIndex.load({str(folder)!r})
print("ready", flush=True)
while True:
    n = int(index.ids.max()) + 1
    rows = np.arange(n, n + 50) % 6000
    index.add((values[rows], latents[rows]), np.arange(n, n + 50))
    index.remove(np.arange(n, n + 50, 10))
    if n % 200 == 0:
        index.compact()
    index.save({str(folder)!r})
"""
    for delay in np.random.default_rng(0).uniform(0, 0.1, 10):
        saver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert saver.stdout.readline() == b"ready\n"
        time.sleep(delay)
        saver.kill()
        saver.communicate()
        index = InvertedIndex.load(folder, verify=True)
        n = int(index.ids.max()) + 1
        assert n % 50 == 0
        want = [i for i in range(n) if i < 100 or i % 10]
        np.testing.assert_array_equal(np.sort(index.ids), want)
        assert_like_a_fresh_build(index)


def test_searches_beside_changes_see_one_state(tmp_path):
    """Every change adds a pair of equal codes, or removes one: a search finds both or none."""
    pair = np.array([5, 5])
    index = InvertedIndex.build(some(np.arange(300)), dim=DIM, window=64)
    query = CODES[0][5:6], CODES[1][5:6]
    done, wrong = threading.Event(), []

    def search(threads):
        while not done.is_set():
            found = index.search(query, 40, num_threads=threads)[1][0]
            high = found[found >= 1000] // 2
            numbers, counts = np.unique(high, return_counts=True)
            if (counts != 2).any() or len(numbers) > 6:
                wrong.append(found)

    def save():
        while not done.is_set():
            index.save(tmp_path)
            high = InvertedIndex.load(tmp_path).ids
            if (np.unique(high[high >= 1000] // 2, return_counts=True)[1] != 2).any():
                wrong.append(high)

    workers = [threading.Thread(target=search, args=(1 + i % 2,)) for i in range(6)]
    workers.append(threading.Thread(target=save))
    for worker in workers:
        worker.start()
    try:
        for i in range(500, 700):
            index.add(some(pair), [2 * i, 2 * i + 1])
            if i >= 505:
                index.remove([2 * (i - 5), 2 * (i - 5) + 1])
            if i % 40 == 0:
                index.compact()
    finally:
        done.set()
        for worker in workers:
            worker.join()
    assert wrong == []
    assert len(index) == 310


def test_pickle_keeps_everything():
    index = InvertedIndex.build(
        some(np.arange(900)), norms=np.arange(900) + 1.0, dim=DIM, cluster=True, metric="cosine"
    )
    index.remove([3])
    again = pickle.loads(pickle.dumps(index))
    assert repr(again) == repr(index)
    assert again.stats() == index.stats()
    assert_same(again.search(QUERIES, 20), index.search(QUERIES, 20))
    again.add(some(np.arange(1)), norms=[2.0])
    assert again.ids[-1] == 900


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_an_index_of_its_own(tmp_path):
    """Forked while other threads search, as worker processes of a server are."""
    script = f"""
import os, sys, threading
import numpy as np
from csrkern import InvertedIndex
rng = np.random.default_rng(0)
codes = rng.random((3000, 5)) + 0.1, np.argsort(rng.random((3000, 30)), 1)[:, :5]
index = InvertedIndex.build(codes, dim=30)
want = index.search(codes, 3)[1]
done = threading.Event()
def keep_searching():
    while not done.is_set():
        index.search(codes, 3, num_threads=3)
for _ in range(3):
    threading.Thread(target=keep_searching).start()
for child in range(5):
    pid = os.fork()
    if pid == 0:
        index.add((codes[0][:child], codes[1][:child]))
        index.remove(np.arange(3000))
        index.compact(num_threads=3)
        index.save({str(tmp_path)!r} + f"/{{child}}")
        loaded = InvertedIndex.load({str(tmp_path)!r} + f"/{{child}}")
        loaded.search(codes, 3, num_threads=3)
        os._exit(0 if len(index) == child else 1)
    assert os.waitpid(pid, 0)[1] == 0
done.set()
assert len(index) == 3000
assert (index.search(codes, 3)[1] == want).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(tmp_path):
    """Forked while another thread changes an index, saves one, and measures a plan."""
    script = f"""
import os, signal, sys, threading
import numpy as np
from csrkern import InvertedIndex
from csrkern.index import file
codes = np.eye(40, 30) + 0.1, np.argsort(np.eye(40, 30) * 9 + np.arange(30), 1)
index = InvertedIndex.build(codes, dim=30)
held, done = threading.Event(), threading.Event()
def hold():
    with index._changing, index._plans._measuring, file.SAVING:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    index.search(codes, 3, mode="fast")
    index.add(codes)
    index.save({str(tmp_path)!r})
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert thread.is_alive() and file.SAVING._lock.locked()
done.set()
thread.join()
index.add(codes)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_ids_reach_the_largest_integer():
    last = 2**63 - 1
    index = InvertedIndex.build(some(np.arange(1)), [last - 2], dim=DIM)
    index.add(some(np.arange(2)))
    assert index.ids.tolist() == [last - 2, last - 1, last]


def test_indexes_of_several_threads_may_share_a_directory(tmp_path):
    indexes = [InvertedIndex.build(some(np.arange(50)), dim=DIM) for _ in range(3)]

    def change_and_save(index):
        for i in range(10):
            index.add(some(np.arange(i, i + 5)))
            index.save(tmp_path / "index")

    threads = [threading.Thread(target=change_and_save, args=(index,)) for index in indexes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(InvertedIndex.load(tmp_path / "index", verify=True)) == 100


def test_a_narrow_index_is_searched_by_dense_queries():
    index = InvertedIndex.build(some(np.arange(100)), dim=DIM)  # fewer latents than the default
    _, ids = index.search_dense(np.eye(DIM, dtype=np.float32)[:3], 5)
    assert ids.shape == (3, 5)
