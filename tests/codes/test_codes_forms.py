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

from csrkern import PackedCodes, SparseCodes, reference

NAN, INF = float("nan"), float("inf")
CSR_IS_BETA = pytest.mark.filterwarnings("ignore:Sparse")

# Forms of other programs hold finite values only; the rest any codes.
OF_OTHERS = ("dense", "torch COO", "torch CSR", "scipy", "numpy")
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
            if form in OF_OTHERS and not bool(codes.values.isfinite().all()):
                with pytest.raises(ValueError, match=r"expected finite entries, got .* in row"):
                    ROUND_TRIPS[form](codes)
                continue
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
    finite = bool(codes.values.isfinite().all())
    for name, round_trip in ROUND_TRIPS.items():
        if finite or name not in OF_OTHERS:
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
    with pytest.raises(ValueError, match="k: expected 1 <= k <= dim = 4, got 5"):
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
    values = np.array([[1.0, 0.0, 3.0, 1.0], [0.0, -0.0, 2.0, 4.0]], np.float32)
    indices = np.array([[7, 99, 2, 5], [-1, 2**40, 1, 0]], np.int64)
    codes = SparseCodes.from_numpy(values, indices, 8)
    assert codes.indices.tolist() == [[2, 5, 7, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(codes.values, [[3.0, 1.0, 1.0, 0.0], [4.0, 2.0, 0.0, 0.0]])
    assert values[0, 2] == 3.0  # the caller's array is left alone
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
        ([[0.0], [1.0]], [[-5], [-5]], "indices: expected latents in 0..7, got -5 in row 1"),
        ([[1.0], [-2.0]], [[0], [0]], "values: expected no negative entries, got -2.0 in row 1"),
        ([[1.0], [-INF]], [[0], [0]], "values: expected no negative entries, got -inf in row 1"),
        ([[1.0], [NAN]], [[0], [0]], "values: expected finite entries, got nan in row 1"),
        ([[1.0], [INF]], [[0], [0]], "values: expected finite entries, got inf in row 1"),
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


# ---- what other programs hand over ------------------------------------------------------


@pytest.mark.parametrize(
    "latents",
    [[[1.7]], [[True]], [["1"]], [[None]], [[b"1"]], [[1 + 0j]], np.array([[1.0]], object)],
    ids=str,
)
def test_latents_are_integers(latents):
    with pytest.raises(TypeError, match="indices: expected integers, got"):
        SparseCodes.from_numpy([[1.0]], latents, 5)


def test_no_bool_hides_among_integers():
    with pytest.raises(TypeError, match="indices: expected integers, got a bool"):
        SparseCodes.from_numpy([[1.0, 2.0]], [[3, True]], 5)


@pytest.mark.parametrize("latent", [2**63, 2**64, 2**70, -(2**70), 10**400])
def test_latents_beyond_any_integer_type(latent):
    with pytest.raises(ValueError, match=r"expected (integers|latents) in 0"):
        SparseCodes.from_numpy([[1.0]], [[latent]], 5)


@pytest.mark.parametrize("values", [[[True]], [["1.5"]], [[None]], [[1 + 2j]]], ids=str)
def test_values_are_real_numbers(values):
    with pytest.raises(TypeError, match="values: expected real numbers, got"):
        SparseCodes.from_numpy(values, [[1]], 5)


@pytest.mark.parametrize("dim", [5.0, "5", True, None, np.bool_(True)], ids=repr)
def test_dim_is_an_integer(dim):
    for make in (
        lambda: SparseCodes.from_numpy([[1.0]], [[1]], dim),
        lambda: SparseCodes(torch.ones(1, 1), torch.ones(1, 1).int(), dim),
    ):
        with pytest.raises(TypeError, match="dim: expected an int, got"):
            make()


def test_numpy_integers_are_integers():
    codes = SparseCodes.from_numpy([[1.0, 3.0]], [[1, 2]], np.int64(5))
    assert type(codes.dim) is int
    assert codes.truncate(np.int32(1)).k == 1
    assert SparseCodes.from_dense(torch.ones(2, 3), np.int64(2)).k == 2
    assert SparseCodes.from_scipy(codes.to_scipy(), np.uint8(3)).k == 3
    assert codes.power(np.float32(2)).values.tolist() == [[9.0, 1.0]]
    for k in (True, np.bool_(True), 1.0, "1"):
        with pytest.raises(TypeError, match="k: expected an int"):
            codes.truncate(k)
        with pytest.raises(TypeError, match="k: expected an int"):
            SparseCodes.from_scipy(codes.to_scipy(), k)
    for exponent in (True, "2"):
        with pytest.raises(TypeError, match="exponent: expected a number"):
            codes.power(exponent)


INTEGERS = [np.int8, np.int32, np.int64, np.uint8, np.uint16, np.uint64]


@CSR_IS_BETA
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_values_become_float32(dtype):
    counts = np.array([[0, 3, 7], [1, 0, 0]], dtype)
    want = SparseCodes.from_dense(torch.tensor(counts.astype(np.float32)))
    made = [
        SparseCodes.from_scipy(scipy.sparse.csr_array(counts)),
        SparseCodes.from_scipy(scipy.sparse.coo_array(counts)),
        SparseCodes.from_numpy(counts[:, 1:], [[1, 2], [0, 0]], 3),
    ]
    if dtype != np.uint64:
        dense = torch.from_numpy(counts.astype(np.int64))
        made += [SparseCodes.from_dense(dense), SparseCodes.from_torch(dense.to_sparse())]
        made += [SparseCodes.from_torch(dense.to_sparse_csr())]
    for codes in made[:2] + made[3:]:
        assert codes.dtype == torch.float32
        assert codes.equal(want)
    assert made[2].values.tolist() == [[7.0, 3.0], [0.0, 0.0]]


@CSR_IS_BETA
def test_integers_that_float32_rounds_are_refused():
    large = np.array([[2**24 + 1, 1]])
    tensor = torch.from_numpy(large)
    for make in (
        lambda: SparseCodes.from_numpy(large, [[0, 1]], 3),
        lambda: SparseCodes.from_scipy(scipy.sparse.csr_array(large)),
        lambda: SparseCodes.from_dense(tensor),
        lambda: SparseCodes.from_torch(tensor.to_sparse()),
    ):
        with pytest.raises(ValueError, match=r"up to 2\^24, got 16777217; convert them to float64"):
            make()
    exact = SparseCodes.from_scipy(scipy.sparse.csr_array(large.astype(np.float64)))
    assert exact.values.tolist() == [[16777217.0, 1.0]]


@CSR_IS_BETA
@pytest.mark.parametrize("dtype", [np.bool_, np.complex64, object], ids=str)
def test_what_is_no_real_number_is_refused(dtype):
    matrix = scipy.sparse.csr_array(np.eye(2, dtype=bool)).astype(np.float32)
    matrix.data = matrix.data.astype(dtype)
    with pytest.raises(TypeError, match="matrix: expected real numbers, got"):
        SparseCodes.from_scipy(matrix)
    if dtype is not object:
        dense = torch.from_numpy(np.eye(2).astype(dtype))
        for make in (
            lambda: SparseCodes.from_dense(dense),
            lambda: SparseCodes.from_torch(dense.to_sparse()),
            lambda: SparseCodes.from_torch(dense.to_sparse_csr()),
        ):
            with pytest.raises(TypeError, match="expected real numbers, got torch"):
                make()


@pytest.mark.filterwarnings("error")
def test_arrays_of_any_memory_do():
    values, indices = np.array([[2.0, 1.0], [3.0, 0.0]]), np.array([[4, 1], [2, 0]])
    want = SparseCodes.from_numpy(values, indices, 5)
    locked = [part.copy() for part in (values, indices)]
    for part in locked:
        part.flags.writeable = False
    spread = np.zeros((4, 8))[::2, ::4], np.zeros((4, 8), np.int32)[::2, ::4]
    for part, whole in zip(spread, (values, indices), strict=True):
        part[:] = whole
    for form in (
        locked,
        spread,
        [values.astype(">f8"), indices.astype(">i4")],
        [np.asfortranarray(values), np.asfortranarray(indices)],
        [values[:, ::-1], indices[:, ::-1]],
        [values.tolist(), indices.tolist()],
        [torch.tensor(values), torch.tensor(indices)],
    ):
        assert SparseCodes.from_numpy(*form, 5).equal(want)
    assert SparseCodes.from_numpy(values.astype(np.longdouble), indices, 5).equal(want)
    matrix = want.to_scipy()
    for data in (matrix.data.astype(">f8"), locked[0].ravel()[:3]):
        other = matrix.copy()
        other.data = data
        assert SparseCodes.from_scipy(other).shape == (2, 5)


def hand_made(indptr, indices, data, shape, form=scipy.sparse.csr_array):
    """A matrix of these arrays, which SciPy did not see."""
    matrix = form(shape, dtype=np.float64)
    matrix.indptr, matrix.indices = np.array(indptr), np.array(indices)
    matrix.data = np.array(data, np.float64)
    return matrix


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2, 1, 3], [0, 1, 2], "starts from 0 that never decrease"),
        ([1, 2, 2, 3], [0, 1, 2], "starts from 0 that never decrease"),
        ([0, 1, 2, 2**40], [0, 1, 2], "end within the 3 entries"),
        ([0, 1, 2, -5], [0, 1, 2], "starts from 0 that never decrease"),
        ([0, 1, 3], [0, 1, 2], "expected 4 row starts"),
        ([0, 1, 2, 3, 3], [0, 1, 2], "expected 4 row starts"),
        ([0, 1, 2, 3], [0, 1], "end within the 2 entries"),
        ([0, 1, 2, 3], [0, 3, 2], r"expected (latents in 0\.\.2, got 3 in row 1|rows in 0\.\.2)"),
        ([0, 1, 2, 3], [0, -1, 2], r"got -1"),
        ([0, 1, 2, 3], [0, 2**31, 2], "got 2147483648"),
        ([0, 1, 2, 3], [0.0, 1.0, 2.0], "expected integers, got float64"),
    ],
)
def test_arrays_of_a_matrix_that_do_not_fit_together(form, indptr, indices, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SparseCodes.from_scipy(hand_made(indptr, indices, [1, 2, 3], (3, 3), form))


def test_what_a_matrix_says_of_itself_is_not_believed():
    twice = hand_made([0, 2, 5], [3, 3, 2, 1, 2], [1, 2, 1, 1, 4], (2, 6))
    twice.has_canonical_format = twice.has_sorted_indices = True
    codes = SparseCodes.from_scipy(twice)
    assert codes.validate().values.tolist() == [[3.0, 0.0], [5.0, 1.0]]
    assert codes.indices.tolist() == [[3, 0], [2, 1]]
    assert twice.nnz == 5  # the caller's matrix is left alone
    spare = hand_made([0, 1, 2], [3, 2, 77, 88], [1, 2, -1, -1], (2, 6))
    assert SparseCodes.from_scipy(spare).indices.tolist() == [[3], [2]]
    coo = scipy.sparse.coo_array((2, 6), dtype=np.float64)
    coo.coords, coo.data = (np.array([0, 1]), np.array([5, 6])), np.ones(2)
    with pytest.raises(ValueError, match=r"expected latents in 0\.\.5, got 6 in row 1"):
        SparseCodes.from_scipy(coo)


@CSR_IS_BETA
def test_unchecked_torch_tensors():
    def csr(starts, latents, values, shape):
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            return torch.sparse_csr_tensor(
                torch.tensor(starts), torch.tensor(latents), torch.tensor(values), shape
            )

    def coo(rows, latents, values, shape, coalesced=None):
        return torch.sparse_coo_tensor(
            torch.tensor([rows, latents]), torch.tensor(values), shape,
            check_invariants=False, is_coalesced=coalesced,
        )  # fmt: skip

    for twice in (
        csr([0, 2], [1, 1], [1.0, 2.0], (1, 4)),
        coo([0, 0], [1, 1], [1.0, 2.0], (1, 4)),
        coo([0, 0], [1, 1], [1.0, 2.0], (1, 4), coalesced=True),
    ):
        codes = SparseCodes.from_torch(twice).validate()
        assert (codes.values.tolist(), codes.indices.tolist()) == ([[3.0]], [[1]])
    unsorted = coo([1, 0], [0, 3], [1.0, 2.0], (2, 4), coalesced=True)
    assert SparseCodes.from_torch(unsorted).indices.tolist() == [[3], [0]]
    for wrong, message in (
        (csr([0, 1], [9], [1.0], (1, 4)), "expected latents in 0..3, got 9 in row 0"),
        (csr([0, 1], [-1], [1.0], (1, 4)), "expected latents in 0..3, got -1 in row 0"),
        (coo([0], [9], [1.0], (1, 4)), "expected latents in 0..3, got 9 in row 0"),
        (coo([1], [-3], [1.0], (2, 4)), "expected latents in 0..3, got -3 in row 1"),
        (coo([-1], [1], [1.0], (2, 4)), "expected rows in 0..1, got -1"),
        (coo([2], [1], [1.0], (2, 4)), "expected rows in 0..1, got 2"),
        (csr([0, 9], [1], [1.0], (1, 4)), "end within the 1 entries"),
        (csr([0, -1, 1], [1], [1.0], (2, 4)), "never decrease"),
        (csr([0, 1], [1], [NAN], (1, 4)), "expected finite entries, got nan in row 0"),
        (coo([0], [1], [INF], (1, 4)), "expected finite entries, got inf in row 0"),
        (csr([0, 1], [1], [-1.0], (1, 4)), "expected no negative entries, got -1.0 in row 0"),
    ):
        with pytest.raises(ValueError, match=f"sparse: .*{message}"):
            SparseCodes.from_torch(wrong)
    with pytest.raises(ValueError, match=r"sparse: expected a matrix \[n, dim\], got \[2, 3, 4\]"):
        SparseCodes.from_torch(torch.ones(2, 3, 4).to_sparse())
    with pytest.raises(ValueError, match="sparse: expected a matrix"):
        SparseCodes.from_torch(torch.ones(2, 3, 4).to_sparse(2))


@CSR_IS_BETA
def test_empty_matrices():
    for shape in ((0, 5), (3, 0), (0, 0), (3, 5)):
        k = min(1, shape[1])
        dense = torch.zeros(shape)
        for codes in (
            SparseCodes.from_scipy(scipy.sparse.csr_array(shape)),
            SparseCodes.from_scipy(scipy.sparse.coo_array(shape)),
            SparseCodes.from_torch(dense.to_sparse()),
            SparseCodes.from_torch(dense.to_sparse_csr()),
            SparseCodes.from_dense(dense),
        ):
            assert (codes.shape, codes.k) == (shape, k)
            assert codes.validate() is codes


def test_only_matrices_are_codes():
    with pytest.raises(TypeError, match="matrix: expected a SciPy sparse matrix, got ndarray"):
        SparseCodes.from_scipy(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"matrix: expected shape \[n, dim\], got \[4\]"):
        SparseCodes.from_scipy(scipy.sparse.coo_array(np.ones(4)))
    with pytest.raises(TypeError, match=r"use torch\.from_numpy\(dense\)"):
        SparseCodes.from_dense(np.ones((2, 3)))
    with pytest.raises(ValueError, match="dense: expected shape"):
        SparseCodes.from_dense(torch.ones(3))
    with pytest.raises(TypeError, match="sparse: expected a COO or CSR tensor, got layout ndarray"):
        SparseCodes.from_torch(np.ones((2, 3)))


@CSR_IS_BETA
def test_sparse_forms_are_differentiable():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    coo = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 3]], values, (2, 4))
    codes = SparseCodes.from_torch(coo)
    (codes.values * torch.tensor([[2.0], [5.0]])).sum().backward()
    assert values.grad.tolist() == [2.0, 2.0, 5.0]


# ---- PyTorch's files and loaders ----------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_protocols(protocol):
    codes = random_codes()
    codes.fingerprint = "0123456789abcdef"
    back = pickle.loads(pickle.dumps(codes, protocol))
    assert back.equal(codes)
    assert back.fingerprint == codes.fingerprint
    packed = pickle.loads(pickle.dumps(PackedCodes.pack(codes), protocol))
    assert packed.unpack().equal(PackedCodes.pack(codes).unpack())
    assert packed.fingerprint == codes.fingerprint


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_files_need_no_trust(dtype, tmp_path):
    codes = random_codes(dtype=dtype)
    torch.save({"codes": codes, "step": 3}, tmp_path / "checkpoint.pt")
    back = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert back["codes"].equal(codes)
    assert back["codes"].dtype == dtype


def test_copies():
    codes = random_codes()
    assert copy.copy(codes).values.data_ptr() == codes.values.data_ptr()
    for other in (copy.deepcopy(codes), codes.clone()):
        assert other.equal(codes)
        other.values.zero_()
        assert not other.equal(codes)
    assert codes.cpu().equal(codes)
    assert codes.to(torch.float64).float().dtype == torch.float32
    turned = SparseCodes(codes.values.T.contiguous().T, codes.indices.T.contiguous().T, codes.dim)
    assert turned.contiguous().values.is_contiguous()
    assert turned.contiguous().indices.is_contiguous()


def test_loaders_stack_rows():
    codes = random_codes()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.StackDataset(codes=codes, label=torch.arange(6)), batch_size=4
    )
    batches = list(loader)
    assert [len(batch["codes"]) for batch in batches] == [4, 2]
    assert SparseCodes.cat([batch["codes"] for batch in batches]).equal(codes)


def test_rows_are_iterated():
    codes = random_codes()
    rows = list(codes)
    assert len(rows) == len(codes)
    assert SparseCodes.cat(rows).equal(codes)
    assert len(list(PackedCodes.pack(codes))) == len(codes)


def test_codes_are_no_array():
    codes = random_codes()
    for made, hint in (
        (codes, r"codes\.to_dense\(\)"),
        (PackedCodes.pack(codes), r"packed\.unpack\(\)"),
    ):
        for convert in (np.asarray, np.array, lambda c: np.stack([c, c]), lambda c: np.ones(3) * c):
            with pytest.raises(TypeError, match=hint):
                convert(made)
    with pytest.raises(TypeError, match="are no array"):
        SparseCodes.from_numpy(codes, codes, 5)
