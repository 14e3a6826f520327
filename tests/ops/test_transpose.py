from __future__ import annotations

import numpy as np
import pytest
import torch
from adversarial import adversarial_rows
from digests import ISAS, assert_same_digests
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import DTYPES

import csrkern
from csrkern import SparseCodes, reference
from csrkern.ops.transpose import Postings, transpose


def random_codes(n: int, h: int, k: int) -> SparseCodes:
    """Skewed: low latents in most rows, high ones dead, every seventh row empty."""
    pre = torch.randn(n, h) - torch.linspace(-1.5, 4.0, h)
    pre[::7] = -1.0
    return csrkern.topk_relu(pre, k)


def assert_postings(found: Postings, codes: SparseCodes) -> None:
    """The active entries, sorted by latent and then by row, and zeros behind them."""
    values, indices = codes.values.float().numpy(), codes.indices.numpy()
    rows, slots = np.nonzero(values)  # by row; NaN counts
    latents = indices[rows, slots]
    order = np.argsort(latents, kind="stable")
    starts = np.searchsorted(latents[order], np.arange(codes.dim + 1))

    assert [part.dtype for part in found] == [torch.int64, torch.int32, torch.int32, torch.float32]
    assert found.starts.tolist() == starts.tolist()
    unused = codes.values.numel() - len(rows)
    for part, sorted_entries in (
        (found.rows, rows[order]),
        (found.slots, slots[order]),
        (found.values, values[rows, slots][order]),
    ):
        np.testing.assert_array_equal(part.numpy(), np.pad(sorted_entries, (0, unused)))


@pytest.mark.parametrize(("h", "k"), [(1, 1), (7, 7), (100, 1), (130, 64), (1000, 32), (4099, 300)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sorts_adversarial_codes(h, k, dtype):
    for name, pre in adversarial_rows(h, k).items():
        codes = reference.topk_relu(pre.to(dtype), k)
        try:
            assert_postings(transpose(codes), codes)
        except AssertionError as error:
            raise AssertionError(f"{name}, h={h}, k={k}, {dtype}: {error}") from error


@settings(max_examples=100)
@given(data=st.data())
def test_any_codes(data):
    h, n = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 30))
    k = data.draw(st.integers(1, h))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    codes = random_codes(n, h, k)
    assert_postings(transpose(codes), codes)
    narrow = codes.truncate(data.draw(st.integers(1, k)))
    assert_postings(transpose(narrow), narrow)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("h", [50, 3000, 20_000])
def test_many_rows_on_any_number_of_threads(threads, h):
    pre = torch.rand(6001, 50)
    pre[:, 5] = 2.0  # one latent in every row
    pre[:, 30:] = -1.0  # dead ones
    pre[1000:3000] = -1.0  # a stretch of rows with nothing, as wide as a thread's share
    codes = csrkern.topk_relu(pre, 20)
    codes = SparseCodes(codes.values, codes.indices, h)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            assert_postings(transpose(codes), codes)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("poisoned_empty")
def test_writes_every_place():
    for codes in (random_codes(20, 30, 6), random_codes(0, 30, 6), random_codes(1, 1, 1)):
        assert_postings(transpose(codes), codes)


def test_no_rows():
    postings = transpose(random_codes(0, 9, 3))
    assert postings.starts.tolist() == [0] * 10
    assert [len(part) for part in postings[1:]] == [0, 0, 0]


def test_strides():
    codes = random_codes(30, 50, 9)
    for part in (codes.truncate(4), codes[::2], codes[5:9].truncate(1)):
        assert_postings(transpose(part), part)
    columns = SparseCodes(codes.values.T.contiguous().T, codes.indices.T.contiguous().T, 50)
    assert_postings(transpose(columns), codes)


def test_is_not_differentiable():
    codes = random_codes(5, 20, 3)
    codes.values.requires_grad_()
    assert not any(part.requires_grad for part in transpose(codes))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_postings(isa):
    assert_same_digests("transpose", isa)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    codes = random_codes(12, 30, 5).to(dtype)
    torch.library.opcheck(torch.ops.csrkern.transpose.default, (codes.values, codes.indices, 30))


def test_compiles_whole_with_a_dynamic_batch():
    torch._dynamo.reset()
    compiled = torch.compile(transpose, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8, 21):
        codes = random_codes(n, 40, 5)
        assert_postings(Postings(*compiled(codes)), codes)


def test_errors_teach():
    with pytest.raises(TypeError, match="codes: expected SparseCodes, got Tensor"):
        transpose(torch.ones(2, 3))
