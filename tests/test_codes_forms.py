"""SparseCodes in other forms: dense, torch COO and CSR, SciPy, NumPy, pytree, pickle."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from adversarial import adversarial_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import DTYPES
from test_codes import random_codes
from torch.utils import _pytree

from csrkern import SparseCodes, reference

NAN = float("nan")
CSR_IS_BETA = pytest.mark.filterwarnings("ignore:Sparse")

ROUND_TRIPS = {
    "dense": lambda c: SparseCodes.from_dense(c.to_dense(), c.k),
    "torch COO": lambda c: SparseCodes.from_torch(c.to_torch_coo(), c.k),
    "torch CSR": lambda c: SparseCodes.from_torch(c.to_torch_csr(), c.k),
    "scipy": lambda c: SparseCodes.from_scipy(c.to_scipy(), c.k).to(c.dtype),
    "numpy": lambda c: SparseCodes.from_numpy(*c.numpy(), c.dim).to(c.dtype),
    "pytree": lambda c: _pytree.tree_unflatten(*_pytree.tree_flatten(c)),
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
    "deepcopy": copy.deepcopy,
    "cat of slices": lambda c: SparseCodes.cat([c[: len(c) // 2], c[len(c) // 2 :]]),
    "to and fro": lambda c: c.to(torch.float64).to(c.dtype),
}


@CSR_IS_BETA
@pytest.mark.parametrize("form", ROUND_TRIPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trips(form, dtype):
    for h, k in [(1, 1), (30, 30), (30, 5), (300, 1)]:
        for name, pre in adversarial_rows(h, k).items():
            codes = reference.topk_relu(pre.to(dtype), k)
            back = ROUND_TRIPS[form](codes).validate()
            assert back.dtype == dtype
            assert back.equal(codes), f"{name}, h={h}, k={k}"
    none = ROUND_TRIPS[form](random_codes(0, dtype=dtype))
    assert none.shape == (0, 30)
    assert none.k == 5


@CSR_IS_BETA
@settings(max_examples=50)
@given(data=st.data())
def test_any_codes_round_trip(data):
    n, h = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 12))
    k = data.draw(st.integers(1, h))
    dtype = data.draw(st.sampled_from(DTYPES))
    element = st.one_of(st.floats(width=16), st.sampled_from([0.0, -0.0, 1.0, 2.0, NAN]))
    rows = st.lists(st.lists(element, min_size=h, max_size=h), min_size=n, max_size=n)
    codes = reference.topk_relu(torch.tensor(data.draw(rows), dtype=dtype).reshape(n, h), k)
    for name, round_trip in ROUND_TRIPS.items():
        assert round_trip(codes).validate().equal(codes), name


def test_from_dense_keeps_every_entry_or_the_largest():
    dense = torch.tensor([[0.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    full = SparseCodes.from_dense(dense)
    assert full.k == 3
    assert full.indices.tolist() == [[1, 3, 2], [3, 0, 0], [0, 0, 0]]
    assert torch.equal(full.to_dense(), dense)
    assert SparseCodes.from_dense(dense, 1).indices.tolist() == [[1], [3], [0]]
    assert SparseCodes.from_dense(torch.zeros(2, 4)).k == 1
    with pytest.raises(ValueError, match="dense: expected no negative entries"):
        SparseCodes.from_dense(-dense)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= h = 4, got 5"):
        SparseCodes.from_dense(dense, 5)


def test_from_scipy_takes_any_format_and_sums_duplicates():
    entries = ([1.0, 5.0, 2.0, 4.0], ([0, 2, 0, 0], [3, 1, 3, 0]))
    for make_matrix in (scipy.sparse.coo_array, scipy.sparse.csc_matrix, scipy.sparse.csr_array):
        codes = SparseCodes.from_scipy(make_matrix(entries, shape=(3, 6)))
        assert codes.values.tolist() == [[4.0, 3.0], [0.0, 0.0], [5.0, 0.0]]
        assert codes.indices.tolist() == [[0, 3], [0, 0], [1, 0]]
        assert codes.dtype == torch.float64
    matrix = scipy.sparse.csr_array(([1.0, 2.0], [3, 3], [0, 2]), shape=(1, 6))
    assert SparseCodes.from_scipy(matrix).values.tolist() == [[3.0]]
    assert matrix.nnz == 2  # the caller's matrix is left alone


def test_from_sparse_forms_narrow_and_widen():
    codes = random_codes(8, 30, 6)
    for source, build in (
        (codes.to_scipy(), SparseCodes.from_scipy),
        (codes.to_torch_coo(), SparseCodes.from_torch),
    ):
        assert build(source, 2).equal(codes.truncate(2))
        wide = build(source, 30).validate()
        assert wide.k == 30
        assert wide.truncate(6).equal(codes)
        assert not bool(wide.active[:, 6:].any())
        for k in (0, 31):
            with pytest.raises(ValueError, match=f"k: expected 1 <= k <= dim = 30, got {k}"):
                build(source, k)
        with pytest.raises(ValueError, match="no negative entries"):
            build(-1 * source)


@CSR_IS_BETA
def test_from_torch_takes_unsorted_and_narrow_indices():
    coo = torch.sparse_coo_tensor([[1, 0, 1], [4, 2, 4]], [1.0, 2.0, 5.0], (2, 6))
    assert SparseCodes.from_torch(coo).values.tolist() == [[2.0], [6.0]]
    csr = random_codes().to_torch_csr()
    narrow = torch.sparse_csr_tensor(
        csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape
    )
    assert SparseCodes.from_torch(narrow, 5).equal(random_codes())
    with pytest.raises(
        TypeError, match=r"sparse: expected a COO or CSR tensor, got layout torch\.st"
    ):
        SparseCodes.from_torch(torch.ones(2, 3))


def test_stored_zeros_do_not_widen_the_codes():
    matrix = scipy.sparse.csr_array(([1.0, 0.0, 0.0], [1, 2, 3], [0, 3]), shape=(1, 6))
    assert SparseCodes.from_scipy(matrix).k == 1


def test_from_numpy_puts_slots_in_order():
    values = np.array([[1.0, -2.0, 3.0, 1.0], [0.0, 0.0, NAN, 4.0]], np.float32)
    indices = np.array([[7, 99, 2, 5], [-1, 3, 1, 0]], np.int64)
    codes = SparseCodes.from_numpy(values, indices, 8)
    assert codes.indices.tolist() == [[2, 5, 7, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(codes.values, [[3.0, 1.0, 1.0, 0.0], [NAN, 4.0, 0.0, 0.0]])
    assert values[0, 1] == -2.0  # the caller's array is left alone
    small = SparseCodes.from_numpy(values[:, ::3], np.array([[1, 2], [3, 4]], np.uint16), 8)
    assert small.indices.tolist() == [[1, 2], [4, 0]]


@pytest.mark.parametrize(
    ("values", "indices", "message"),
    [
        ([[1.0, 2.0]], [[3, 3]], "distinct latents is broken in row 0"),
        ([[0.0, 0.0], [1.0, 1.0]], [[0, 0], [3, 3]], "is broken in row 1"),
        ([[1.0]], [[8]], "indices: expected latents in 0..7"),
        ([[1.0]], [[-1]], "indices: expected latents in 0..7"),
        ([[1.0]], [[2**32 + 3]], "indices: expected latents in 0..7"),
        ([[1.0, 2.0]], [[3, 4, 5]], "one shape"),
    ],
)
def test_from_numpy_errors_teach(values, indices, message):
    with pytest.raises(ValueError, match=message):
        SparseCodes.from_numpy(np.array(values, np.float32), np.array(indices), 8)


@CSR_IS_BETA
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_forms_hold_the_dense_matrix(dtype):
    codes = random_codes(9, dtype=dtype)
    dense = codes.to_dense()
    coo, csr, matrix = codes.to_torch_coo(), codes.to_torch_csr(), codes.to_scipy()
    assert coo.is_coalesced()
    assert torch.equal(coo.to_dense(), dense)
    assert torch.equal(coo.indices(), dense.nonzero().T)
    assert torch.equal(csr.to_dense(), dense)
    assert csr.dtype == coo.dtype == dtype
    assert matrix.has_sorted_indices
    np.testing.assert_array_equal(matrix.toarray(), dense.double().numpy())
    values, indices = codes.numpy()
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(values, codes.values.double().numpy())
