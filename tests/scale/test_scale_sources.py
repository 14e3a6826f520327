"""What workers of Ray read and where they write: names of files, forms of arrays, bad rows."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scale_shards import random_codes

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain.scale import build, encode, training
from csrtrain.scale.corpus import Piece, Reader
from csrtrain.scale.folder import Folder

pytest.importorskip("fsspec", reason="needs csrkern[ray]")

D, H = 8, 64
# Names that are patterns, or mean something else, to a shell, to fsspec or in a URL.
NAMES = ["a[1].npy", "b*.npy", "c?d.npy", "e f.npy", "g::h.npy", "i%20j#k.npy", "\u00fc.NPY"]


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def read_all(reader: Reader, source: str, rows: int = 7) -> np.ndarray:
    n, _ = reader.shape(source)
    parts = [reader.read(source, left, min(rows, n - left)) for left in range(0, n, rows)]
    return np.concatenate(parts)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    SparseAutoencoder(D, H, 6).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of Ray run in this process, one after the other."""

    def encode_here(_ray: Any, job: encode.Job, todo: list[Piece], *_: Any) -> Any:
        worker = encode.Encoder(job)
        yield from map(worker.encode, todo)

    def build_here(_ray: Any, source: Folder, out: Folder, todo: Any, form: Any, *_: Any) -> Any:
        yield from (build.build_one(source, out, plan, form) for plan in todo)

    for module, run in ((encode, encode_here), (build, build_here)):
        monkeypatch.setattr(module, "_run", run)
        monkeypatch.setattr(module, "connected", lambda _address: contextlib.nullcontext())
        monkeypatch.setattr(module, "import_ray", lambda: None)


@pytest.mark.parametrize("place", ["local", "file", "memory"])
def test_names_that_exist_are_no_patterns(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "in [x] *"
    folder.mkdir()
    url = {"local": str(folder), "file": f"file://{folder}", "memory": f"memory://{folder.name}"}
    root = url[place]
    for seed, name in enumerate(NAMES):
        np.save(tmp_path / "x.npy", embeddings(9, seed))
        Folder.of(root).upload(tmp_path / "x.npy", name)
    reader = Reader()
    for seed, name in enumerate(NAMES):
        if place == "memory" and "::" in name:
            continue  # which chains two file systems in a URL
        (file,) = reader.files([f"{root}/{name}"])
        assert np.array_equal(read_all(reader, file), embeddings(9, seed)), name
        assert reader.stamp(file)
    whole = reader.files([root])
    assert [file.rsplit("/", 1)[1] for file in whole] == sorted(NAMES)
    again = Reader()
    assert again.files([root]) == whole
    if place == "local":
        for source in (folder, os.fsencode(folder)):
            assert reader.files([source]) == whole
    (tmp_path / "plain").mkdir()
    for name in ("p1.npy", "p2.npy", "q.npy", ".hidden.npy", "note.txt"):
        Folder.of(tmp_path / "plain").upload(tmp_path / "x.npy", name)
    found = reader.files([f"{tmp_path}/plain/p*.npy", f"{tmp_path}/plain/[q].npy"])
    assert [file.rsplit("/", 1)[1] for file in found] == ["p1.npy", "p2.npy", "q.npy"]
    with pytest.raises(FileNotFoundError, match=r"no \.npy, \.parquet, \.lance files at .*z\*"):
        reader.files([f"{tmp_path}/plain/z*"])
    with pytest.raises(ValueError, match=r"note\.txt: expected a file that ends in \.npy, "):
        reader.files([f"{tmp_path}/plain/note.txt"])


def test_a_link_changes_with_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", embeddings(5))
    (tmp_path / "link.npy").symlink_to(tmp_path / "x.npy")
    reader = Reader()
    (file,) = reader.files([tmp_path / "link.npy"])
    before = reader.stamp(file)
    assert np.array_equal(read_all(reader, file), embeddings(5))
    np.save(tmp_path / "x.npy", embeddings(5, seed=1))
    os.utime(tmp_path / "x.npy", (1, 1))
    assert reader.stamp(file) != before


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8", "<f2", "<f8"])
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_every_form_of_npy(tmp_path: Path, kind: str, by_column: bool, place: str) -> None:
    array = embeddings(20).astype(kind)
    np.save(tmp_path / "x.npy", np.asfortranarray(array) if by_column else array)
    root = str(tmp_path) if place == "local" else f"memory://forms{tmp_path.name}"
    Folder.of(root).upload(tmp_path / "x.npy", "y.npy")
    reader = Reader()
    assert reader.shape(f"{root}/y.npy") == (20, D)
    assert np.array_equal(read_all(reader, f"{root}/y.npy"), array)
    assert reader.read(f"{root}/y.npy", 3, 1).shape == (1, D)
    with pytest.raises(ValueError, match="expected 9 rows from row 15 on, found 5"):
        reader.read(f"{root}/y.npy", 15, 9)


def bad_files() -> list[tuple[str, Callable[[Path], object], str]]:
    def cut(path: Path) -> None:
        np.save(path, embeddings(20))
        path.write_bytes(path.read_bytes()[:-1])

    return [
        ("cut", cut, r"bad\.npy is not a readable \.npy file: it ends before its last row"),
        ("empty", lambda p: p.write_bytes(b""), r"not a readable \.npy file"),
        ("text", lambda p: p.write_text("no array"), r"not a readable \.npy file"),
        ("one row", lambda p: np.save(p, np.zeros(4, ">f4")), r"shape \[n, d\], got \[4\]"),
        ("integers", lambda p: np.save(p, np.zeros((4, D), int)), "floating-point .*got int64"),
        ("fields", lambda p: np.save(p, np.zeros(4, [("a", "f4")])), "with the fields a;"),
        ("objects", lambda p: np.save(p, np.array([[{}]])), "got object"),
        ("narrow", lambda p: np.save(p, np.zeros((4, 3), "f4")), "expects 8 columns, .* has 3"),
    ]


@pytest.mark.parametrize(("name", "make", "message"), bad_files(), ids=lambda v: str(v)[:9])
def test_bad_files_end_the_run_before_it_begins(
    tmp_path: Path, model: Path, without_ray: None, name: str, make: Any, message: str
) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/good.npy", embeddings(20))
    make(tmp_path / "in/bad.npy")
    with pytest.raises((ValueError, TypeError), match=message):
        encode.encode_corpus(tmp_path / "in", model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_row_that_is_not_finite_is_named(tmp_path: Path, model: Path, without_ray: None) -> None:
    """In the words of its file, which pieces cut anywhere."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = embeddings(50)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", rows)
    for bad in (np.nan, -np.inf, 1e300):
        wrong = rows.astype(">f8")
        wrong[37, 2] = bad
        np.save(tmp_path / "in/b.npy", np.asfortranarray(wrong))
        with pytest.raises(ValueError, match=r"/in/b\.npy: row 37 holds 1 values .* not finite"):
            encode.encode_corpus(tmp_path / "in", model, tmp_path / f"npy{bad}", piece_rows=8)
    (tmp_path / "in/b.npy").unlink()
    wrong = pa.array([None if i == 41 else list(row) for i, row in enumerate(rows)])
    pq.write_table(pa.table({"e": wrong}), tmp_path / "in/c.parquet", row_group_size=9)
    with pytest.raises(ValueError, match=r"/in/c\.parquet\[e\]: row 41 is missing \(null\)"):
        encode.encode_corpus(tmp_path / "in", model, tmp_path / "parquet", piece_rows=8)


def test_a_corpus_of_every_kind_of_part(tmp_path: Path, model: Path, without_ray: None) -> None:
    """Big-endian, by column, without rows of type null, wide columns; in a folder of odd name."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    source, out = tmp_path / "in [*]", tmp_path / "out [1] x"
    source.mkdir()
    parts = [embeddings(n, seed=n) for n in (30, 20, 15)]
    np.save(source / "b.npy", parts[0].astype(">f4"))
    np.save(source / "c.npy", np.asfortranarray(parts[1].astype(">f8")))
    np.save(source / "d.npy", np.zeros((0, 3), np.float32))
    pq.write_table(pa.table({"emb": pa.nulls(0)}), source / "a.parquet")
    wide = {f"emb_{i}": parts[2][:, i] for i in range(D)}
    pq.write_table(pa.table({"id": range(15), **wide}), source / "e.parquet")
    manifest = encode.encode_corpus(
        source, model, out, piece_rows=8, column="emb_*", dtype="float32"
    )
    codes = [SparseCodes.load(out / piece["file"]) for piece in manifest["pieces"]]
    expected = SparseAutoencoder.from_pretrained(model).eval().encode(np.concatenate(parts))
    assert SparseCodes.cat(codes).equal(expected)
    assert sum(map(len, codes)) == manifest["rows"] == 65
    written = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    encode.encode_corpus(source, model, out, piece_rows=8, column="emb_*", dtype="float32")
    assert written == {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    found = build.build_shards(out, tmp_path / "index [2]", shards=2)
    assert len(found) == 65


@pytest.mark.parametrize("call", ["encode_corpus", "build_shards", "add_shard"])
def test_a_place_that_takes_no_files_is_found_at_once(
    tmp_path: Path, model: Path, without_ray: None, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", embeddings(20))
    encode.encode_corpus(tmp_path / "x.npy", model, tmp_path / "codes")
    InvertedIndex.build(random_codes(10), dim=H).save(tmp_path / "part")
    calls: dict[str, Callable[[Path], object]] = {
        "encode_corpus": lambda to: encode.encode_corpus(tmp_path / "x.npy", model, to),
        "build_shards": lambda to: build.build_shards(tmp_path / "codes", to),
        "add_shard": lambda to: build.add_shard(tmp_path / "part", to),
    }
    for work in ((Reader, "shape"), (build, "_run"), (build, "upload")):
        monkeypatch.setattr(*work, lambda *_: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match="file is a file; expected a folder"):
        calls[call](tmp_path / "file")
    with pytest.raises(OSError, match="/proc/nothing"):
        calls[call](Path("/proc/nothing"))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_training_proves_its_output_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import csrtrain

    monkeypatch.setattr(csrtrain, "train", lambda *_, **__: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("not a folder")
    work = {"embeddings": "x.npy", "output": str(tmp_path / "file"), "options": {}}
    with pytest.raises(NotADirectoryError, match="file is a file; expected a folder"):
        training._loop(work)


def test_proving_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    for root in (tmp_path / "new", f"memory://proof{tmp_path.name}"):
        folder = Folder.of(root)
        folder.check_writable()
        assert folder.sizes("") == {}


def test_arguments_are_checked_before_anything_is_read(
    tmp_path: Path, model: Path, without_ray: None
) -> None:
    for wrong, message in (
        ({"k": H + 1}, "k: expected 1 <= k <= 64, got 65"),
        ({"piece_rows": 0}, "piece_rows: expected 1 <= "),
        ({"workers": 0}, "workers: expected 1 <= "),
        ({"dtype": "int8"}, "dtype: expected one of 'float16', 'float32', got 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            encode.encode_corpus(tmp_path / "none.npy", model, tmp_path / "out", **wrong)
    for wrong, message in (
        ({"shards": 0}, "shards: expected 1 <= "),
        ({"metric": "l2"}, "metric: expected one of"),
        ({"dtype": "int8"}, "dtype: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            build.build_shards(tmp_path / "none", tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_many_small_pieces_hold_no_files_open(
    tmp_path: Path, model: Path, without_ray: None
) -> None:
    np.save(tmp_path / "x.npy", embeddings(600))
    encode.encode_corpus(tmp_path / "x.npy", model, tmp_path / "codes", piece_rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        found = build.build_shards(tmp_path / "codes", tmp_path / "index", shards=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(found) == 600


def test_what_killed_writers_left_is_removed(
    tmp_path: Path, model: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", embeddings(20))
    kept, left = os.replace, []

    def dies(source: Any, target: Any) -> None:
        if "piece-" in str(target) and not left:
            left.append(Path(source).read_bytes())
            Path(source).with_suffix(".copy").write_bytes(left[0])
            raise KeyboardInterrupt
        kept(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        encode.encode_corpus(tmp_path / "x.npy", model, tmp_path / "out", piece_rows=7)
    (copy,) = (tmp_path / "out").glob(".*.copy")
    copy.rename(copy.with_suffix(".tmp"))  # as after SIGKILL
    manifest = encode.encode_corpus(tmp_path / "x.npy", model, tmp_path / "out", piece_rows=7)
    assert manifest["rows"] == 20
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
