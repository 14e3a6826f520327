"""csrtrain.scale without Ray: the corpus, what is encoded of it, and manifests of shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scale_shards import DIM, build_sharded, random_codes

from csrkern import InvertedIndex, ModelMismatchError
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import build, encode, shards
from csrtrain.scale.corpus import Piece, Reader, plan
from csrtrain.scale.folder import Folder, read_record, write_record


def embeddings(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def write_corpus(folder: Path) -> np.ndarray:
    """300 rows in four files of three kinds; the rows in order."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    parts = [embeddings(n, seed=n) for n in (90, 101, 60, 49)]
    np.save(folder / "a.npy", parts[0])
    lists = pa.array(list(parts[1]), pa.list_(pa.float32()))
    pq.write_table(pa.table({"e": lists}), folder / "b.parquet", row_group_size=17)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(parts[2].ravel()), 8)
    pq.write_table(
        pa.table({"e": fixed, "n": pa.array(range(60))}), folder / "c.parquet", row_group_size=25
    )
    np.save(folder / "d.npy", parts[3].astype(np.float16))
    return np.concatenate([*parts[:3], parts[3].astype(np.float16).astype(np.float32)])


@pytest.mark.parametrize("piece_rows", [1, 7, 25, 101, 1000])
def test_every_row_is_in_one_piece(tmp_path: Path, piece_rows: int) -> None:
    whole = write_corpus(tmp_path)
    reader = Reader()
    files = [(file, reader.shape(file)[0]) for file in reader.files([str(tmp_path)])]
    pieces = list(plan(files, piece_rows))
    read = [reader.read(piece.source, piece.first, piece.rows) for piece in pieces]
    np.testing.assert_array_equal(np.concatenate([part.astype(np.float32) for part in read]), whole)
    starts = np.cumsum([0, *(len(part) for part in read)])[:-1]
    assert [piece.first_id for piece in pieces] == starts.tolist()
    assert max(piece.rows for piece in pieces) <= piece_rows


def test_reader_explains(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    reader = Reader()
    with pytest.raises(FileNotFoundError, match=r"no \.npy"):
        reader.files([str(tmp_path / "*.txt")])
    with pytest.raises(ValueError, match="has changed"):
        reader.read(str(tmp_path / "a.npy"), 80, 20)
    with pytest.raises(ValueError, match=r"no column 'x'; it holds: e \[rows, 8\] float, n"):
        Reader("x").shape(str(tmp_path / "c.parquet"))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_records_are_whole(tmp_path: Path, kind: str) -> None:
    folder = Folder.of(tmp_path if kind == "local" else f"memory://{tmp_path.name}")
    assert read_record(folder, "r.json", "thing", 1) is None
    write_record(folder, "r.json", "thing", 1, {"a": [1, 2]})
    assert read_record(folder, "r.json", "thing", 1) == {"a": [1, 2]}
    assert list(folder.sizes("r")) == ["r.json"]
    folder.create("once", b"a")
    with pytest.raises(FileExistsError):
        folder.create("once", b"b")
    assert folder.read("once") == b"a"
    with pytest.raises(ValueError, match="is a thing file; expected other"):
        read_record(folder, "r.json", "other", 1)
    with pytest.raises(ValueError, match="reads version 2"):
        read_record(folder, "r.json", "thing", 2)
    altered = json.loads(folder.read("r.json"))
    altered["body"]["a"] = [1, 3]
    folder.write("r.json", json.dumps(altered).encode())
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_record(folder, "r.json", "thing", 1)
    for broken in (b"", b"[]", b"{}", b"\xff"):
        folder.write("r.json", broken)
        with pytest.raises(ValueError, match="is damaged"):
            read_record(folder, "r.json", "thing", 1)


def in_this_process(stop_after: int | None = None) -> Callable[..., Any]:
    """Stands in for the workers of Ray; "dies" after so many pieces."""

    def run(_ray: Any, job: encode.Job, todo: list[Piece], *_: Any) -> Any:
        worker = encode.Encoder(job)
        for number, piece in enumerate(todo):
            if number == stop_after:
                raise KeyboardInterrupt
            yield worker.encode(piece)

    return run


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    import contextlib

    monkeypatch.setattr(encode, "connected", lambda _address: contextlib.nullcontext())
    monkeypatch.setattr(encode, "import_ray", lambda: None)

    def use(stop_after: int | None = None) -> None:
        monkeypatch.setattr(encode, "_run", in_this_process(stop_after))

    return use


@pytest.fixture
def model(tmp_path: Path) -> Path:
    SparseAutoencoder(8, DIM, 6).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_encoding_goes_on_where_it_stopped(
    tmp_path: Path, model: Path, without_ray: Callable[..., None]
) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    whole = write_corpus(source)
    out = tmp_path / "codes"
    without_ray(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        encode.encode_corpus(str(source), model, out, piece_rows=40, dtype="float32")
    with pytest.raises(FileNotFoundError, match="was broken off"):
        encode.read_codes_manifest(Folder.of(out))
    (out / "piece-000001.json").unlink()  # killed between the codes and their receipt
    written = {file: file.stat().st_mtime_ns for file in out.glob("piece-*.safetensors")}
    without_ray()
    seen: list[tuple[int, int]] = []
    manifest = encode.encode_corpus(
        str(source),
        model,
        out,
        piece_rows=40,
        dtype="float32",
        progress=lambda *p: seen.append(p),
    )
    assert seen[0] == (50, 300)
    assert seen[-1] == (300, 300)
    assert all(
        file.stat().st_mtime_ns == written[file] for file in written if "-000001-" not in file.name
    )
    from csrkern import SparseCodes

    parts = [SparseCodes.load(out / piece["file"]) for piece in manifest["pieces"]]
    expected = SparseAutoencoder.from_pretrained(model).eval().encode(whole)
    np.testing.assert_array_equal(
        np.concatenate([part.numpy()[1] for part in parts]), expected.numpy()[1]
    )
    with pytest.raises(ValueError, match="differs in: k"):
        encode.encode_corpus(str(source), model, out, piece_rows=40, dtype="float32", k=3)


def test_manifest_refuses_what_does_not_fit(tmp_path: Path) -> None:
    folder = build_sharded(tmp_path, random_codes(60), [30])
    values, indices = random_codes(10)
    InvertedIndex.build((values, indices), np.arange(25, 35), dim=DIM).save(tmp_path / "overlap")
    with pytest.raises(ValueError, match="ids 25 to 34 meet those of shard"):
        build.add_shard(tmp_path / "overlap", tmp_path / "index")
    InvertedIndex.build((values, indices), np.arange(90, 100), dim=DIM, metric="ip").save(
        tmp_path / "other"
    )
    with pytest.raises(ValueError, match="expected metric='cosine' as the others, got metric='ip'"):
        build.add_shard(tmp_path / "other", tmp_path / "index")
    assert shards.newest(folder).number == 2


def test_pieces_and_shards_are_of_one_model(
    tmp_path: Path,
    model: Path,
    without_ray: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from csrkern import SparseCodes

    def build_here(_ray: Any, source: Folder, out: Folder, todo: Any, form: Any, _: Any) -> Any:
        return (build.build_one(source, out, plan, form) for plan in todo)

    without_ray()
    monkeypatch.setattr(build, "connected", encode.connected)
    monkeypatch.setattr(build, "import_ray", encode.import_ray)
    monkeypatch.setattr(build, "_run", build_here)
    np.save(tmp_path / "rows.npy", embeddings(60))
    own = SparseAutoencoder.from_pretrained(model).fingerprint
    encode.encode_corpus(str(tmp_path / "rows.npy"), model, tmp_path / "codes", piece_rows=25)
    manifest = encode.read_codes_manifest(Folder.of(tmp_path / "codes"))
    assert manifest["fingerprint"] == own
    for piece in manifest["pieces"]:
        assert SparseCodes.load(tmp_path / "codes" / piece["file"]).fingerprint == own
    found = build.build_shards(tmp_path / "codes", tmp_path / "index", shards=2)
    assert found.fingerprint == own
    for shard in found.shards:
        assert InvertedIndex.load(tmp_path / "index" / shard.name).fingerprint == own

    SparseAutoencoder(8, DIM, 6).save_pretrained(model)  # trained anew, under the same name
    with pytest.raises(ValueError, match="differs in: fingerprint"):
        encode.encode_corpus(str(tmp_path / "rows.npy"), model, tmp_path / "codes", piece_rows=25)
    encode.encode_corpus(str(tmp_path / "rows.npy"), model, tmp_path / "codes2", piece_rows=25)
    other = SparseAutoencoder.from_pretrained(model)
    with pytest.raises(ValueError, match=f"holds codes of another model .fingerprint {own}"):
        build.build_shards(tmp_path / "codes2", tmp_path / "index", shards=2)
    more = InvertedIndex.build(other.encode(embeddings(4)), np.arange(90, 94), metric="cosine")
    more.save(tmp_path / "more")
    (tmp_path / "more/adapter").mkdir()  # as the command line keeps it
    with pytest.raises(ModelMismatchError, match=f"{other.fingerprint}.* than the other shards"):
        build.add_shard(tmp_path / "more", tmp_path / "index")
    forced = build.add_shard(tmp_path / "more", tmp_path / "index", any_model=True)
    assert forced.fingerprint == own
    replaced = build.build_shards(tmp_path / "codes2", tmp_path / "index", shards=2, replace=True)
    assert replaced.fingerprint == other.fingerprint


@pytest.mark.parametrize("dies_at", ["create", "write"])
def test_a_publication_broken_off_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    folder = build_sharded(tmp_path, random_codes(60), [30])
    before = shards.newest(folder)
    InvertedIndex.build(random_codes(10), np.arange(90, 100), dim=DIM).save(tmp_path / "more")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, dies_at, dies)
    with pytest.raises(KeyboardInterrupt):
        build.add_shard(tmp_path / "more", tmp_path / "index")
    monkeypatch.undo()
    assert len(shards.newest(folder)) == (60 if dies_at == "create" else 70)
    again = build.add_shard(tmp_path / "more", tmp_path / "index")
    assert (len(again), again.number) == (70, before.number + 1)
    assert shards.newest(folder) == again


def test_two_add_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_sharded(tmp_path, random_codes(10), [])
    for number in range(1, 9):
        ids = np.arange(10 * number, 10 * number + 10)
        InvertedIndex.build(random_codes(10), ids, dim=DIM).save(tmp_path / f"part{number}")
    with ThreadPoolExecutor(8) as pool:  # one of them twice
        names = [f"part{number}" for number in (*range(1, 9), 8)]
        list(pool.map(lambda name: build.add_shard(tmp_path / name, tmp_path / "index"), names))
    found = shards.newest(folder)
    assert len(found) == 90
    assert sorted(shard.first_id for shard in found.shards) == list(range(0, 90, 10))
    late = shards.Generation(2, found.form, found.shards[:2])
    shards.write_record(folder, shards.NEWEST, shards.KIND, 1, {"number": late.number})
    assert shards.newest(folder) == found  # whoever was slow to say which is the newest


def test_manifest_names_no_files_elsewhere(tmp_path: Path) -> None:
    folder = build_sharded(tmp_path, random_codes(20), [])
    found = shards.newest(folder)
    evil = shards.Shard("../x", 1, 50, 50, "", {"index.json": (1, 1)})
    shards.change(folder, lambda now: shards.Generation(2, now.form, (*found.shards, evil)))
    with pytest.raises(ValueError, match="is no file name"):
        shards.newest(folder)


def test_shards_from_elsewhere_are_copied_and_checked(tmp_path: Path) -> None:
    local = build_sharded(tmp_path, random_codes(50), [])
    (shard,) = shards.newest(local).shards
    remote = Folder.of(f"memory://{tmp_path.name}/index")
    assert local.local is not None
    for file in (local.local / shard.name).iterdir():
        remote.write(f"{shard.name}/{file.name}", file.read_bytes())
    index = shards.open_shard(remote, shard, tmp_path / "cache")
    assert len(index) == 50
    remote.write(f"{shard.name}/index.json", b"x" * shard.files["index.json"][0])
    with pytest.raises(ValueError, match="checksum is wrong"):
        shards.open_shard(remote, shard, tmp_path / "other")


@pytest.mark.parametrize(("rows", "count"), [([5, 5, 5, 5], 2), ([1, 9, 1, 1, 9], 3), ([4], 8)])
def test_plans_of_shards_take_every_piece_once(rows: list[int], count: int) -> None:
    pieces = [{"number": i, "rows": n, "crc32c": i} for i, n in enumerate(rows)]
    plans = list(build.shard_plans(pieces, count))
    assert [p for one in plans for p in one.pieces] == pieces
    assert len(plans) <= count
    assert len({one.source for one in plans}) == len(plans)
