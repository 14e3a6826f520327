"""What holders and the gateway of a sharded index do, without Ray."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scale_shards import DIM, build_sharded, random_codes

from csrkern import FineQuantizer, InvertedIndex, ModelMismatchError, Projection, Refine
from csrtrain.scale import build, shards
from csrtrain.scale.folder import Folder
from csrtrain.scale.merging import Hits, merge_hits
from csrtrain.scale.serving import Found, Gateway, Holder, Lookup, Request, _request_of


def test_shards_are_one_index(tmp_path: Path) -> None:
    documents, queries = random_codes(500), random_codes(40, seed=1)
    folder = build_sharded(tmp_path, documents, [100, 101, 350])
    expected = InvertedIndex.build(documents, dim=DIM).search(queries, 20)
    found = shards.newest(folder)
    assert len(found) == 500
    assert found.number == 4
    holder = Holder(folder, 1)
    for groups in ([(0, 1, 2, 3)], [(0, 2), (1, 3)], [(3,), (2,), (1,), (0,)]):
        parts = [
            holder.search_all([Lookup(found.number, group, *queries, 20)])[0].hits
            for group in groups
        ]
        merged = merge_hits(parts, 20)
        np.testing.assert_array_equal(merged.ids, expected[1])
        np.testing.assert_array_equal(merged.scores, expected[0])


def test_lookups_that_are_gathered_change_nothing(tmp_path: Path) -> None:
    folder = build_sharded(tmp_path, random_codes(200), [50, 120])
    holder = Holder(folder, 1)
    values, indices = random_codes(9, seed=2)
    lookups = [
        Lookup(3, (0, 1, 2), values[:4], indices[:4], 5),
        Lookup(3, (1,), values[4:6], indices[4:6], 7),
        Lookup(3, (0, 1, 2), values[6:, :3], indices[6:, :3], 2),
        Lookup(3, (0, 1, 2), values[4:8], indices[4:8], 11),
        Lookup(2, (0, 1), values[:1], indices[:1], 3),
    ]
    together = holder.search_all(lookups)
    for lookup, found in zip(lookups, together, strict=True):
        (alone,) = holder.search_all([lookup])
        np.testing.assert_array_equal(found.hits.ids, alone.hits.ids)
        np.testing.assert_array_equal(found.hits.scores, alone.hits.scores)
        assert found.hits.ids.shape == (len(lookup.values), lookup.top_k)


class Method:
    """One of a Ray Serve handle's."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class FakeHandle:
    """A holder of Ray Serve's, with faults."""

    def __init__(self, holder: Holder, faults: list[str]) -> None:
        self.holder, self.faults = holder, faults
        self.search, self.prepare = Method(self._search), Method(self._prepare)

    async def _prepare(self, number: int) -> bool:
        return self.holder.open_group(number)

    async def _search(self, lookup: Lookup) -> Found:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "dies":
            raise ConnectionError
        if fault == "hangs":
            await asyncio.sleep(60)
        if fault == "wrong":
            raise ArithmeticError("a bug")
        return self.holder.search_all([lookup])[0]


def ask(folder: Folder, faults: list[list[str]], deadline: float, queries: Any) -> Any:
    async def run() -> Any:
        handles = [FakeHandle(Holder(folder, 1), list(each)) for each in faults]
        return await Gateway(folder, handles, 60.0).search(Request(*queries, 5, deadline))

    return asyncio.run(run())


def test_gateway_asks_again_and_says_what_is_missing(tmp_path: Path) -> None:
    documents, queries = random_codes(300), random_codes(8, seed=3)
    folder = build_sharded(tmp_path, documents, [100, 200])
    expected = InvertedIndex.build(documents, dim=DIM).search(queries, 5)
    whole = ask(folder, [["dies", "dies"], []], 5.0, queries)
    assert whole.missing == ()
    np.testing.assert_array_equal(whole.ids, expected[1])
    slow = ask(folder, [["hangs", "dies"], ["hangs"]], 1.0, queries)  # the second that is asked
    assert slow.missing == ()
    part = ask(folder, [[], ["hangs"] * 2], 0.3, queries)
    names = [shard.name for shard in shards.newest(folder).shards]
    assert part.missing == (names[1],)  # of two groups, the second holds the second shard
    rest = InvertedIndex.build(documents, dim=DIM)
    rest.remove(np.arange(100, 200))
    np.testing.assert_array_equal(part.ids, rest.search(queries, 5)[1])
    began = time.monotonic()
    nothing = ask(folder, [["hangs"] * 2, ["dies"] * 100], 0.2, queries)
    assert time.monotonic() - began < 20  # those that hang would for 60 seconds
    assert set(nothing.missing) == set(names)
    assert (nothing.ids == -1).all()
    with pytest.raises(ArithmeticError, match="a bug"):
        ask(folder, [["wrong"], []], 1.0, queries)
    with pytest.raises(ValueError, match="queries"):
        ask(folder, [[], []], 1.0, (queries[0], queries[1] + DIM))


@pytest.mark.parametrize("harm", ["list", "header", "truncated", "gone"])
def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path, harm: str) -> None:
    documents, queries = random_codes(300), random_codes(8, seed=3)
    folder = build_sharded(tmp_path, documents, [100, 200])
    shard = shards.newest(folder).shards[1]
    place = tmp_path / "index" / shard.name
    postings = max(place.iterdir(), key=lambda file: file.stat().st_size)
    healthy = {file: file.read_bytes() for file in place.iterdir()}
    if harm == "gone":
        shutil.rmtree(place)
    elif harm == "header":
        (place / "index.json").write_bytes(healthy[place / "index.json"][::-1])
    else:
        payload = bytearray(healthy[postings])
        payload[len(payload) // 2] ^= 255
        postings.write_bytes(payload[:100] if harm == "truncated" else payload)
    everything = (queries[0][:, :1].repeat(DIM, 1), np.tile(np.arange(DIM, dtype=np.int32), (8, 1)))
    handles = [FakeHandle(Holder(folder, 1, place, 2), []) for place in range(2)]
    gateway = Gateway(folder, handles, 60.0)

    def search(asked: Any) -> Any:
        return asyncio.run(gateway.search(Request(*asked, 5, 5.0)))

    assert search(everything).missing == (shard.name,)
    rest = InvertedIndex.build(documents, dim=DIM)
    rest.remove(np.arange(100, 200))
    part = search(queries)
    if part.missing:  # the damaged list may be one that these queries do not read
        np.testing.assert_array_equal(part.ids, rest.search(queries, 5)[1])
    place.mkdir(exist_ok=True)
    for file, payload in healthy.items():  # restored: found again, without a restart
        file.with_suffix(".new").write_bytes(payload)
        file.with_suffix(".new").rename(file)
    whole = search(queries)
    assert whole.missing == ()
    expected = InvertedIndex.build(documents, dim=DIM).search(queries, 5)
    np.testing.assert_array_equal(whole.ids, expected[1])


def test_a_holder_serves_generations_in_any_order(tmp_path: Path) -> None:
    documents, queries = random_codes(70), random_codes(4, seed=3)
    folder = build_sharded(tmp_path, documents, list(range(10, 70, 10)))
    holder = Holder(folder, 1)
    for number in (7, 1, 6, 2, 7, 5, 1):
        (found,) = holder.search_all([Lookup(number, tuple(range(number)), *queries, 5)])
        some = tuple(part[: 10 * number] for part in documents)
        expected = InvertedIndex.build(some, dim=DIM).search(queries, 5)
        np.testing.assert_array_equal(found.hits.ids, expected[1])


def test_the_gateway_stays_until_holders_have_the_new_shards(tmp_path: Path) -> None:
    folder = build_sharded(tmp_path, random_codes(50), [])
    InvertedIndex.build(random_codes(10), np.arange(900, 910), dim=DIM).save(tmp_path / "more")
    new = build.add_shard(tmp_path / "more", tmp_path / "index").shards[1]

    async def run() -> list[int]:
        gateway = Gateway(folder, [FakeHandle(Holder(folder, 1), [])], 0.01)
        gateway._current = shards.generation(folder, 1)
        (tmp_path / "index" / new.name).rename(tmp_path / "away")
        gateway._holders = [FakeHandle(Holder(folder, 1), [])]
        seen = []
        for _ in range(2):
            for _ in range(20):
                seen.append((await gateway.search(Request(*random_codes(1), 5, 5.0))).generation)
                await asyncio.sleep(0.01)
            if (tmp_path / "away").is_dir():
                (tmp_path / "away").rename(tmp_path / "index" / new.name)
        return seen

    seen = asyncio.run(run())
    assert set(seen[:20]) == {1}
    assert seen[-1] == 2


def test_gateway_turns_to_a_new_generation(tmp_path: Path) -> None:
    documents, queries = random_codes(100), random_codes(4, seed=3)
    folder = build_sharded(tmp_path, documents, [])

    async def run() -> tuple[int, int]:
        gateway = Gateway(folder, [FakeHandle(Holder(folder, 1), [])], 0.01)
        before = await gateway.search(Request(*queries, 5, 5.0))
        InvertedIndex.build(random_codes(10), np.arange(900, 910), dim=DIM).save(tmp_path / "more")
        build.add_shard(tmp_path / "more", tmp_path / "index")
        for _ in range(500):
            after = await gateway.search(Request(*queries, 5, 5.0))
            if after.generation != before.generation:
                break
            await asyncio.sleep(0.01)
        return before.generation, after.generation

    assert asyncio.run(run()) == (1, 2)


@pytest.mark.parametrize(
    "body",
    [[], {}, {"values": [["1"]], "indices": [[1]]}]
    + [{"values": [[1]], "indices": [[bad]]} for bad in (-1, "x", "1", 0.9, True, 2**70)]
    + [{"values": [[1]], "indices": [[1]], "deadline": bad} for bad in (0, -1, 1e9, "soon")]
    + [{"values": [[1]], "indices": [[1]], "deadline": bad} for bad in (True, float("nan"))]
    + [{"values": [[1]], "indices": [[1]], "top_k": bad} for bad in (0, 1.5, 10**9, True)]
    + [{"values": [[1]], "indices": [[bad]]} for bad in (0.9, True, "1", 2**70, DIM)]
    + [{"values": [[bad]], "indices": [[1]]} for bad in ("1", None, -1, float("nan"), 1e300)]
    + [{"values": [[1, 1]], "indices": [[1, 1]]}, {"values": [[1]], "indices": [[1]], "x": 1}]
    + [{"values": [[1]] * 4097, "indices": [[1]] * 4097}]
    + [{"values": [[1]] * 101, "indices": [[1]] * 101, "top_k": 10_000}],
)
def test_bad_requests_are_refused(body: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        _request_of(body, DIM)


OWN, OTHER = "0123456789abcdef", "fedcba9876543210"


class HttpRequest:
    """What Ray Serve hands to the gateway."""

    def __init__(self, body: bytes | None = None, times: int = 1) -> None:
        self.method = "GET" if body is None else "POST"
        self.body, self.times, self.read = body, times, 0

    async def stream(self) -> Any:
        for _ in range(self.times):
            self.read += 1
            yield self.body


def test_requests_of_another_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    index = InvertedIndex.build(random_codes(50), dim=DIM)
    index.fingerprint = OWN
    index.save(tmp_path / "part")
    build.add_shard(tmp_path / "part", tmp_path / "index")
    folder = Folder.of(tmp_path / "index")
    values, indices = random_codes(2, seed=1)
    body = {"values": values.tolist(), "indices": indices.tolist()}

    async def run() -> None:
        gateway = Gateway(folder, [FakeHandle(Holder(folder, 1), [])], 60.0)
        facts = json.loads((await gateway(HttpRequest())).body)
        assert facts["fingerprint"] == OWN

        async def asked(**told: Any) -> Any:
            return await gateway(HttpRequest(json.dumps(body | told).encode()))

        for told in ({}, {"fingerprint": OWN}, {"fingerprint": None}):
            assert (await asked(**told)).status_code == 200
        refused = await asked(fingerprint=OTHER)
        assert refused.status_code == 409
        assert OWN in json.loads(refused.body)["error"]
        assert (await asked(fingerprint="mine")).status_code == 400
        with pytest.raises(ModelMismatchError):
            await gateway.search(Request(values, indices, 5, 5.0, OTHER))

    asyncio.run(run())


def over_http(folder: Folder, request: HttpRequest, faults: list[str]) -> tuple[int, Any]:
    async def run() -> Any:
        return await Gateway(folder, [FakeHandle(Holder(folder, 1), faults)], 60.0)(request)

    answer = asyncio.run(run())
    return answer.status_code, json.loads(answer.body)


def test_requests_over_http(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("starlette")
    folder = build_sharded(tmp_path, random_codes(100), [50])
    values, indices = random_codes(3, seed=1)
    asked = {"values": values.tolist(), "indices": indices.tolist(), "top_k": 2000}
    good = json.dumps(asked).encode()
    status, answer = over_http(folder, HttpRequest(good), [])
    assert status == 200
    want = InvertedIndex.build(random_codes(100), dim=DIM).search((values, indices), 2000)
    assert answer["ids"] == [[i for i in row if i >= 0] for row in want[1].tolist()]
    for body in (b"", b"{", b"[" * 10**6, b"\xff\xfe\x00", b'{"' + b"x" * 10**6 + b'": 1}'):
        status, answer = over_http(folder, HttpRequest(body), [])
        assert status == 400
        assert 0 < len(answer["error"]) <= 300
    endless = HttpRequest(b" " * 2**20, 10**9)
    status, answer = over_http(folder, endless, [])
    assert (status, endless.read) == (413, 17)
    assert caplog.records == []
    status, answer = over_http(folder, HttpRequest(good), ["wrong"])
    assert status == 500
    assert "log" in answer["error"]
    assert [record.getMessage() for record in caplog.records] == ["ArithmeticError: a bug"]


def test_scores_over_http_are_finite(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    huge = np.full((2, 1), 3e38, np.float32), np.array([[1], [2]], np.int32)
    InvertedIndex.build(huge, dim=DIM, metric="ip", dtype="float32").save(tmp_path / "one")
    build.add_shard(tmp_path / "one", tmp_path / "index")
    body = json.dumps({"values": [[3e38]], "indices": [[1]]}).encode()
    status, answer = over_http(Folder.of(tmp_path / "index"), HttpRequest(body), [])
    assert status == 200
    assert answer["scores"] == [[pytest.approx(3.4028235e38)]]


def test_hits_are_no_wider_than_the_index(tmp_path: Path) -> None:
    documents, queries = random_codes(1500), random_codes(2, seed=3)
    folder = build_sharded(tmp_path, documents, [20, 900])
    want = InvertedIndex.build(documents, dim=DIM).search(queries, 2**40)
    assert want[1].shape == (2, 1500)

    async def run() -> Any:
        gateway = Gateway(folder, [FakeHandle(Holder(folder, 1), []) for _ in range(2)], 60.0)
        return await gateway.search(Request(*queries, 2**40, 5.0))

    hits = asyncio.run(run())
    np.testing.assert_array_equal(hits.ids, want[1])
    np.testing.assert_array_equal(hits.scores, want[0])


def test_hits_of_nothing() -> None:
    assert merge_hits([], 3).ids.shape == (0, 3)
    assert (Hits.none(2, 3).ids == -1).all()


def with_fine_codes(folder: Path, rows: int = 300) -> tuple[InvertedIndex, np.ndarray]:
    """Three shards of embeddings' fine codes; return one index of all of them, and queries."""
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((rows + 9, 12)).astype(np.float32)
    projection = Projection(generator.standard_normal((6, 12)), np.zeros(12))
    codebooks = generator.standard_normal((3, 256, 6)) / 2
    quantizer = FineQuantizer(codebooks, np.zeros(6), projection=projection)
    fine = quantizer.encode(embeddings[:rows])
    for first in range(0, rows, 100):
        ids = np.arange(first, min(first + 100, rows))
        InvertedIndex.build(None, ids, fine=fine[ids]).save(folder / f"{first}")
        build.add_shard(folder / f"{first}", folder / "index")
    return InvertedIndex.build(None, fine=fine), embeddings[rows:]


def test_shards_answer_embeddings_by_fine_codes(tmp_path: Path) -> None:
    whole, queries = with_fine_codes(tmp_path)
    folder = Folder.of(tmp_path / "index")
    answer = ask(folder, [[], []], 5.0, (queries, None))
    scores, ids = whole.search_fine(queries, 5)
    np.testing.assert_array_equal(answer.ids, ids)
    np.testing.assert_array_equal(answer.scores, scores)
    assert answer.complete
    body = json.dumps({"embeddings": queries.tolist(), "top_k": 5}).encode()
    status, told = over_http(folder, HttpRequest(body), [])
    assert status == 200
    assert told["ids"] == ids.tolist()


def test_shards_read_the_cells_that_one_index_reads(tmp_path: Path) -> None:
    whole, queries = with_fine_codes(tmp_path)
    folder = Folder.of(tmp_path / "index")
    ids = whole.search_fine(queries, 5, probes=3)[1]
    assert (ids != whole.search_fine(queries, 5)[1]).any()
    body = json.dumps({"embeddings": queries.tolist(), "top_k": 5, "probes": 3}).encode()
    status, told = over_http(folder, HttpRequest(body), [])
    assert status == 200
    assert told["ids"] == [row[row >= 0].tolist() for row in ids]
    holder = Holder(folder, 1)
    lookups = [Lookup(3, (0, 1, 2), queries, None, 5, probes=probes) for probes in (3, None, 3)]
    for lookup, found in zip(lookups, holder.search_all(lookups), strict=True):
        want = whole.search_fine(queries, 5, probes=lookup.probes)
        np.testing.assert_array_equal(found.hits.ids, want[1])
        np.testing.assert_array_equal(found.hits.scores, want[0])


def with_lists_and_fine_codes(folder: Path) -> tuple[InvertedIndex, Any, np.ndarray]:
    """Three shards of codes with fine codes; return one index of all, and queries of both kinds."""
    documents, generator = random_codes(300), np.random.default_rng(1)
    quantizer = FineQuantizer(generator.standard_normal((2, 256, 12)), np.zeros(12))
    fine = quantizer.encode(generator.standard_normal((300, 12)))
    values, indices = documents
    for first, last in ((0, 5), (5, 180), (180, 300)):
        ids = np.arange(first, last)
        some = values[ids], indices[ids]
        InvertedIndex.build(some, ids, dim=DIM, fine=fine[ids]).save(folder / f"{first}")
        build.add_shard(folder / f"{first}", folder / "index")
    whole = InvertedIndex.build(documents, dim=DIM, fine=fine)
    return whole, random_codes(9, seed=4), generator.standard_normal((9, 12)).astype(np.float32)


@pytest.mark.parametrize(("top_k", "shortlist"), [(5, 40), (30, 7), (5, 2000), (2000, 2000)])
def test_shards_refine_as_one_index(tmp_path: Path, top_k: int, shortlist: int) -> None:
    whole, codes, dense = with_lists_and_fine_codes(tmp_path)
    folder = Folder.of(tmp_path / "index")
    want = whole.search(codes, top_k, rerank=Refine(dense, shortlist))

    async def run(holders: int) -> Any:
        handles = [FakeHandle(Holder(folder, 1), []) for _ in range(holders)]
        request = Request(*codes, top_k, 5.0, None, dense, shortlist)
        return await Gateway(folder, handles, 60.0).search(request)

    for holders in (1, 2, 3):
        answer = asyncio.run(run(holders))
        np.testing.assert_array_equal(answer.ids, want[1])
        np.testing.assert_array_equal(answer.scores, want[0])
    body = {"values": codes[0].tolist(), "indices": codes[1].tolist(), "embeddings": dense.tolist()}
    body |= {"top_k": top_k, "shortlist": shortlist}
    status, told = over_http(folder, HttpRequest(json.dumps(body).encode()), [])
    assert status == 200
    assert told["ids"] == [row[row >= 0].tolist() for row in want[1]]


def test_lookups_with_and_without_embeddings_do_not_mix(tmp_path: Path) -> None:
    _, (values, indices), dense = with_lists_and_fine_codes(tmp_path)
    holder = Holder(Folder.of(tmp_path / "index"), 1)
    lookups = [
        Lookup(3, (0, 1, 2), values[:4], indices[:4], 20, dense[:4]),
        Lookup(3, (0, 1, 2), values[4:], indices[4:], 9),
        Lookup(3, (0, 1, 2), values[2:7], indices[2:7], 3, dense[2:7]),
        Lookup(3, (0, 1, 2), dense, None, 4),
    ]
    for lookup, found in zip(lookups, holder.search_all(lookups), strict=True):
        (alone,) = holder.search_all([lookup])
        for side, other in zip(found.hits, alone.hits, strict=True):
            np.testing.assert_array_equal(side, other)
        assert (found.hits.fine is None) == (lookup.embeddings is None)


def test_a_shortlist_that_is_late_is_named(tmp_path: Path) -> None:
    _, codes, dense = with_lists_and_fine_codes(tmp_path)
    folder = Folder.of(tmp_path / "index")

    async def run() -> Any:
        handles = [FakeHandle(Holder(folder, 1), faults) for faults in ([], ["hangs"] * 2)]
        request = Request(*codes, 5, 0.3, None, dense)
        return await Gateway(folder, handles, 60.0).search(request)

    answer = asyncio.run(run())
    assert len(answer.missing) == 1
    assert (answer.ids < 300).all()


def test_embeddings_need_shards_with_fine_codes(tmp_path: Path) -> None:
    _, queries = with_fine_codes(tmp_path, 100)
    folder = Folder.of(tmp_path / "index")
    with pytest.raises(ValueError, match="12"):
        ask(folder, [[]], 5.0, (queries[:, :5], None))
    with pytest.raises(ValueError, match="finite"):
        ask(folder, [[]], 5.0, (np.full((1, 12), np.nan, np.float32), None))
    for wrong in (
        {"embeddings": queries.tolist(), "values": [[1.0]]},
        {"embeddings": queries.tolist(), "values": [[1.0]], "indices": [[0]]},  # nine and one
        {"embeddings": queries.tolist(), "shortlist": 0},
    ):
        assert over_http(folder, HttpRequest(json.dumps(wrong).encode()), [])[0] == 400
    plain = build_sharded(tmp_path / "plain", random_codes(50), [])
    with pytest.raises(ValueError, match="no fine codes"):
        ask(plain, [[]], 5.0, (queries, None))
    other = FineQuantizer(np.zeros((3, 256, 12)), np.zeros(12))
    fine = other.encode(queries)
    InvertedIndex.build(None, np.arange(500, 509), fine=fine).save(tmp_path / "other")
    with pytest.raises(ValueError, match="quantizer"):
        build.add_shard(tmp_path / "other", tmp_path / "index")
