"""Embeddings and labels from Parquet files: every type of list, and what is wrong with files."""

from __future__ import annotations

import decimal
import sys

import numpy as np
import pytest
import torch

from csrkern import SparseCodes
from csrkern.embeddings import tables
from csrkern.embeddings.dataset import open_embeddings
from csrtrain import load_embeddings, load_labels
from csrtrain.scale.corpus import Reader

pa = pytest.importorskip("pyarrow", reason="pip install 'csrkern[parquet]'")
import pyarrow.parquet as pq  # noqa: E402

from csrkern.integrations.frames import from_arrow, to_arrow  # noqa: E402

D = 6


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 9, (50, D)).astype(np.float32)


@pytest.fixture
def y() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, 50)


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def both_ways(path, key=None) -> list[np.ndarray]:
    """The rows as `load_embeddings` and as a worker of Ray reads them, in pieces of 7."""
    reader = Reader(key)
    n, d = reader.shape(str(path))
    pieces = [reader.read(str(path), left, min(7, n - left)) for left in range(0, n, 7)]
    assert all(piece.shape[1] == d for piece in pieces)
    found = load_embeddings(path if key is None else f"{path}:{key}")
    return [
        open_embeddings("x", array).rows(slice(None)).numpy()
        for array in (found, np.concatenate(pieces))
    ]


def list_types() -> list:
    flat = [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(12, 3)]
    types = [pa.list_(item) for item in flat]
    types += [pa.large_list(pa.float32()), pa.list_(pa.float32(), D), pa.list_(pa.float16(), D)]
    if hasattr(pa, "list_view"):
        types += [pa.list_view(pa.float32()), pa.large_list_view(pa.float64())]
    return [*types, pa.fixed_shape_tensor(pa.float32(), [D])]


@pytest.mark.parametrize("kind", list_types(), ids=str)
@pytest.mark.parametrize("group", [7, 20, 50])
def test_every_type_of_list(tmp_path, x, y, kind, group):
    if isinstance(kind, pa.FixedShapeTensorType):
        lists = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    else:
        floats = {"halffloat": np.float16, "float": np.float32, "double": np.float64}
        convert = floats.get(str(kind.value_type), decimal.Decimal)
        lists = pa.array([[convert(int(v)) for v in row] for row in x], kind)
    path = write(tmp_path / "x.parquet", {"emb": lists, "row": y}, row_group_size=group)
    for found in both_ways(path):
        assert np.array_equal(found, x)


def test_labels(tmp_path, y):
    names = [f"label {v}" for v in y]
    right = torch.from_numpy(np.unique(names, return_inverse=True)[1])
    columns = {
        "text": names,
        "category": pa.array(names).dictionary_encode(),
        "large": pa.array(names, pa.large_string()),
    }
    path = write(tmp_path / "x.parquet", columns, row_group_size=20)
    for key in columns:
        assert torch.equal(load_labels(f"{path}:{key}"), right)
    with pytest.raises(
        ValueError, match=r"name one as .*:NAME\. It holds: text \[rows\] string, cat"
    ):
        load_labels(path)
    write(path, {"y": pa.array([1, 2, None])})
    with pytest.raises(ValueError, match=r"\[y\]: row 2 is missing \(null\)"):
        load_labels(path)
    write(path, {"y": pa.array(y.astype(np.uint16))})
    assert torch.equal(load_labels(path), torch.from_numpy(y))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1.0, 2.0], [3.0]], "lists of one length, got 1 numbers in row 1 and 2 in those before"),
        ([[1.0], [3.0], [4.0], [5.0, 6.0]], "got 2 numbers in row 3 and 1 in"),
        ([[1.0, 2.0], None], r"row 1 is missing \(null\)"),
        ([[1.0, 2.0], [1.0, 3.0], [1.0, None]], r"row 2 holds a missing value \(null\)"),
    ],
)
@pytest.mark.parametrize("group", [1, 10])
def test_ragged_and_missing_lists_are_named(tmp_path, lists, message, group):
    path = tmp_path / "x.parquet"
    write(path, {"emb": pa.array(lists, pa.list_(pa.float32()))}, row_group_size=group)
    with pytest.raises(ValueError, match=message) as caught:
        load_embeddings(path)
    assert str(caught.value).startswith(f"{path}[emb]: ")
    with pytest.raises(ValueError, match=message):
        Reader().read(str(path), 0, len(lists))


def test_a_name_with_a_dot_beside_a_struct(tmp_path, x):
    """pyarrow takes "a.b" for the path to b in a, too."""
    structs = pa.array([{"b": 1.0, "c": [1.0]}] * 50)
    lists = pa.array(list(x))
    for columns in ({"a": structs, "a.b": lists}, {"a.b": lists, "a": structs}):
        path = write(tmp_path / "x.parquet", columns)
        for key in ("a.b", None):
            for found in both_ways(path, key):
                assert np.array_equal(found, x)
        with pytest.raises(ValueError, match=r"no array 'a\.c'; it holds: "):
            load_embeddings(f"{path}:a.c")
        with pytest.raises(TypeError, match="floating-point embeddings, got struct"):
            load_embeddings(f"{path}:a")
    table = pa.table([lists, lists], ["e", "e"])
    pq.write_table(table, path)
    for call in (lambda: load_embeddings(path), lambda: Reader("e").shape(str(path))):
        with pytest.raises(ValueError, match="has 2 columns called 'e'"):
            call()


def test_columns_of_single_numbers_are_taken_by_a_pattern(tmp_path, x, y):
    wide = {f"emb_{i}": x[:, i].astype([np.float32, np.float64][i % 2]) for i in range(D)}
    path = write(tmp_path / "x.parquet", {"id": y, **wide, "score": x[:, 0]}, row_group_size=20)
    for found in both_ways(path, "emb_*"):
        assert np.array_equal(found, x)
    assert load_embeddings(f"{path}:emb_?").shape == (50, D)
    with pytest.raises(
        ValueError, match=r"a pattern such as .*x\.parquet:emb_\* takes columns of single"
    ):
        load_embeddings(path)
    with pytest.raises(ValueError, match=r"a pattern such as column='emb_\*' takes columns"):
        Reader().shape(str(path))
    with pytest.raises(ValueError, match=r"columns of single floats for '\*', got id \[rows\] int"):
        load_embeddings(f"{path}:*")
    with pytest.raises(ValueError, match=r"no array 'x_\*'; it holds: id \[rows\] int64, emb_0"):
        load_embeddings(f"{path}:x_*")
    write(path, {"emb_0": [1.0, 2.0], "emb_1": pa.array([1.0, None])})
    with pytest.raises(ValueError, match=r"\[emb_\*\], emb_1: row 1 is missing \(null\)"):
        load_embeddings(f"{path}:emb_*")
    write(path, {"emb_*": pa.array(list(x)), "emb_1": x[:, 0]})  # the very name comes first
    assert np.array_equal(both_ways(path, "emb_*")[0], x)


def test_other_columns_are_listed(tmp_path, x, y):
    lists = pa.array(list(x))
    path = write(tmp_path / "x.parquet", {"a": lists, "b": lists, "n": y})
    listed = r"It holds: a \[rows, list\] float, b \[rows, list\] float, n \[rows\] int64"
    with pytest.raises(
        ValueError, match=f"several arrays that would do; name one as .*:NAME. {listed}"
    ):
        load_embeddings(path)
    with pytest.raises(ValueError, match=f"several columns that would do; .* column. {listed}"):
        Reader().shape(str(path))
    write(path, {"n": pa.array([[1, 2]] * 3), "deep": pa.array([[[1.0]]] * 3)})
    with pytest.raises(ValueError, match="no array that would do"):
        load_embeddings(path)
    with pytest.raises(TypeError, match="floating-point embeddings, got int64; convert them"):
        load_embeddings(f"{path}:n")
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((3, 2, 4), np.float32))
    write(path, {"t": tensors})
    with pytest.raises(ValueError, match=r"embeddings of shape \[n, d\], got \[rows, 2, 4\]"):
        load_embeddings(f"{path}:t")


def test_empty_tables_and_parts(tmp_path, x):
    """Spark and pandas write parts without rows, whose columns may be of any type."""
    empty = {
        "a": pa.table({"emb": pa.nulls(0)}),
        "b": pa.table({"emb": pa.array([], pa.list_(pa.float32()))}),
        "c": pa.table({"other": pa.array([], pa.string())}),
        "e": pa.table({"emb": pa.array([], pa.list_(pa.null()))}),
    }
    for name, table in empty.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=r"[abce]\.parquet"):
            load_embeddings(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"at least one row and one column, got \[0, 0\]"):
        load_embeddings(tmp_path / "b.parquet")
    write(tmp_path / "d.parquet", {"emb": pa.array(list(x))})
    reader = Reader()
    files = reader.files([str(tmp_path)])
    assert [reader.shape(file) for file in files] == [(0, 0), (0, 0), (0, 0), (50, D), (0, 0)]
    for column in (pa.nulls(3), pa.array([[], []], pa.list_(pa.float32()))):
        write(tmp_path / "a.parquet", {"emb": column})
        with pytest.raises((ValueError, TypeError), match=r"a\.parquet"):
            load_embeddings(tmp_path / "a.parquet")
    groups = pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"emb": pa.list_(pa.float32())}))
    with groups:  # row groups without rows between others
        for size in (0, 20, 0, 30, 0):
            groups.write_table(pa.table({"emb": pa.array(list(x[:size]), pa.list_(pa.float32()))}))
    for found in both_ways(tmp_path / "a.parquet"):
        assert np.array_equal(found, np.concatenate([x[:20], x[:30]]))


def test_a_table_is_read_in_batches(tmp_path, x, monkeypatch):
    """No step makes one Arrow array of all chunks: list<> has 32-bit offsets."""
    monkeypatch.setattr(tables, "BATCH_ROWS", 3)
    path = write(tmp_path / "x.parquet", {"emb": pa.array(list(x))}, row_group_size=50)
    sizes = []
    kept = tables.list_items
    monkeypatch.setattr(
        tables,
        "list_items",
        lambda name, array, first: (sizes.append(len(array)), kept(name, array, first))[1],
    )
    for found in both_ways(path):
        assert np.array_equal(found, x)
    assert max(sizes) == 3


def test_codes_of_a_table_in_many_chunks():
    codes = SparseCodes.from_dense(torch.rand(30, 20), k=4)
    parts = [to_arrow(codes[left : left + 7]) for left in range(0, 30, 7)]
    table = pa.concat_tables([*parts, parts[0].slice(0, 0)])
    assert table.column("values").num_chunks > 4
    assert from_arrow(table, 20).equal(codes)
    if hasattr(pa, "list_view"):
        for column, item in (("indices", pa.int32()), ("values", pa.float32())):
            at = table.schema.names.index(column)
            view = pa.chunked_array(
                [
                    pa.array(part.to_pylist(), pa.list_view(item))
                    for part in table.column(column).chunks
                ]
            )
            table = table.set_column(at, column, view)
        assert from_arrow(table, 20).equal(codes)
    exact = pa.array([[decimal.Decimal("1.5")]], pa.list_(pa.decimal128(4, 2)))
    assert from_arrow(pa.table({"indices": [[3]], "values": exact}), 20).values.tolist() == [[1.5]]
    values = pa.chunked_array([[[1.0]], [[2.0], None]])
    with pytest.raises(ValueError, match=r"column 'values': row 2 is missing"):
        from_arrow(pa.table({"indices": [[1], [2], [3]], "values": values}), 20)


def refusal(read) -> str | None:
    """What a reader says of a file; None if it reads something."""
    try:
        read()
    except (ValueError, TypeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_files_are_named_by_one_error(tmp_path, x, compression):
    path = tmp_path / "x.parquet"
    write(path, {"emb": pa.array(list(x))}, compression=compression, row_group_size=10)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for turn in range(120):
        broken = bytearray(whole[: rng.integers(len(whole))] if turn % 4 == 0 else whole)
        for at in rng.integers(0, len(broken), 3) if broken else ():
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        for read in (
            lambda: load_embeddings(path, check_finite=False),
            lambda: Reader().read(str(path), 5, 20),
        ):
            error = refusal(read)
            refused += error is not None
            assert error is None or (error.startswith(str(path)) and "\n" not in error)
    assert refused > 60


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'csrkern\[parquet\]'"):
        load_embeddings(tmp_path / "x.parquet")
