"""InvertedIndex.load of files that lie: one clear ValueError, never a crash or a wrong answer."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import pairwise

import index_codes
import numpy as np
import pytest

from csrkern import _C, FineQuantizer, InvertedIndex, Projection
from csrkern.index import file as index_file
from csrkern.index import graph

CODES = index_codes.uniform(3000, 64, 6)
QUERIES = index_codes.uniform(20, 64, 6, seed=1)


def clustered(*, with_graph=True):
    """An index with arrays of every name: 3 windows of 1,024, 12 blocks of 256."""
    ids = np.arange(3000) * 3
    rng = np.random.default_rng(0)
    projection = Projection(rng.random((5, 7)), rng.random(7))
    quantizer = FineQuantizer(
        rng.random((2, 256, 5)), rng.random(5), lengths=np.arange(1, 257), projection=projection
    )
    fine = quantizer.encode(rng.random((3000, 7)))
    index = InvertedIndex.build(
        *(CODES, ids), norms=ids + 1, fine=fine, dim=64, window=1024, cluster=True
    )
    if with_graph:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "LEAST_WORTH_A_GRAPH", 1)
            index.build_graph()
    index.remove([300, 6000])
    return index


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "whole"
    clustered().save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def the_file(folder, name):
    return next(folder.glob(f"{name}-*.bin"))


def use(folder, **options):
    """Loads the index and touches every list."""
    index = InvertedIndex.load(folder, **options)
    everything = np.ones((1, 64), np.float32), np.arange(64)[None]
    return index.search(everything, 3000), index.search(QUERIES, 10)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", list(index_file.ALL_DTYPES))
def test_any_flipped_byte_is_found(copy, name, mmap):
    file = the_file(copy, name)
    whole = file.read_bytes()
    for at in [0, len(whole) - 1, *np.random.default_rng(0).integers(0, len(whole), 12)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            use(copy, mmap=mmap)
        with pytest.raises(ValueError, match="damaged"):
            InvertedIndex.load(copy, mmap=mmap, verify=True)


@pytest.mark.parametrize("name", list(index_file.ALL_DTYPES))
def test_truncate_longer_or_missing_files(copy, name):
    file = the_file(copy, name)
    whole = file.read_bytes()
    for wrong in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"damaged: expected .* bytes, found"):
            use(copy)
    file.unlink()
    with pytest.raises(ValueError, match="damaged: no file"):
        use(copy)


def test_any_flipped_byte_of_the_header_is_found(copy):
    header = copy / "index.json"
    whole = header.read_bytes()
    same = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 7
        header.write_bytes(damaged)
        try:
            use(copy)
            same += 1  # white space only: the header says the same
            assert not whole[at : at + 1].strip() or json.loads(damaged) == json.loads(whole)
        except ValueError as error:
            assert re.search("damaged|version", str(error))  # noqa: PT017
    assert same < len(whole) // 4


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20), b'{"a": NaN}'],
)
def test_headers_that_are_no_header(copy, text):
    (copy / "index.json").write_bytes(text)
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(copy)


def forge(folder, change, arrays=()):
    """Rewrites header and arrays with checksums that agree, as an attacker would."""
    header = json.loads((folder / "index.json").read_text())
    body = header["index"]
    change(body)
    for name, array in dict(arrays).items():
        the_file(folder, name).write_bytes(array.tobytes())
        holder = body["quantizer"] if name in index_file.QUANTIZER_DTYPES else body["segments"][0]
        entry = holder["arrays"][name]
        entry["size"] = array.size
        entry["crc32c"] = _C.crc32c(np.ascontiguousarray(array))
    header["crc32c"] = _C.crc32c(index_file._canonical(body))
    (folder / "index.json").write_text(json.dumps(header))


OF_SEGMENTS = ("documents", "window", "block", "arrays")


@pytest.mark.parametrize(
    "key", [*OF_SEGMENTS, "dim", "k", "metric", "values", "cluster", "next_id", "segments"]
)
@pytest.mark.parametrize("wrong", [-1, 0, 2**62, 2**70, 1.5, None, "x", True, [], {}])
def test_forged_header(copy, key, wrong):
    if key in ("k", "block") and type(wrong) is int and wrong == 0:
        pytest.skip("an index of empty rows, or one that leaves its maxima unused")
    if (key, wrong) in [("next_id", 2**62), ("cluster", True), ("cluster", None)]:
        pytest.skip("fits")
    part = (lambda body: body["segments"][0]) if key in OF_SEGMENTS else (lambda body: body)
    forge(copy, lambda body: part(body).update({key: wrong}))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


@pytest.mark.parametrize(
    "key", [*OF_SEGMENTS, "dim", "k", "metric", "values", "cluster", "next_id", "segments"]
)
def test_forged_header_lacks_an_entry(copy, key):
    part = (lambda body: body["segments"][0]) if key in OF_SEGMENTS else (lambda body: body)
    forge(copy, lambda body: part(body).pop(key))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def test_forged_slots_and_next_id(copy):
    index = InvertedIndex.load(copy)
    longest = index.ids[(index.to_numpy()[0] > 0).sum(1).argmax()]
    forge(copy, lambda body: body.update(k=3))
    with pytest.raises(ValueError, match="codes have more than k = 3"):
        InvertedIndex.load(copy).get(longest)
    for k, message in ((3, "codes have more than k = 3"), (2**31 - 1, "k: expected 6, what the")):
        forge(copy, lambda body, k=k: body.update(k=k))
        index = InvertedIndex.load(copy)
        with pytest.raises(ValueError, match=message):
            index.to_numpy()
        assert index.truncate(2).k == 2  # by what is stored
    largest = 2999 * 3
    for next_id in (0, 2999, largest):  # the next code would get an id that is taken
        forge(copy, lambda body, next_id=next_id: body.update(next_id=next_id))
        with pytest.raises(ValueError, match=r"damaged: its ids are not in 0\.\.next_id-1"):
            InvertedIndex.load(copy)
    forge(copy, lambda body: body.update(next_id=largest + 1))
    assert len(InvertedIndex.load(copy, verify=True)) == 2998


@pytest.mark.parametrize("depth", [200, *range(880, 1000, 2), 5000])
def test_deeply_nested_headers(copy, depth):
    header = (copy / "index.json").read_text()
    nested = "[" * depth + "]" * depth
    (copy / "index.json").write_text(header.replace('"metric"', f'"more": {nested}, "metric"'))
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(copy)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file(copy, make):
    file = the_file(copy, "terms")
    file.unlink()
    make(file)
    with pytest.raises(ValueError, match="damaged: it is not a file"):
        InvertedIndex.load(copy)


def test_postings_beyond_32_bits(tmp_path):
    """Lists of 34 GB, nearly all of it a hole in the file; the last of them is real."""
    window, n_terms = 65_536, 70_000
    one = np.ones((window, 1), np.float32), np.zeros((window, 1), np.int32)
    InvertedIndex.build(one, dim=n_terms, window=window, cluster=False).save(tmp_path)
    offsets = np.arange(n_terms + 1, dtype=np.uint64) * window
    holes = 4 * window * (n_terms - 1)
    assert holes > 2**34
    file = the_file(tmp_path, "postings")
    real = file.read_bytes()
    with open(file, "r+b") as stream:
        stream.truncate(holes)
        stream.write(bytes(len(real)))
        stream.seek(holes)
        stream.write(real)
    sums = np.full(n_terms, _C.crc32c(np.frombuffer(real, np.uint8)), np.uint32)
    arrays = {"terms": np.arange(n_terms, dtype=np.int32), "offsets": offsets, "checksums": sums}
    forge(
        tmp_path,
        lambda body: body["segments"][0]["arrays"]["postings"].update(size=holes + len(real)),
        arrays,
    )
    index = InvertedIndex.load(tmp_path)
    last = np.ones((1, 1)), np.full((1, 1), n_terms - 1)
    scores, ids = index.search(last, 3, filter=[5, 9, 65_535])
    assert ids.tolist() == [[5, 9, 65_535]]
    assert scores.tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="damaged: the postings of latent 0"):
        index.search((np.ones((1, 1)), np.zeros((1, 1), int)))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "ids-0123456789abcdef.bin", 3])
def test_forged_file_names(copy, name):
    forge(copy, lambda body: body["segments"][0]["arrays"]["terms"].update(file=name))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def forged_arrays():
    index = clustered().snapshot().segments[0].native
    terms, offsets, postings = index.terms, index.offsets, index.postings
    maxima, scales = index.maxima, index.scales
    half = postings.view(np.uint16)

    def with_sums(**arrays):
        parts = {"postings": postings, "maxima": maxima, "scales": scales, **arrays}
        ends = offsets[::3].astype(int) * 4
        rows = parts["maxima"].reshape(64, -1)
        return arrays | {
            "checksums": np.array(
                [
                    _C.crc32c(
                        parts["postings"][a:b].tobytes()
                        + row.tobytes()
                        + parts["scales"][t : t + 1].tobytes()
                    )
                    for t, ((a, b), row) in enumerate(zip(pairwise(ends), rows, strict=True))
                ],
                np.uint32,
            )
        }

    def with_half(at, value):
        data = half.copy()
        data[at] = value
        return with_sums(postings=data.view(np.uint8))

    def changed(array, at, value):
        array = array.copy()
        array[at] = value
        return array

    n = int(offsets[1])
    yield "local number beyond the window", with_half(n - 1, 65_535)
    yield "local number beyond the last document", with_half(int(offsets[2] + offsets[3]) - 1, 1023)
    yield "local numbers out of order", with_half(1, half[0])
    yield "value not finite", with_half(n, 0x7C00)
    yield "value negative", with_half(n, 0x8001)
    yield "value zero", with_half(n, 0)
    yield "maximum too low", with_sums(maxima=changed(maxima, 0, maxima[0] - 1))
    yield "maximum missing", with_sums(maxima=changed(maxima, 5, 0))
    for scale in (np.nan, np.inf, 0, -1, scales[0] / 2):
        yield f"scale {scale}", with_sums(scales=changed(scales, 0, scale))
    yield "too few maxima", {"maxima": maxima[:-1]}
    yield "too few scales", {"scales": scales[:-1]}
    yield "latent beyond dim", {"terms": changed(terms, -1, 64)}
    yield "latent negative", {"terms": changed(terms, 0, -1)}
    yield "latents out of order", {"terms": changed(terms, 0, terms[1])}
    yield "offsets decrease", {"offsets": changed(offsets, 5, offsets[4] - 1)}
    yield "offsets far away", {"offsets": changed(offsets, 5, 2**63)}
    yield "offsets start late", {"offsets": changed(offsets, 0, 1)}
    yield "offsets end early", {"offsets": changed(offsets, -1, offsets[-1] - 1)}
    yield "offsets wrap around", {"offsets": changed(offsets, -1, offsets[-1] + 2**62)}
    yield "too few offsets", {"offsets": offsets[:-1]}
    yield "too few checksums", {"checksums": index.checksums[:-1]}
    yield "too few ids", {"ids": index.ids[:-1]}
    yield "too few norms", {"norms": index.norms[:-1]}
    for norm in (np.nan, np.inf, 0, -1):
        yield f"norm {norm}", {"norms": changed(index.norms, 7, norm)}
    yield "living documents beyond the last", {"alive": np.full(47, 2**64 - 1, np.uint64)}
    yield "too few removed", {"alive": np.full(46, 2**64 - 1, np.uint64)}


@pytest.mark.parametrize(("what", "arrays"), list(forged_arrays()), ids=lambda a: str(a)[:40])
def test_forged_arrays(copy, what, arrays):
    forge(copy, lambda body: None, arrays)
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def forged_quantizers():
    quantizer = clustered().quantizer
    directions, center = quantizer.projection.directions, quantizer.projection.center
    yield "directions too few", {"directions": directions[:4]}
    yield "directions too short", {"directions": directions[:, :6].copy()}
    yield "directions not whole rows", {"directions": directions.ravel()[:-1]}
    yield "directions none", {"directions": directions[:0]}
    yield "directions all 0", {"directions": 0 * directions}
    yield "center too long", {"center": np.zeros(8, np.float32)}
    yield "center none", {"center": center[:0]}
    yield "both none", {"directions": directions[:0], "center": center[:0]}
    yield "mean too short", {"mean": quantizer.mean[:-1]}
    yield "mean none", {"mean": quantizer.mean[:0]}
    yield "codebooks not whole", {"codebooks": quantizer.codebooks.ravel()[:-1]}
    yield "codebooks none", {"codebooks": quantizer.codebooks[:0]}
    yield "lengths too few", {"lengths": quantizer.lengths[1:]}
    yield "lengths descend", {"lengths": quantizer.lengths[::-1].copy()}
    yield "length without an inverse", {"lengths": quantizer.lengths * np.float32(1e-40)}
    for name, array in quantizer.arrays.items():
        for odd in (np.nan, np.inf, 1e16):
            wrong = array.copy()
            wrong.flat[-1] = odd
            yield f"{name} with {odd}", {name: wrong}


@pytest.mark.parametrize(("what", "arrays"), list(forged_quantizers()), ids=lambda a: str(a)[:40])
def test_forged_quantizers(copy, what, arrays):
    forge(copy, lambda body: None, arrays)
    with pytest.raises(ValueError, match="damaged: its quantizer"):
        use(copy)


def test_forged_version(copy):
    """A version says which arrays a quantizer has."""
    header = json.loads((copy / "index.json").read_text())
    assert header["version"] == 7
    for version in (2, 3, 4, 5, 6, 8, 0, -7, "7", None):
        (copy / "index.json").write_text(json.dumps({**header, "version": version}))
        with pytest.raises(ValueError, match=r"damaged|format version .* reads versions 2 to 7"):
            use(copy)


@pytest.mark.parametrize("missing", ["directions", "center", "mean", "codebooks"])
@pytest.mark.parametrize("version", [4, 5, 7])
def test_forged_quantizer_lacks_an_array(tmp_path, missing, version):
    clustered(with_graph=version == 7).save(tmp_path / "index")
    copy = tmp_path / "index"
    forge(copy, lambda body: body["quantizer"]["arrays"].pop(missing))
    header = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**header, "version": version}))
    with pytest.raises(ValueError, match="damaged"):
        use(copy)


def test_forged_quantizer_without_its_projection(tmp_path):
    """It is one of embeddings of fewer dimensions, of version 4: a whole index, but no forgery."""

    copy = tmp_path / "index"
    clustered(with_graph=False).save(copy)

    def drop(body):
        for name in ("directions", "center"):
            del body["quantizer"]["arrays"][name]

    forge(copy, drop)
    with pytest.raises(ValueError, match="damaged"):
        use(copy)
    header = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**header, "version": 4}))
    assert InvertedIndex.load(copy).quantizer.dim == 5


@pytest.mark.parametrize("number", [3000, 2**32 - 1, 7])
def test_forged_neighbors_lead_nowhere(copy, number):
    """A walk passes over documents that are not there, and over those that it has met."""
    neighbors = np.full(3000 * _C.NEIGHBORS, number, np.uint32)
    forge(copy, lambda body: None, {"neighbors": neighbors})
    index = InvertedIndex.load(copy)
    (segment,) = index.snapshot().segments
    limits = {"normalize": True, "query_k": 6, "min_score": 0.0, "num_threads": 1}
    ids = _C.search([(segment.native, None)], *QUERIES, None, 64, top_k=20, width=20, **limits)[1]
    assert np.isin(ids, [-1, *range(0, 9000, 3)]).all()
    assert (ids[:, 0] >= 0).all()


def test_neighbors_of_a_wrong_size(copy):
    forge(copy, lambda body: None, {"neighbors": np.zeros(3000 * 31, np.uint32)})
    with pytest.raises(ValueError, match="damaged: its neighbors disagree in size"):
        use(copy)


def test_damage_spoils_no_other_index(copy, saved):
    """A search that meets damage leaves nothing behind for the next one."""
    want = use(saved)
    file = the_file(copy, "postings")
    data = bytearray(file.read_bytes())
    data[2000] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        use(copy)
    for got, good in zip(use(saved), want, strict=True):
        np.testing.assert_array_equal(got[0], good[0])


@pytest.fixture
def planned(tmp_path):
    """A saved index with the plan of a fast search."""
    index = clustered()
    index.calibrate(QUERIES, 0.7)
    index.save(tmp_path / "planned")
    return tmp_path / "planned"


@pytest.mark.parametrize(
    "change",
    [
        {"kept": 1.5},
        {"found": "all"},
        {"factor": -1},
        {"queries": 2.0},
        {"own": 1},
        {"strong": None},
        {"width": -1},
        {"width": 2000},
        {"width": 1.5},
        {"width": 5, "strong": True},
        {"width": 5, "factor": 2},
        {"width": 5, "bound_share": 0.5},
        {"width": 5, "factor": 0, "strong": False, "bound_share": 1, "least": "much"},
        {"more": 0},
        {"own": ...},
    ],
    ids=str,
)
def test_forged_plan(planned, change):
    def forge_plan(body):
        (plan,) = body["fast"]
        plan |= change
        body["fast"] = [{name: value for name, value in plan.items() if value is not ...}]

    forge(planned, forge_plan)
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(planned)


def test_the_first_plans_did_not_say_which_postings_they_read(planned):
    want = InvertedIndex.load(planned)._plans.facts()
    forge(planned, lambda body: body["fast"][0].pop("strong"))
    assert InvertedIndex.load(planned)._plans.facts() == want
