"""Codes as list columns of pyarrow, pandas and Hugging Face datasets, and arrays by DLPack."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern import InvertedIndex, Rerank, SparseCodes
from csrkern.integrations.rows import Stored, collect, rows_of
from csrtrain import load_embeddings, load_labels

pa = pytest.importorskip("pyarrow", reason="pip install 'csrkern[parquet]'")
import pyarrow.parquet as pq  # noqa: E402

from csrkern.integrations.frames import (  # noqa: E402
    from_arrow,
    from_pandas,
    to_arrow,
    to_pandas,
)

DIM = 50


@st.composite
def some_codes(draw) -> SparseCodes:
    n, k = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 1000))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.float64]))
    dense = torch.rand(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dense = torch.where(dense > draw(st.sampled_from([0.0, 0.9, 0.99])), dense, 0)
    return SparseCodes.from_dense(dense.to(dtype), k)


@settings(max_examples=50)
@given(some_codes())
def test_there_and_back(codes):
    table = to_arrow(codes)
    assert table.num_rows == len(codes)
    assert table.schema.field("indices").type == pa.list_(pa.int32())
    assert from_arrow(table, DIM, k=codes.k).equal(codes)
    assert from_arrow(table, DIM, k=codes.k).dtype == codes.dtype
    longest = int(codes.active.sum(1).max()) if len(codes) else 0
    assert from_arrow(table, DIM).k == max(1, longest)
    assert from_pairs(rows_of(codes.to(torch.float32)), DIM, codes.k).equal(codes.to(torch.float32))


def from_pairs(rows: Any, dim: int, k: int | None = None) -> SparseCodes:
    """Codes of (latents, values) pairs, which errors call row 0, row 1, ..."""
    stored = (Stored(f"row {number}", number, *row) for number, row in enumerate(rows))
    return collect(stored, dim, k)[0]


def test_through_parquet_and_other_list_types(tmp_path):
    codes = SparseCodes.from_dense(torch.rand(30, DIM), k=4)
    pq.write_table(to_arrow(codes, "i", "v"), tmp_path / "codes.parquet")
    table = pq.read_table(tmp_path / "codes.parquet")
    assert from_arrow(table, DIM, indices="i", values="v").equal(codes)
    for kind in (pa.large_list, lambda item: pa.list_(item, 4)):
        schema = pa.schema([("i", kind(pa.int64())), ("v", kind(pa.float64()))])
        other = from_arrow(table.cast(schema), DIM, indices="i", values="v")
        assert other.to(torch.float32).equal(codes)
    assert from_arrow(table.slice(7, 9), DIM, indices="i", values="v").equal(codes[7:16])
    assert from_arrow(table, DIM, k=2, indices="i", values="v").equal(codes.truncate(2))


def table_of(codes: SparseCodes, kind: Callable[[Any], Any]) -> pa.Table:
    """The columns of `to_arrow`, each made by `kind` of an array of lists."""
    plain = to_arrow(codes)
    return pa.table(
        {name: kind(plain.column(name).combine_chunks()) for name in ("indices", "values")}
    )


def as_views(lists: Any, large: bool = False) -> Any:
    """List views, whose rows lie in reversed order."""
    kind = pa.LargeListViewArray if large else pa.ListViewArray
    starts = lists.offsets.to_numpy()
    items = np.concatenate([lists.values.to_numpy()[a:b] for a, b in pairwise(starts)][::-1])
    sizes = np.diff(starts)
    begins = (np.cumsum(sizes[::-1])[::-1] - sizes).astype(np.int64 if large else np.int32)
    return kind.from_arrays(begins, sizes.astype(begins.dtype), items)


def as_tensors(lists: Any) -> Any:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(lists.values.to_numpy().reshape(-1, 4))


def of_dictionary_items(lists: Any) -> Any:
    return pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())


def as_dictionary(lists: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(range(len(lists))), lists)


def as_runs(lists: Any) -> Any:
    return pa.RunEndEncodedArray.from_arrays(range(1, len(lists) + 1), lists)


def in_chunks(lists: Any) -> Any:
    empty = lists.slice(0, 0)
    return pa.chunked_array([empty, lists.slice(0, 2), empty, lists.slice(2, 1), lists.slice(3)])


LISTS = {
    "large_list": lambda lists: lists.cast(pa.large_list(lists.type.value_type)),
    "fixed_size_list": lambda lists: lists.cast(pa.list_(lists.type.value_type, 4)),
    "list_view": as_views,
    "large_list_view": lambda lists: as_views(lists, large=True),
    "fixed_shape_tensor": as_tensors,
    "dictionary items": of_dictionary_items,
    "dictionary": as_dictionary,
    "run_end_encoded": as_runs,
    "chunks": in_chunks,
    "chunks of views": lambda lists: in_chunks(as_views(lists)),
    "uint8": lambda lists: lists.cast(
        pa.list_(pa.uint8() if pa.types.is_integer(lists.type.value_type) else pa.float32())
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_every_kind(name):
    codes = SparseCodes.from_dense(torch.rand(7, DIM), k=4)
    table = table_of(codes, LISTS[name])
    assert from_arrow(table, DIM).equal(codes)
    assert from_arrow(table.slice(2, 3), DIM, k=4).equal(codes[2:5])
    assert from_arrow(table.to_batches()[0], DIM, k=4).equal(codes[: len(table.to_batches()[0])])
    assert len(from_arrow(table.slice(0, 0), DIM)) == 0


class Unjoined:
    """A column whose chunks together are more than Arrow joins."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks, self.type = column.chunks, column.type


def test_chunks_are_never_joined_by_arrow():
    """Joined, 2^31 numbers and more overflow the offsets of a list."""
    codes = SparseCodes.from_dense(torch.rand(7, DIM), k=4)
    table = table_of(codes, in_chunks)
    unjoined = SimpleNamespace(
        schema=table.schema, column=lambda name: Unjoined(table.column(name))
    )
    assert from_arrow(unjoined, DIM).equal(codes)


def test_columns_without_rows():
    for kind in (pa.null(), pa.string(), pa.list_(pa.float32()), pa.list_view(pa.int16())):
        nothing = pa.chunked_array([], kind)
        for column in (nothing, pa.array([], kind)):
            table = pa.table({"indices": column, "values": column})
            if kind == pa.list_(pa.float32()):
                table = table.set_column(0, "indices", pa.array([], pa.list_(pa.int32())))
            assert from_arrow(table, DIM, k=3).shape == (0, DIM)
    rows = pa.table({"indices": [[], []], "values": [[], []]})
    assert from_arrow(rows, DIM).to_dense().count_nonzero() == 0


def test_pandas():
    pandas = pytest.importorskip("pandas")
    codes = SparseCodes.from_dense(torch.relu(torch.randn(9, DIM) - 2), k=4)
    frame = to_pandas(codes)
    assert list(frame.columns) == ["indices", "values"]
    assert frame["indices"][0].dtype == np.int32
    assert from_pandas(frame, DIM, k=4).equal(codes)
    as_lists = frame.map(list)
    assert from_pandas(as_lists, DIM, k=4).to(torch.float32).equal(codes)
    assert len(from_pandas(to_pandas(codes[:0]), DIM)) == 0
    assert from_pandas(frame[frame["indices"].map(len) > 1], DIM, k=4).equal(
        codes[(codes.active.sum(1) > 1).numpy()]
    )
    assert isinstance(frame, pandas.DataFrame)


BAD = [
    ({"indices": [[1]]}, KeyError, "no column 'values'; the table has indices"),
    ({"indices": [1], "values": [[1.0]]}, TypeError, "'indices': expected lists"),
    ({"indices": [["a"]], "values": [[1.0]]}, TypeError, "lists of integers"),
    ({"indices": [[True]], "values": [[1.0]]}, TypeError, "lists of integers"),
    ({"indices": [[1.0]], "values": [[1.0]]}, TypeError, "lists of integers"),
    ({"indices": [[Decimal(1)]], "values": [[1.0]]}, TypeError, "lists of integers"),
    ({"indices": [[[1]]], "values": [[1.0]]}, TypeError, "lists of integers"),
    ({"indices": [[1, 2]], "values": [[1.0]]}, ValueError, "row 0: expected as many"),
    ({"indices": [[1], None], "values": [[1.0], None]}, ValueError, "missing"),
    ({"indices": [[None]], "values": [[1.0]]}, ValueError, "missing"),
    ({"indices": pa.nulls(2), "values": pa.nulls(2)}, TypeError, "expected lists of numbers"),
    ({"indices": [[DIM]], "values": [[1.0]]}, ValueError, "row 0: .*latents in 0..49, got 50"),
    ({"indices": [[1], [-1]], "values": [[1.0]] * 2}, ValueError, "row 1: .*0..49, got -1"),
    ({"indices": [[3, 3]], "values": [[1.0, 2.0]]}, ValueError, "distinct latents"),
    ({"indices": [[], [3, 4]], "values": [[], [1.0, -2.0]]}, ValueError, "row 1: .*got -2.0"),
    ({"indices": [[3]], "values": [[math.nan]]}, ValueError, "row 0: .*got nan"),
    ({"indices": [[3]], "values": [[math.inf]]}, ValueError, "row 0: .*got inf for latent 3"),
    (
        {
            "indices": [[3]],
            "values": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((1, 1, 2))),
        },
        TypeError,
        "'values': expected lists of numbers, got extension<arrow.fixed_shape_tensor",
    ),
]


@pytest.mark.parametrize(("columns", "error", "message"), BAD)
def test_bad_tables_are_explained(columns, error, message):
    with pytest.raises(error, match=message):
        from_arrow(pa.table(columns), DIM)
    with pytest.raises(ValueError, match="row 1: expected as many values"):
        from_pairs([([1], [1.0]), ([1, 2], [1.0])], DIM)


def test_what_is_no_table_is_explained():
    twice = pa.table([[[1]], [[1]], [[1.0]]], names=["indices", "indices", "values"])
    with pytest.raises(KeyError, match="2 columns 'indices'"):
        from_arrow(twice, DIM)
    with pytest.raises(TypeError, match="expected a pyarrow table or record batch, got dict"):
        from_arrow({"indices": [[1]], "values": [[1.0]]}, DIM)
    with pytest.raises(TypeError, match="got RecordBatchReader"):
        from_arrow(twice.to_reader(), DIM)
    table = pa.table({"indices": [[1]], "values": [[1.0]]})
    for dim, k in ((0, None), (DIM, 0), (DIM, -1), (DIM, DIM + 1)):
        with pytest.raises(ValueError, match="expected"):
            from_arrow(table, dim, k=k)
    for dim, k in ((5.0, None), (DIM, 1.0), (True, None), (DIM, True)):
        with pytest.raises(TypeError, match="expected an int"):
            from_arrow(table, dim, k=k)
    assert from_arrow(table, np.int64(DIM), k=np.int64(1)).k == 1


def test_bad_frames_are_explained():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(KeyError, match="expected one column 'values'; the frame has indices"):
        from_pandas(pandas.DataFrame({"indices": [[1]]}), DIM)
    with pytest.raises(TypeError, match="'values': expected lists of numbers"):
        from_pandas(pandas.DataFrame({"indices": [[1], [2]], "values": [[1.0], "a"]}), DIM)
    with pytest.raises(ValueError, match="missing"):
        from_pandas(pandas.DataFrame({"indices": [[1], [2]], "values": [[1.0], None]}), DIM)
    with pytest.raises(ValueError, match=r"row 1: .*got -1\.0"):
        from_pandas(pandas.DataFrame({"indices": [[1], [2]], "values": [[1.0], [-1.0]]}), DIM)


@pytest.mark.parametrize(
    ("latents", "values", "message"),
    [
        ([1.7], [1.0], "row 1: latents: expected integers"),
        (["1"], [1.0], "row 1: latents: expected integers"),
        ([True], [1.0], "row 1: latents: expected numbers, got a bool"),
        ([2, True], [1.0, 0.5], "row 1: latents: expected numbers, got a bool"),
        ([2**70], [1.0], "row 1: latents: expected integers in"),
        ([1], ["1.0"], "row 1: values: expected real numbers"),
        ([1, 2], [1.0, True], "row 1: values: expected numbers, got a bool"),
        ([1], [None], "row 1: values: expected real numbers"),
        ([1], [10**400], "row 1: values: expected float32"),
        ([1], [-0.5], "row 1: expected finite weights of at least 0, .* got -0.5 for latent 1"),
        ([1], [math.nan], "row 1: .*got nan"),
        ([DIM], [1.0], "row 1: expected latents in 0..49, got 50"),
        ([3, 3], [1.0, 2.0], "row 1: latent 3 occurs twice"),
        ([[1]], [[1.0]], "row 1: expected as many values"),
    ],
)
def test_pairs_that_are_no_codes_are_refused(latents, values, message):
    good = (np.array([1, 0], np.uint8), [1.0, 0.0])
    with pytest.raises(ValueError, match=message):
        from_pairs([good, (latents, values)], DIM)


def test_pairs_of_empty_slots():
    codes = from_pairs([([5, 0, 0], [1, 0, 0]), ([], []), ([0, 9], [-0.0, 2.5])], DIM)
    assert codes.to_dense().nonzero().tolist() == [[0, 5], [2, 9]]


INVALID = {
    "distinct latents is broken in row 1": ([[2.0, 1.0], [2.0, 1.0]], [[1, 2], [3, 3]]),
    "values not negative is broken in row 0": ([[1.0, -2.0]], [[1, 2]]),
    "indices in 0..dim-1 is broken in row 0": ([[1.0, 1.0]], [[1, DIM]]),
    "codes: row 1 holds 1 values that are not finite": (
        [[1.0, 0], [math.nan, 1]],
        [[1, 0], [1, 2]],
    ),
    "codes: row 0 holds 2 values that are not finite": ([[math.inf, math.inf]], [[1, 2]]),
}


@pytest.mark.parametrize("message", INVALID)
@pytest.mark.parametrize("write", [to_arrow, to_pandas])
def test_invalid_codes_are_not_written(message, write):
    pytest.importorskip("pandas")
    values, indices = INVALID[message]
    codes = SparseCodes(torch.tensor(values), torch.tensor(indices, dtype=torch.int32), DIM)
    with pytest.raises(ValueError, match=message):
        write(codes)


def test_duckdb_scores_as_the_index_does():
    duckdb = pytest.importorskip("duckdb")
    from docs_blocks import ROOT, blocks

    (block,) = (b for b in blocks(ROOT / "docs/integrations.md") if b.needs == "duckdb")
    search = re.search(r'best = """(.*?)"""', block.code, re.DOTALL)[1]
    codes = SparseCodes.from_dense(torch.rand(300, DIM), k=8)
    queries = SparseCodes.from_dense(torch.rand(9, DIM), k=5)
    rows = to_arrow(codes).append_column("id", [np.arange(300)])
    asked = to_arrow(queries).append_column("query", [np.arange(9)])
    with duckdb.connect() as database:
        database.execute("CREATE TABLE documents AS FROM rows")
        database.register("asked", asked)
        found = database.execute(search).fetchall()
        stored = database.sql("SELECT indices, values FROM documents ORDER BY id DESC")
        back = from_arrow(stored.to_arrow_table(), DIM, k=8)
    assert back.equal(codes[np.arange(300)[::-1]])
    assert rows.num_rows == 300  # which DuckDB found by its name
    expected = InvertedIndex.build(codes, dtype="float32", metric="ip").search(queries, 10)
    assert [query for query, _, _ in found] == np.repeat(np.arange(9), 10).tolist()
    assert [id for _, id, _ in found] == expected[1].ravel().tolist()
    np.testing.assert_allclose([score for *_, score in found], expected[0].ravel(), rtol=1e-6)


def test_lancedb_keeps_codes_and_payload(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    codes = SparseCodes.from_dense(torch.rand(300, DIM), k=8)
    codes.fingerprint = "0123456789abcdef"
    titles = [f"title {i}" for i in range(300)]
    table = lancedb.connect(tmp_path).create_table(
        "documents", to_arrow(codes).append_column("title", [titles])
    )
    stored = table.to_arrow()
    back = from_arrow(stored, DIM, k=8)
    assert back.equal(codes)
    assert back.fingerprint == codes.fingerprint
    assert stored["title"].to_pylist() == titles
    found = table.search().where("title = 'title 7'").to_arrow()
    assert from_arrow(found, DIM, k=8).equal(codes[7:8])


def test_hugging_face_datasets_map():
    datasets = pytest.importorskip("datasets")
    from test_examples import example

    x = torch.randn(50, 24)
    dataset = datasets.Dataset.from_dict({"embedding": x.tolist(), "name": list(range(50))})
    model, coded = example("datasets_map").encode_column(dataset, k=4, steps=5)
    assert set(coded.column_names) == {"embedding", "name", "indices", "values"}
    codes = example("datasets_map").codes_of(coded, model.hidden_dim)
    np.testing.assert_allclose(codes.to_dense(), model.encode(x.numpy()).to_dense(), atol=1e-6)


class OnlyDLPack:
    """An array of a library that speaks DLPack and neither NumPy's nor the buffer protocol."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_dlpack_where_arrays_are():
    x = torch.randn(20, 6)
    assert torch.equal(load_embeddings(OnlyDLPack(x)), x)
    assert torch.equal(load_labels(OnlyDLPack(torch.arange(3))), torch.arange(3))
    codes = SparseCodes.from_dense(torch.rand(20, 30), k=4)
    pair = OnlyDLPack(codes.values), OnlyDLPack(codes.indices)
    assert SparseCodes.from_numpy(*pair, 30).equal(codes)
    ids = torch.arange(20) * 3
    index = InvertedIndex.build(pair, OnlyDLPack(ids), dim=30)
    expected = InvertedIndex.build(codes, ids.numpy())
    for options in (
        {"filter": OnlyDLPack(ids % 2 == 0)},
        {"filter": OnlyDLPack(ids[:5])},
        {"rerank": Rerank(OnlyDLPack(codes.to_dense()), offsets=OnlyDLPack(torch.ones(20)))},
    ):
        want = {"filter": options.get("filter") and options["filter"].tensor.numpy()}
        if "rerank" in options:
            want["rerank"] = Rerank(codes.to_dense(), offsets=torch.ones(20))
        for a, b in zip(index.search(pair, **options), expected.search(codes, **want), strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(TypeError, match="values of codes: OnlyDLPack does not fit NumPy"):
        InvertedIndex.build((OnlyDLPack(codes.values.bfloat16()), pair[1]), dim=30)
