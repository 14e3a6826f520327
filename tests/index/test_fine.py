"""Fine codes: what they decode to, what an index scores by them, and how they travel."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from digests import ISAS, assert_same_digests

from csrkern import FineCodes, FineQuantizer, InvertedIndex, Refine, reference
from csrkern.storage import crc32c

D, H, N, M = 24, 64, 500, 4


@pytest.fixture(params=["whole", "in parts", "in parts, cosine"])
def quantizer(request) -> FineQuantizer:
    rng = np.random.default_rng(0)
    parts = 1 if request.param == "whole" else 2
    scale = np.tile(0.5 ** np.arange(M // parts), parts)
    codebooks = rng.standard_normal((M, 256, D // parts)) * scale[:, None, None]
    lengths = np.geomspace(0.5, 20, 256) if request.param != "in parts" else None
    return FineQuantizer(codebooks, 0.1 * rng.standard_normal(D), parts=parts, lengths=lengths)


def codes_of(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.random((n, 4), np.float32), 1)[:, ::-1] + np.float32(0.1)
    indices = np.argsort(rng.random((n, H)), 1)[:, :4].astype(np.int32)
    return np.ascontiguousarray(values), indices


def rows_of(n: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def built(quantizer: FineQuantizer, **options) -> tuple[InvertedIndex, FineCodes]:
    fine = quantizer.encode(rows_of(N))
    return InvertedIndex.build(codes_of(N), dim=H, fine=fine, **options), fine


def found(index: InvertedIndex, **options) -> tuple[np.ndarray, np.ndarray]:
    queries = rows_of(7, seed=5)
    return index.search(codes_of(7, seed=6), 12, rerank=Refine(queries, 60), **options)


def test_a_wide_beam_finds_the_nearest_sum_of_words():
    rng = np.random.default_rng(3)
    codebooks = rng.standard_normal((2, 256, 5))
    quantizer = FineQuantizer(codebooks, rng.standard_normal(5))
    rows = rng.standard_normal((20, 5)).astype(np.float32)
    sums = (codebooks[0][:, None] + codebooks[1]).reshape(-1, 5) + quantizer.mean
    nearest = np.square(rows[:, None] - sums).sum(2).min(1)
    decoded = quantizer.encode(rows, beam=256).decode()
    assert np.square(rows - decoded).sum(1) == pytest.approx(nearest, rel=1e-4)
    greedy = np.square(rows - quantizer.encode(rows, beam=1).decode()).sum(1)
    assert (greedy >= nearest - 1e-5).all()
    assert (greedy > nearest + 1e-3).any()


def test_decoded_words_add_up(quantizer):
    fine = quantizer.encode(rows_of(9))
    each = M // quantizer.parts
    for code, row in zip(fine.codes, fine.decode(), strict=True):
        parts = [
            sum(quantizer.codebooks[b][code[b]] for b in range(p * each, (p + 1) * each))
            for p in range(quantizer.parts)
        ]
        assert row == pytest.approx(np.concatenate(parts) + quantizer.mean, abs=1e-5)


def test_scores_are_those_of_the_decoded_rows(quantizer):
    index, fine = built(quantizer)
    decoded = fine.decode().astype(np.float64)
    queries = rows_of(7, seed=5)
    expected = queries @ decoded.T
    if quantizer.lengths is not None:
        # The norm of a row is stored in steps of 1.5%.
        expected /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(decoded, axis=1)
    scores, ids = found(index)
    shortlist = index.search(codes_of(7, seed=6), 60)[1]
    for i in range(7):
        own = ids[i][ids[i] >= 0]
        tolerance = 0.01 * np.abs(expected[i]).max() if quantizer.lengths is not None else 1e-4
        assert scores[i][: len(own)] == pytest.approx(expected[i][own], abs=tolerance)
        assert set(own) <= set(shortlist[i])
        # No document of the shortlist that was left out scores better than that rounding allows.
        left = np.setdiff1d(shortlist[i][shortlist[i] >= 0], own)
        assert (expected[i][left] <= scores[i][len(own) - 1] + 2 * tolerance).all()


ADVERSARIAL = np.array([0.0, -0.0, 1e-45, -1e-38, 1e15, -1e15, 1.0, 3e-8], np.float32)


def test_codes_and_scores_are_those_of_the_specification(quantizer):
    """To the bit, also of rows of zeros, denormals and the largest numbers."""
    rng = np.random.default_rng(4)
    rows = np.concatenate([rows_of(30), rng.choice(ADVERSARIAL, (30, D))])
    books, parts = quantizer.codebooks, quantizer.parts
    for beam in (1, 3, 256):
        codes = quantizer.encode(rows, beam=beam).codes[:, :M]
        twin = reference.fine_encode(rows - quantizer.mean, books, parts, beam)
        assert codes.tolist() == twin.tolist()
    queries = np.concatenate([rows_of(4, seed=5), rng.choice(ADVERSARIAL[:4], (3, D))])
    fine = quantizer.encode(rows)
    index = InvertedIndex.build(codes_of(60), dim=H, fine=fine)
    everything = np.ones((7, H), np.float32), np.tile(np.arange(H), (7, 1))
    scores, ids = index.search(everything, 60, rerank=Refine(queries, 60))
    unit = queries
    if quantizer.lengths is not None:
        norms = np.sqrt(np.square(queries, dtype=np.float64).sum(1, keepdims=True))
        unit = (queries / np.where(norms > 0, norms, 1)).astype(np.float32)
    twin = reference.fine_scores(fine.codes, unit, books, quantizer.mean, parts, quantizer.scales)
    assert (ids >= 0).all()
    assert scores.tobytes() == np.take_along_axis(twin, ids, 1).tobytes()
    for i in range(7):
        assert ids[i].tolist() == np.lexsort((np.arange(60), -twin[i])).tolist()


@pytest.mark.parametrize("size", [1e-34, 1e-22, 1.0, 1e13])
def test_the_nearest_length_is_stored(size):
    """Float32 holds no square of the least of these."""
    rng = np.random.default_rng(7)
    lengths = size * np.geomspace(0.5, 20, 256)
    words = size * rng.standard_normal((M, 256, D))
    quantizer = FineQuantizer(words, np.zeros(D), lengths=lengths)
    with np.errstate(all="raise"):
        fine = quantizer.encode(words[0])
    norms = np.linalg.norm(fine.decode().astype(np.float64), axis=1)
    off = np.abs(np.log(norms[:, None] / quantizer.lengths.astype(np.float64)))
    assert fine.codes[:, M].tolist() == off.argmin(1).tolist()


def test_of_equal_words_the_lower_is_taken():
    codebooks = np.tile(np.random.default_rng(0).standard_normal((2, 4, D)), (1, 64, 1))
    codes = FineQuantizer(codebooks, np.zeros(D)).encode(rows_of(20), beam=4).codes
    assert codes.max() < 4


def test_results_do_not_depend_on_threads_batches_or_the_way_there(quantizer, tmp_path):
    index, fine = built(quantizer, cluster=True)
    expected = found(index)
    plain, _ = built(quantizer, cluster=False, window=64)
    values, indices = codes_of(N)
    grown = InvertedIndex.build((values[:200], indices[:200]), dim=H, fine=fine[:200])
    grown.add((values[200:], indices[200:]), fine=fine[200:])
    index.save(tmp_path / "index")
    streamed = InvertedIndex.build_streaming(
        iter([(values[:300], indices[:300]), (values[300:], indices[300:])]),
        tmp_path / "streamed",
        dim=H,
        fine=fine,
    )
    compacted = InvertedIndex.load(tmp_path / "streamed")
    compacted.compact()
    for other in (
        plain,
        grown,
        streamed,
        compacted,
        InvertedIndex.load(tmp_path / "index"),
        InvertedIndex.load(tmp_path / "index", mmap=False, verify=True),
        pickle.loads(pickle.dumps(index)),
    ):
        assert other.quantizer.fingerprint == quantizer.fingerprint
        for threads in (1, 3):
            scores, ids = found(other, num_threads=threads)
            assert ids.tolist() == expected[1].tolist()
            assert scores.tobytes() == expected[0].tobytes()
    queries, codes = rows_of(7, seed=5), codes_of(7, seed=6)
    for i in range(7):
        one = codes[0][i : i + 1], codes[1][i : i + 1]
        scores, ids = index.search(one, 12, rerank=Refine(queries[i : i + 1], 60))
        assert scores.tobytes() == expected[0][i].tobytes()
        assert ids[0].tolist() == expected[1][i].tolist()


def test_many_queries_are_searched_in_pieces(quantizer, monkeypatch):
    index, _ = built(quantizer)
    mask = np.random.default_rng(0).random((7, N)) < 0.5
    whole = found(index), found(index, filter=mask)
    monkeypatch.setattr("csrkern.index.rerank._TABLES_BYTES", 3 * M * 1024)
    pieces = found(index), found(index, filter=mask)
    for (scores, ids), (other_scores, other_ids) in zip(whole, pieces, strict=True):
        assert scores.tobytes() == other_scores.tobytes()
        assert ids.tolist() == other_ids.tolist()


def test_removed_and_filtered_documents_are_not_found(quantizer):
    index, fine = built(quantizer)
    best = found(index)[1]
    gone = np.unique(best[:, 0])
    allowed = np.setdiff1d(np.arange(N), gone)
    filtered = found(index, filter=allowed)
    index.remove(gone)
    removed = found(index)
    assert not np.isin(removed[1], gone).any()
    assert removed[1].tolist() == filtered[1].tolist()
    index.compact()
    assert found(index)[0].tobytes() == removed[0].tobytes()
    values, indices = codes_of(N)
    index.add((values[gone], indices[gone]), ids=gone, fine=fine[gone])
    assert found(index)[1].tolist() == best.tolist()


def test_truncated_codes_keep_their_fine_codes(quantizer):
    index, fine = built(quantizer)
    short = index.truncate(2)
    assert short.quantizer is quantizer
    _, ids = short.search(codes_of(3), 1, rerank=Refine(fine.decode()[:3], 40))
    assert (ids[:, 0] >= 0).all()


def test_stats_count_every_byte(quantizer, tmp_path):
    index, _ = built(quantizer)
    index.save(tmp_path / "index")
    mapped = InvertedIndex.load(tmp_path / "index")
    for which in (index, mapped):
        stats = which.stats()
        assert stats["bytes_of"]["fine"] == N * quantizer.n_bytes
        assert stats["bytes_of"]["quantizer"] == sum(a.nbytes for a in quantizer.arrays.values())
        assert stats["bytes"] == sum(stats["bytes_of"].values())
        on_disk = sum(f.stat().st_size for f in (tmp_path / "index").glob("*.bin"))
        assert stats["bytes"] == on_disk
        assert stats["mapped_bytes"] + stats["resident_bytes"] == stats["bytes"]
        found(which)
        assert which.stats()["forward_bytes"] == 0  # codes are not copied for it


def test_files_are_of_version_4_and_written_once(quantizer, tmp_path):
    index, fine = built(quantizer)
    index.save(tmp_path / "index")
    header = json.loads((tmp_path / "index" / "index.json").read_text())
    assert header["version"] == 4
    before = {f.name for f in (tmp_path / "index").glob("codebooks-*.bin")}
    loaded = InvertedIndex.load(tmp_path / "index")
    loaded.add(codes_of(5), fine=fine[:5])
    loaded.save(tmp_path / "index")
    assert {f.name for f in (tmp_path / "index").glob("codebooks-*.bin")} == before
    assert len(InvertedIndex.load(tmp_path / "index")) == N + 5
    plain = InvertedIndex.build(codes_of(5), dim=H)
    plain.save(tmp_path / "index")
    assert not list((tmp_path / "index").glob("codebooks-*.bin"))
    assert json.loads((tmp_path / "index" / "index.json").read_text())["version"] == 2


@pytest.mark.parametrize("name", ["fine", "codebooks", "mean"])
def test_damage_is_found(quantizer, tmp_path, name):
    index, _ = built(quantizer)
    index.save(tmp_path / "index")
    (file,) = (tmp_path / "index").glob(f"{name}-*.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(tmp_path / "index")


@pytest.mark.parametrize("parts", [0, 3, 2**17, "1", None])
def test_a_forged_number_of_parts_is_found(quantizer, tmp_path, parts):
    index, _ = built(quantizer)
    index.save(tmp_path / "index")
    file = tmp_path / "index" / "index.json"
    header = json.loads(file.read_text())
    header["index"]["quantizer"]["parts"] = parts
    body = json.dumps(header["index"], sort_keys=True, separators=(",", ":")).encode()
    file.write_text(json.dumps({**header, "crc32c": crc32c(body)}))
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(tmp_path / "index")


def test_misuse_says_what_to_do(quantizer):
    index, fine = built(quantizer)
    plain = InvertedIndex.build(codes_of(N), dim=H)
    other = FineQuantizer(
        quantizer.codebooks * 2,
        quantizer.mean,
        parts=quantizer.parts,
        lengths=quantizer.lengths,
    )
    queries = codes_of(2)
    with pytest.raises(ValueError, match="queries of rerank: this index holds no fine codes"):
        plain.search(queries, rerank=Refine(rows_of(2)))
    with pytest.raises(ValueError, match="fine: expected None"):
        plain.add(codes_of(2), fine=fine[:2])
    with pytest.raises(ValueError, match="fine: expected each code with its fine code"):
        index.add(codes_of(2))
    with pytest.raises(ValueError, match="expected codes of the index's quantizer"):
        index.add(codes_of(2), fine=other.encode(rows_of(2)))
    with pytest.raises(ValueError, match="fine: expected one for each of 3 codes, got 2"):
        index.add(codes_of(3), fine=fine[:2])
    with pytest.raises(TypeError, match="fine: expected FineCodes"):
        InvertedIndex.build(codes_of(2), dim=H, fine=fine.codes[:2])
    with pytest.raises(ValueError, match="queries of rerank: expected 2 rows, one a query"):
        index.search(queries, rerank=Refine(rows_of(3)))
    with pytest.raises(ValueError, match=f"queries of rerank: expected shape \\[n, {D}\\]"):
        index.search(queries, rerank=Refine(np.zeros((2, D + 1))))
    with pytest.raises(ValueError, match="shortlist: expected"):
        index.search(queries, rerank=Refine(rows_of(2), 0))
    with pytest.raises(ValueError, match="mode"):
        index.search(queries, rerank=Refine(rows_of(2)), mode="fast")
    with pytest.raises(ValueError, match="finite numbers"):
        quantizer.encode(np.full((2, D), np.nan))
    with pytest.raises(TypeError, match="codes: expected uint8"):
        FineCodes(np.zeros((2, quantizer.n_bytes)), quantizer)
    with pytest.raises(ValueError, match="codes: expected an array without masked values"):
        FineCodes(np.ma.array(fine.codes, mask=fine.codes > 3), quantizer)
    with pytest.raises(TypeError, match=r"FineCodes are no array: fine\.codes are their bytes"):
        FineCodes(fine, quantizer)
    with pytest.raises(ValueError, match=r"codes: expected those of quantizer .*codes\.decode\(\)"):
        other.decode(fine)
    with pytest.raises(ValueError, match="num_threads: expected 1 <= num_threads"):
        quantizer.tables(rows_of(2), num_threads=0)
    with pytest.raises(ValueError, match="codebooks: expected"):
        FineQuantizer(np.zeros((3, 255, D)), np.zeros(D))
    with pytest.raises(ValueError, match=r"codebooks: .*, none of them 0, .* got \[3, 256, 0\]"):
        FineQuantizer(np.zeros((3, 256, 0)), np.zeros(0))
    with pytest.raises(ValueError, match=f"parts \\* w = {D}, the length of mean"):
        FineQuantizer(np.zeros((2, 256, 3)), np.zeros(D))
    with pytest.raises(ValueError, match="lengths: expected 256 ascending"):
        FineQuantizer(np.zeros((2, 256, D)), np.zeros(D), lengths=np.zeros(256))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.array(3.0), rf"embeddings: expected shape \[n, {D}\], got \[\]"),
        (np.zeros(9000), rf"embeddings: expected shape \[n, {D}\], got \[9000\]"),
        (np.zeros((9000, 2)), rf"embeddings: expected shape \[n, {D}\], got \[9000, 2\]"),
        (
            np.where(np.arange(9000) == 8500, -1e16, 0)[:, None].repeat(D, 1),
            r"-1e\+16 at \[8500, 0\]",
        ),
    ],
)
def test_embeddings_are_refused_as_a_whole(quantizer, embeddings, message):
    """They are coded in pieces of 4,096 rows."""
    with pytest.raises(ValueError, match=message):
        quantizer.encode(embeddings)


def test_arrays_may_be_used_again(quantizer):
    """Writing to the arrays that an index or a quantizer was made from leaves it as it was."""
    bytes_of = quantizer.encode(rows_of(N)).codes
    index = InvertedIndex.build(codes_of(N), dim=H, fine=FineCodes(bytes_of, quantizer))
    want = index.search_fine(rows_of(7), 12)
    bytes_of[:] = 0
    assert [part.tobytes() for part in index.search_fine(rows_of(7), 12)] == [
        part.tobytes() for part in want
    ]
    arrays = {name: array.copy() for name, array in quantizer.arrays.items()}
    twin = FineQuantizer(**arrays, parts=quantizer.parts)
    for array in arrays.values():
        array[:] = 1
    assert twin.fingerprint == quantizer.fingerprint


def test_rows_of_fine_codes_are_chosen_as_those_of_codes(quantizer):
    fine = quantizer.encode(rows_of(5))
    for rows in (slice(None, None, -2), [3, -1], np.arange(5) > 2, torch.tensor([0, 4])):
        assert fine[rows].codes.tolist() == fine.codes[rows].tolist()
    assert (fine[3].codes == fine.codes[3:4]).all()
    assert [len(row) for row in fine] == [1] * 5
    for rows in (5, [0, 5], (0, 1), None, [True], "a"):
        with pytest.raises(IndexError, match="row"):
            fine[rows]


def test_fine_codes_and_refine_compare_by_identity(quantizer):
    for made in (lambda: quantizer.encode(rows_of(3)), lambda: Refine(rows_of(3))):
        one, other = made(), made()
        assert one == one
        assert one != other
        assert len({one, other}) == 2


def test_an_empty_index_fills_up(quantizer):
    empty = quantizer.encode(rows_of(0))
    index = InvertedIndex.build(codes_of(0), dim=H, fine=empty)
    assert found(index)[1].max() == -1
    index.add(codes_of(N), fine=quantizer.encode(rows_of(N)))
    assert found(index)[0].tobytes() == found(built(quantizer)[0])[0].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa):
    assert_same_digests("fine", isa)
