"""Codes as list columns of pyarrow, pandas and Hugging Face datasets, and arrays by DLPack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern import InvertedIndex, Rerank, SparseCodes
from csrkern.integrations.rows import codes_of_pairs, rows_of
from csrtrain import encode_all, load_embeddings, load_labels

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


@settings(deadline=None, max_examples=50)
@given(some_codes())
def test_there_and_back(codes):
    table = to_arrow(codes)
    assert table.num_rows == len(codes)
    assert table.schema.field("indices").type == pa.list_(pa.int32())
    assert from_arrow(table, DIM, k=codes.k).equal(codes)
    assert from_arrow(table, DIM, k=codes.k).dtype == codes.dtype
    longest = int(codes.active.sum(1).max()) if len(codes) else 0
    assert from_arrow(table, DIM).k == max(1, longest)
    assert codes_of_pairs(rows_of(codes.to(torch.float32)), DIM, codes.k).equal(
        codes.to(torch.float32)
    )


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
    ({"indices": [[1, 2]], "values": [[1.0]]}, ValueError, "row 0: expected as many"),
    ({"indices": [[1], None], "values": [[1.0], None]}, ValueError, "missing"),
    ({"indices": [[None]], "values": [[1.0]]}, ValueError, "missing"),
    ({"indices": [[DIM]], "values": [[1.0]]}, ValueError, "latents in 0..49, got 50"),
    ({"indices": [[3, 3]], "values": [[1.0, 2.0]]}, ValueError, "distinct latents"),
]


@pytest.mark.parametrize(("columns", "error", "message"), BAD)
def test_bad_tables_are_explained(columns, error, message):
    with pytest.raises(error, match=message):
        from_arrow(pa.table(columns), DIM)
    with pytest.raises(ValueError, match="row 1: expected as many values"):
        codes_of_pairs([([1], [1.0]), ([1, 2], [1.0])], DIM)


def test_hugging_face_datasets_map():
    datasets = pytest.importorskip("datasets")
    from test_examples import example

    x = torch.randn(50, 24)
    dataset = datasets.Dataset.from_dict({"embedding": x.tolist(), "name": list(range(50))})
    model, coded = example("datasets_map").encode_column(dataset, k=4, steps=5)
    assert set(coded.column_names) == {"embedding", "name", "indices", "values"}
    codes = example("datasets_map").codes_of(coded, model.hidden_dim)
    np.testing.assert_allclose(codes.to_dense(), encode_all(model, x).to_dense(), atol=1e-6)


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
