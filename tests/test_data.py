"""Reading embeddings and labels: every format, and what is wrong with bad files."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csrtrain import data as data_module
from csrtrain import load_embeddings, load_labels
from csrtrain.data import chunks, rows


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)


@pytest.fixture
def y() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, 50)


def as_tensor(array) -> torch.Tensor:
    return rows(array, slice(None))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npy_is_memory_mapped(tmp_path, x, dtype):
    np.save(tmp_path / "x.npy", x.astype(dtype))
    array = load_embeddings(tmp_path / "x.npy")
    assert isinstance(array, np.memmap)
    assert array.dtype == dtype
    assert torch.equal(as_tensor(array), torch.from_numpy(x.astype(dtype)).float())


def test_npz_takes_the_only_fitting_array(tmp_path, x, y):
    np.savez(tmp_path / "x.npz", emb=x, label=y, names=np.array(["a", "b"]))
    assert np.array_equal(load_embeddings(str(tmp_path / "x.npz")), x)
    with pytest.raises(
        ValueError, match=r"several arrays that would do.*label \[50\] int64.*names"
    ):
        load_labels(tmp_path / "x.npz")
    assert torch.equal(load_labels(tmp_path / "x.npz", "label"), torch.from_numpy(y))


def test_npz_with_several_candidates_names_them(tmp_path, x):
    np.savez(tmp_path / "x.npz", train=x, test=x[:3])
    with pytest.raises(
        ValueError, match=r"name one as key.*train \[50, 6\] float32, test \[3, 6\]"
    ):
        load_embeddings(tmp_path / "x.npz")
    assert len(load_embeddings(tmp_path / "x.npz", "test")) == 3
    with pytest.raises(ValueError, match=r"no array 'dev'; it holds: train"):
        load_embeddings(tmp_path / "x.npz", "dev")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensor_files(tmp_path, x, y, dtype, suffix):
    path = tmp_path / f"x{suffix}"
    content = {"emb": torch.from_numpy(x).to(dtype), "y": torch.from_numpy(y)}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    array = load_embeddings(path)
    assert array.dtype == dtype
    assert torch.equal(as_tensor(array), content["emb"].float())
    assert torch.equal(load_labels(path, n=50), content["y"])


def test_a_plain_tensor_saved_alone(tmp_path, x):
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    assert torch.equal(as_tensor(load_embeddings(tmp_path / "x.pt")), torch.from_numpy(x))


def test_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (sys.exit, (1,))

    torch.save(Evil(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a readable weights-only PyTorch file"):
        load_embeddings(tmp_path / "x.pt")


@pytest.mark.parametrize("fixed", [False, True])
def test_parquet_list_columns(tmp_path, x, y, fixed):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), 6) if fixed else pa.list_(pa.float32())
    names = [f"label {v}" for v in y]
    table = pa.table({"emb": pa.array(list(x), kind), "label": names, "row": np.arange(50)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20)
    assert torch.equal(as_tensor(load_embeddings(tmp_path / "x.parquet")), torch.from_numpy(x))
    expected = torch.from_numpy(np.unique(names, return_inverse=True)[1])
    assert torch.equal(load_labels(tmp_path / "x.parquet", "label"), expected)
    with pytest.raises(ValueError, match="name one as key"):
        load_labels(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1.0, 2.0], [3.0]], "lists of one length, got 1 to 2"),
        ([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], "lists of one length, got 1 to 3"),
        ([[1.0, 2.0], None], "1 rows are empty"),
        ([[1.0, None], [1.0, 2.0]], "empty"),
    ],
)
def test_ragged_or_empty_parquet_lists(tmp_path, lists, message):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"emb": pa.array(lists, pa.list_(pa.float32()))}), tmp_path / "x.parquet"
    )
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "x.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'csrkern\[parquet\]'"):
        load_embeddings(tmp_path / "x.parquet")


def test_arrays_and_tensors_pass_through(x):
    assert load_embeddings(x) is x
    assert load_embeddings(torch.from_numpy(x)).shape == (50, 6)
    swapped = x.astype(">f4")
    assert torch.equal(as_tensor(load_embeddings(swapped)), torch.from_numpy(x))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((3, 2, 2), np.float32), ValueError, r"shape \[n, d\], got \[3, 2, 2\]"),
        (np.zeros(3, np.float32), ValueError, r"shape \[n, d\], got \[3\]"),
        (
            np.zeros((0, 4), np.float32),
            ValueError,
            r"at least one row and one column, got \[0, 4\]",
        ),
        (
            np.zeros((4, 0), np.float32),
            ValueError,
            r"at least one row and one column, got \[4, 0\]",
        ),
        (np.zeros((3, 2), np.int64), TypeError, "floating-point embeddings, got int64"),
        (np.zeros((3, 2), object), TypeError, "floating-point embeddings, got object"),
        ([[1.0]], TypeError, "expected a path, a NumPy array or a tensor, got list"),
    ],
)
def test_arrays_that_are_not_embeddings(array, error, message):
    with pytest.raises(error, match=message):
        load_embeddings(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(x, bad, monkeypatch):
    monkeypatch.setattr(data_module, "_CHUNK_BYTES", 4 * 6 * 8)  # 8 rows a chunk
    x[[37, 45], 2] = bad
    with pytest.raises(ValueError, match=f"^embeddings: row 37 holds 1 values .* finite.*{bad}"):
        load_embeddings(x)
    assert load_embeddings(x, check_finite=False) is x


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet", ".pt"])
def test_damaged_files_give_one_clear_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    for content in (b"", b"not such a file at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable") as caught:
            load_embeddings(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"not a readable \.npy file"):
        load_embeddings(tmp_path / "x.npy")


def test_missing_files_and_unknown_suffixes(tmp_path, x):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_embeddings(tmp_path / "x.npy")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"ends in \.npy, \.npz, \.safetensors"):
        load_embeddings(tmp_path / "x.csv")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="leave out the key 'emb'"):
        load_embeddings(tmp_path / "x.npy", "emb")


def test_arrays_are_called_what_the_argument_is(x, y):
    for wrong in (x[0], torch.from_numpy(x[0])):
        with pytest.raises(ValueError, match=r"^embeddings: expected embeddings of shape"):
            load_embeddings(wrong)
    with pytest.raises(TypeError, match=r"^labels: expected a path, a NumPy array or a tensor"):
        load_labels(y.tolist())


def test_labels_of_every_kind(y):
    assert torch.equal(load_labels(y.astype(np.uint8)), torch.from_numpy(y))
    assert torch.equal(load_labels(torch.from_numpy(y).int()), torch.from_numpy(y))
    assert load_labels(np.array(["b", "a", "b"])).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"^labels: expected 3 labels, one for each .* got 50"):
        load_labels(y, n=3)
    with pytest.raises(TypeError, match="labels: expected integer or string labels, got float64"):
        load_labels(y.astype(float))
    with pytest.raises(ValueError, match=r"shape \[n\], got \[5, 10\]"):
        load_labels(y.reshape(5, 10))


def test_chunks_cover_every_row_once(x, monkeypatch):
    monkeypatch.setattr(data_module, "_CHUNK_BYTES", 4 * 6 * 7)
    pieces = list(chunks(x))
    assert [start for start, _ in pieces] == list(range(0, 50, 7))
    assert torch.equal(torch.cat([piece for _, piece in pieces]), torch.from_numpy(x))


def test_rows_own_their_memory(x):
    for array in (x, torch.from_numpy(x)):
        picked = rows(array, torch.tensor([3, 1]))
        assert torch.equal(picked, torch.from_numpy(x[[3, 1]]))
        picked.zero_()
        assert np.any(x[3])
        whole = rows(array, slice(0, 2))
        whole.zero_()
        assert np.any(x[0])
