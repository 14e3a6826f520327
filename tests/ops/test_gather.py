"""gather_sum, gather_dot and scatter_sum on several prefixes; test_decode has the common case."""

from __future__ import annotations

import pytest
import torch
from digests import ISAS, assert_same_digests
from opchecks import assert_threads_do_not_matter
from sums import DTYPES, assert_sums_close, small_integers
from torch import Tensor

import csrkern
import csrkern.ops.gather
import csrkern.ops.transpose
from csrkern import SparseCodes

ops = torch.ops.csrkern

ENDS = [[8], [1], [3, 8], [1, 2, 3, 4, 5, 6, 7, 8], [2, 5]]
WIDTHS = [1, 5, 16, 40, 300]


def random_codes(n: int, dtype: torch.dtype, h: int = 60, k: int = 8) -> SparseCodes:
    """Some rows with fewer than k active latents, every fifth with none, odd latents dead."""
    pre = torch.randn(n, h)
    pre[:, 1::2] = -1.0
    pre[::5] = -1.0
    pre[1::5, 6:] = -1.0
    return csrkern.topk_relu(pre, k).to(dtype)


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def dense(codes: SparseCodes, begin: int, end: int) -> Tensor:
    """The slots begin..end-1 of the codes as a matrix [n, h], float64."""
    part = SparseCodes(codes.values[:, begin:end], codes.indices[:, begin:end], codes.dim)
    return part.to(torch.float64).to_dense()


def assert_gather_sum(codes: SparseCodes, table: Tensor, bias: Tensor | None, ends: list[int]):
    out = ops.gather_sum(codes.values, codes.indices, table, bias, ends)
    assert out.dtype == table.dtype
    assert out.shape == (len(ends), len(codes), table.shape[1])
    shift = torch.zeros(()) if bias is None else bias
    for part, end in zip(out, ends, strict=True):
        weights = dense(codes, 0, end)
        exact = weights @ table.double() + shift.double()
        magnitude = weights @ table.double().abs() + shift.double().abs()
        assert_sums_close(part, exact, magnitude, end + 1)


def assert_gather_dot(codes: SparseCodes, table: Tensor, rows: Tensor, ends: list[int]):
    out = ops.gather_dot(codes.values, codes.indices, table, rows, ends)
    assert out.dtype == (torch.float64 if table.dtype == torch.float64 else torch.float32)
    exact, magnitude = torch.zeros(2, *codes.values.shape, dtype=torch.float64)
    for part, begin, end in zip(rows.double(), [0, *ends[:-1]], ends, strict=True):
        latents = codes.indices[:, begin:end].long()
        exact[:, begin:end] = (part @ table.double().T).gather(1, latents)
        magnitude[:, begin:end] = (part.abs() @ table.double().abs().T).gather(1, latents)
    assert_sums_close(out, exact * codes.active, magnitude, table.shape[1])
    assert bool((out[~codes.active] == 0).all())
    assert bool((out[:, ends[-1] :] == 0).all())


def assert_scatter_sum(
    codes: SparseCodes,
    sources: list[Tensor],
    scales: list[Tensor],
    begins: list[int],
    ends: list[int],
) -> None:
    starts, rows, slots, _ = ops.transpose(codes.values, codes.indices, codes.dim)
    out = ops.scatter_sum(starts, rows, slots, codes.dim, sources, scales, begins, ends)
    assert out.dtype == sources[0].dtype
    exact, magnitude = torch.zeros(2, *out.shape, dtype=torch.float64)
    for source, scale, begin, end in zip(sources, scales, begins, ends, strict=True):
        scaled = torch.where(codes.active, scale.double(), 0.0)[:, begin:end]
        latents = codes.indices[:, begin:end].long()
        factors = scaled.new_zeros(codes.shape).scatter_add(1, latents, scaled)
        exact += factors.T @ source.double()
        magnitude += factors.abs().T @ source.double().abs()
    assert_sums_close(out, exact, magnitude, len(codes) * len(sources))
    unused = (dense(codes, 0, codes.k) == 0).all(0)
    assert bool((out[unused] == 0).all())


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_sum(dtype, d):
    for n in (0, 1, 23):
        codes, table = random_codes(n, dtype), numbers(60, d, dtype=dtype)
        for ends in ENDS:
            assert_gather_sum(codes, table, None, ends)
            assert_gather_sum(codes, table, numbers(d, dtype=dtype), ends)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_dot(dtype, d):
    for n in (0, 1, 23):
        codes, table = random_codes(n, dtype), numbers(60, d, dtype=dtype)
        for ends in ENDS:
            assert_gather_dot(codes, table, numbers(len(ends), n, d, dtype=dtype), ends)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scatter_sum(dtype, d):
    for n in (0, 1, 23):
        codes = random_codes(n, dtype)
        for begins, ends in [([0], [8]), ([0, 0], [3, 8]), ([0, 5, 0, 1], [8, 8, 1, 2])]:
            sources = list(numbers(len(ends), n, d, dtype=dtype))
            scales = list(numbers(len(ends), n, 8, dtype=dtype))
            assert_scatter_sum(codes, sources, scales, begins, ends)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scatter_sum_of_many_rows_and_columns(dtype):
    codes = random_codes(1500, dtype, h=70)  # rows are taken in blocks, columns in stripes
    codes.values[700:1300] = codes.indices[700:1300] = 0  # a block with nothing
    for count in (1, 3):
        sources = list(numbers(count, 1500, 300, dtype=dtype))
        scales = [codes.values] * count
        assert_scatter_sum(codes, sources, scales, [0] * count, [8] * count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nine_sources_for_eight_prefixes(dtype):
    codes = random_codes(12, dtype)
    sources, scales = list(numbers(9, 12, 7, dtype=dtype)), list(numbers(9, 12, 8, dtype=dtype))
    assert_scatter_sum(codes, sources, scales, [0] * 9, [*range(1, 9), 8])


def test_more_prefixes_than_the_kernels_hold_is_an_error():
    codes = csrkern.topk_relu(torch.rand(3, 60), 20)
    with pytest.raises(ValueError, match="too many prefixes"):
        assert_gather_sum(codes, torch.ones(60, 4), None, list(range(1, 10)))
    with pytest.raises(ValueError, match="too many sources"):
        assert_gather_dot(codes, torch.ones(60, 4), torch.ones(10, 3, 4), list(range(1, 11)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype):
    codes, base = random_codes(20, dtype), numbers(2, 200, 200, dtype=dtype)
    narrow = codes.truncate(5)
    for table in (base[0, :20, :60].T, base[0, :60, 3:60:3], base[0, ::3], base[0, :60, :1]):
        table = table[:60]
        assert_gather_sum(codes, table, None, [3, 8])
        assert_gather_sum(narrow, table, None, [3])
        d = table.shape[1]
        for rows in (base[:, :20, :d], base[:, :d, :20].mT, base[:, :1, :d].expand(2, 20, d)):
            assert_gather_dot(codes, table, rows, [3, 8])
            assert_gather_dot(narrow, table, rows, [3, 5])
            scales = [codes.values, base[1, :8, :20].T]
            assert_scatter_sum(codes, list(rows), scales, [0, 2], [8, 6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_padding_means_nothing_even_where_its_row_is_not_a_number(dtype):
    codes = random_codes(20, dtype)
    used = dense(codes, 0, 8)[:, 0] > 0
    codes = codes[~used]
    assert bool((codes.indices == 0).any())
    table = numbers(60, 20, dtype=dtype)
    table[0] = torch.nan
    assert bool(ops.gather_sum(codes.values, codes.indices, table, None, [4, 8]).isfinite().all())
    rows = numbers(2, len(codes), 20, dtype=dtype)
    assert bool(ops.gather_dot(codes.values, codes.indices, table, rows, [4, 8]).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_offsets_beyond_two_to_the_thirty_one(dtype):
    stride = 2**30 + 2**20
    try:
        storage = torch.empty(2 * stride + 100, dtype=dtype)  # only the touched pages are real
    except RuntimeError:
        pytest.skip("not enough address space")
    far, near = storage.as_strided((3, 40), (stride, 1)), numbers(3, 40, dtype=dtype)
    far.copy_(near)
    codes = csrkern.topk_relu(torch.rand(3, 3) + 0.1, 3).to(dtype)
    assert_gather_sum(codes, far, None, [2, 3])
    assert_gather_dot(codes, far, near[None], [3])
    assert_gather_dot(codes, near, far[None], [3])
    assert_scatter_sum(codes, [far], [codes.values], [0], [3])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_exact_sums(isa):
    assert_same_digests("gather exact", isa)


def test_vector_instruction_sets_round_the_same_way():
    # The portable code cannot fuse multiply and add where the processor does not.
    assert_same_digests("gather rounded", "avx2", like="avx512")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_come_out_exactly(dtype):
    codes = csrkern.topk_relu(small_integers(20, 90, dtype=dtype), 12)
    table, rows = small_integers(90, 30, dtype=dtype), small_integers(2, 20, 30, dtype=dtype)
    sums = ops.gather_sum(codes.values, codes.indices, table, None, [5, 12])
    for part, end in zip(sums, (5, 12), strict=True):
        assert torch.equal(part.double(), dense(codes, 0, end) @ table.double())
    dots = ops.gather_dot(codes.values, codes.indices, table, rows, [5, 12]).double()
    every = rows.double() @ table.double().T
    latents = codes.indices.long()
    assert torch.equal(dots[:, :5], (every[0].gather(1, latents) * codes.active)[:, :5])
    assert torch.equal(dots[:, 5:], (every[1].gather(1, latents) * codes.active)[:, 5:])
    starts, places, slots, _ = ops.transpose(codes.values, codes.indices, 90)
    scatter = ops.scatter_sum(starts, places, slots, 90, [rows[0]], [codes.values], [0], [12])
    assert torch.equal(scatter.double(), dense(codes, 0, 12).T @ rows[0].double())


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_thread_count_does_not_matter_and_runs_repeat(dtype):
    codes, table = random_codes(600, dtype, h=900, k=16), numbers(900, 100, dtype=dtype)
    rows, ends = numbers(2, 600, 100, dtype=dtype), [5, 16]

    def results():
        starts, places, slots, _ = ops.transpose(codes.values, codes.indices, 900)
        scales = [codes.values, rows[0, :, :16]]
        return (
            ops.gather_sum(codes.values, codes.indices, table, None, ends),
            ops.gather_dot(codes.values, codes.indices, table, rows, ends),
            ops.scatter_sum(starts, places, slots, 900, list(rows), scales, [0, 0], ends),
        )

    assert_threads_do_not_matter(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype):
    codes, table = random_codes(10, dtype), numbers(60, 6, dtype=dtype)
    bias, rows = numbers(6, dtype=dtype), numbers(2, 10, 6, dtype=dtype)
    code = (codes.values, codes.indices)
    for shift in (None, bias):
        torch.library.opcheck(ops.gather_sum.default, (*code, table, shift, [3, 8]))
    torch.library.opcheck(ops.gather_dot.default, (*code, table, rows, [3, 8]))
    postings = ops.transpose(*code, 60)[:3]
    scales = [codes.values, codes.values.square()]
    arguments = (*postings, 60, list(rows), scales, [0, 0], [3, 8])
    torch.library.opcheck(ops.scatter_sum.default, arguments)
