"""csrtrain.scale on an S3-compatible server in this machine, and Lance files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csrtrain.scale.corpus import Reader, plan
from csrtrain.scale.folder import Folder, read_record, write_record
from csrtrain.scale.serving import Holder, Lookup
from csrtrain.scale.shards import newest


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, dict[str, Any]]]:
    """URL of an empty bucket, and how fsspec reaches it."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}"}
    import fsspec

    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield "s3://bucket", options
    running.stop()


def test_records_and_rows_on_s3(bucket: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = bucket
    folder = Folder.of(f"{url}/records", options)
    assert read_record(folder, "r.json", "thing", 1) is None
    for number in range(3):  # an object is replaced as a whole
        write_record(folder, "r.json", "thing", 1, {"number": number})
        assert read_record(folder, "r.json", "thing", 1) == {"number": number}
    rows = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    Folder.of(f"{url}/corpus", options).upload(tmp_path / "a.npy", "a.npy")
    reader = Reader(options=options)
    (file,) = reader.files([f"{url}/corpus"])
    assert reader.shape(file) == (1000, 8)
    pieces = list(plan([(file, 1000)], 300))
    read = [reader.read(piece.source, piece.first, piece.rows) for piece in pieces]
    np.testing.assert_array_equal(np.concatenate(read), rows)


def test_odd_names_on_s3(bucket: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = bucket
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(">f4")
    np.save(tmp_path / "x.npy", np.asfortranarray(rows))
    names = ["a[1].npy", "b*.npy", "c d+e%20.npy", "f#g=1.npy", "\u00fc.npy"]
    folder = Folder.of(f"{url}/in [x] *", options)
    folder.check_writable()
    for name in names:
        folder.upload(tmp_path / "x.npy", name)
    assert sorted(folder.sizes("")) == sorted(names)
    reader = Reader(options=options)
    assert len(reader.files([folder.url])) == len(names)
    for name in names:
        (file,) = reader.files([f"{folder.url}/{name}"])
        assert reader.stamp(file)
        assert reader.shape(file) == (40, 8)
        np.testing.assert_array_equal(reader.read(file, 7, 20), rows[7:27])
    assert len(reader.files([f"{url}/in [[]x] */?[[]1].npy"])) == 1  # a pattern
    folder.write("bad.npy", b"no array")
    with pytest.raises(ValueError, match=r"bad\.npy is not a readable \.npy file"):
        reader.shape(f"{folder.url}/bad.npy")
    with pytest.raises(FileNotFoundError, match=r"no \.npy, \.parquet, \.lance files at s3://"):
        reader.files([f"{folder.url}/none.npy"])


def test_shards_on_s3_are_one_index(bucket: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    from csrkern import InvertedIndex
    from csrtrain.scale import add_shard

    url, options = bucket
    rng = np.random.default_rng(1)
    values = rng.random((400, 5), dtype=np.float32) + 0.1
    indices = np.argsort(rng.random((400, 64)), axis=1)[:, :5].astype(np.int32)
    for left in (0, 250):
        part = slice(left, 250 if left == 0 else 400)
        ids = np.arange(400)[part]
        InvertedIndex.build((values[part], indices[part]), ids, dim=64).save(tmp_path / "part")
        add_shard(tmp_path / "part", f"{url}/index", options=options)
    folder = Folder.of(f"{url}/index", options)
    assert len(newest(folder)) == 400
    (found,) = Holder(folder, 1).search_all([Lookup(2, (0, 1), values[:9], indices[:9], 7)])
    whole = InvertedIndex.build((values, indices), dim=64).search((values[:9], indices[:9]), 7)
    np.testing.assert_array_equal(found.hits.ids, whole[1])


def test_lance(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="needs pylance")
    pa = pytest.importorskip("pyarrow")
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 8)
    table = pa.table({"n": pa.array(range(500)), "vector": vectors})
    lance.write_dataset(table, str(tmp_path / "e.lance"), max_rows_per_file=130)
    reader = Reader()
    (file,) = reader.files([str(tmp_path / "e.lance")])
    assert reader.shape(file) == (500, 8)
    read = [reader.read(p.source, p.first, p.rows) for p in plan([(file, 500)], 170)]
    np.testing.assert_array_equal(np.concatenate(read), rows)
