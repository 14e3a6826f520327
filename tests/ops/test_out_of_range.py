"""Codes whose latents are out of range, and arguments that do not fit: errors, never a crash."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable

import pytest
import torch

import csrkern
import csrkern.nn
import csrkern.ops.gather
import csrkern.ops.info_nce
import csrkern.ops.prefix_errors
import csrkern.ops.transpose
import csrtrain.evaluation.least_squares
import csrtrain.evaluation.metrics
import csrtrain.training.loss
from csrkern import PackedCodes, SparseCodes

ops = torch.ops.csrkern

H, D = 64, 12
LATENTS = [H, -1, 2**20, 2**30, 2**31 - 1, -(2**31)]
OUT_OF_RANGE = pytest.mark.parametrize("latent", LATENTS)


def good_codes(dtype: torch.dtype = torch.float32, n: int = 9, k: int = 4) -> SparseCodes:
    return csrkern.topk_relu(torch.rand(n, H) + 0.1, k).to(dtype)


def with_latent(
    codes: SparseCodes, latent: int, *, row: int = 5, value: float | None = None
) -> SparseCodes:
    """The same codes, with another latent (and value) in the third slot of a row."""
    values, indices = codes.values.clone(), codes.indices.clone()
    indices[row, 2] = latent
    if value is not None:
        values[row, 2:] = value
    return SparseCodes(values, indices, codes.dim)


def weight(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(H, D).to(dtype)


def decode_gradient(codes: SparseCodes) -> object:
    """The backward pass alone meets the codes: they are changed after the forward pass."""
    good = codes.indices.clone()
    codes.indices.clamp_(0, H - 1)
    table = weight(codes.dtype).requires_grad_()
    out = csrkern.decode(SparseCodes(codes.values.requires_grad_(), codes.indices, H), table)
    codes.indices.data.copy_(good)
    return torch.autograd.grad(out.sum(), [codes.values, table])


def prefix_gradient(codes: SparseCodes) -> object:
    """The backward pass alone meets the codes, as in `decode_gradient`."""
    good = codes.indices.clone()
    codes.indices.clamp_(0, H - 1)
    table = weight(codes.dtype).requires_grad_()
    code = SparseCodes(codes.values.requires_grad_(), codes.indices, H)
    errors = csrkern.prefix_errors(table.detach()[:9], code, table)
    codes.indices.data.copy_(good)
    return torch.autograd.grad(errors.sum(), [codes.values, table])


def dictionary(codes: SparseCodes) -> csrkern.nn.SparseAutoencoder:
    return csrkern.nn.SparseAutoencoder(D, H, 4).to(codes.dtype)


def labels(codes: SparseCodes) -> torch.Tensor:
    return torch.arange(len(codes)) // 2


# What a user can hand codes to, by name; each as a function of codes, of any dtype.
CONSUMERS: dict[str, Callable[[SparseCodes], object]] = {
    "decode": lambda c: csrkern.decode(c, weight(c.dtype)),
    "decode, several ks": lambda c: csrkern.decode(c, weight(c.dtype), ks=[1, 3, 4]),
    "decode, densely": lambda c: csrkern.decode(
        SparseCodes(c.values.repeat(1, 9), c.indices.repeat(1, 9), H), weight(c.dtype)
    ),
    "decode under autocast": lambda c: _autocast(c),
    "gradient of decode": decode_gradient,
    "prefix_errors": lambda c: csrkern.prefix_errors(weight(c.dtype)[:9], c, weight(c.dtype)),
    "gradient of prefix_errors": prefix_gradient,
    "similarity, left": lambda c: csrkern.similarity(c, good_codes(c.dtype)),
    "similarity, right": lambda c: csrkern.similarity(good_codes(c.dtype), c),
    "info_nce": lambda c: csrkern.info_nce(c, temperature=0.1),
    "info_nce, not normalized": lambda c: csrkern.info_nce(c, temperature=0.1, normalize=False),
    "info_nce, right": lambda c: csrkern.info_nce(good_codes(c.dtype), c, temperature=0.1),
    "info_nce with labels": lambda c: csrkern.info_nce(c, temperature=0.1, labels=labels(c)),
    "transpose": csrkern.ops.transpose.transpose,
    "to_dense": SparseCodes.to_dense,
    "latents": SparseCodes.latents,
    "to_torch_coo": SparseCodes.to_torch_coo,
    "to_torch_csr": SparseCodes.to_torch_csr,
    "to_scipy": SparseCodes.to_scipy,
    "pack": PackedCodes.pack,
    "save": lambda c: c.save(os.devnull),
    "validate": SparseCodes.validate,
    "model.decode": lambda c: dictionary(c).decode(c),
    "model.norms": lambda c: dictionary(c).norms(c),
    "model.update_stats": lambda c: dictionary(c).update_stats(c),
    "InvertedIndex.build": lambda c: csrkern.InvertedIndex.build(c, num_threads=1),
    "InvertedIndex.search": lambda c: csrkern.InvertedIndex.build(good_codes()).search(c, 3),
    "InvertedIndex.search_above": lambda c: csrkern.InvertedIndex.build(good_codes()).search_above(
        c, 0.1
    ),
    "InvertedIndex.add": lambda c: csrkern.InvertedIndex.build(good_codes()).add(c),
    "loss.load": lambda c: csrtrain.training.loss.load(c),
    "latent_use": lambda c: csrtrain.evaluation.metrics.latent_use(c),
    "refit": lambda c: csrtrain.evaluation.least_squares.refit(
        dictionary(c), torch.randn(9, D).to(c.dtype), c
    ),
    "reference.decode": lambda c: csrkern.reference.decode(c, weight(c.dtype)),
    "reference.similarity": lambda c: csrkern.reference.similarity(c, c),
    "reference.info_nce": lambda c: csrkern.reference.info_nce(c, temperature=0.1),
}


def _autocast(codes: SparseCodes) -> object:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return csrkern.decode(codes, weight(torch.float32))


@OUT_OF_RANGE
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_names_the_row_of_a_latent_out_of_range(consumer, latent):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        codes = with_latent(good_codes(dtype), latent)
        with pytest.raises((IndexError, ValueError), match=r"row 5\b"):
            CONSUMERS[consumer](codes)


@OUT_OF_RANGE
@pytest.mark.parametrize("value", [float("nan"), -1.0, 1e-40, float("inf")])
def test_every_value_but_zero_counts(latent, value):
    codes = with_latent(good_codes(), latent, value=value)
    for consumer in ("decode", "gradient of decode", "similarity, left", "info_nce", "to_dense"):
        with pytest.raises(IndexError, match=f"dim = 64, got {latent} in row 5; codes.validate"):
            CONSUMERS[consumer](copy.deepcopy(codes))


EMPTY_SLOTS_MEAN_NOTHING = [
    *("decode", "decode, several ks", "decode, densely", "decode under autocast"),
    *("prefix_errors", "gradient of prefix_errors"),
    *("gradient of decode", "similarity, left", "similarity, right", "info_nce"),
    *("info_nce, not normalized", "info_nce, right", "info_nce with labels", "transpose"),
    *("to_dense", "to_torch_coo", "to_torch_csr", "pack", "model.decode", "model.norms"),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@OUT_OF_RANGE
@pytest.mark.parametrize("consumer", EMPTY_SLOTS_MEAN_NOTHING)
def test_the_index_of_an_empty_slot_means_nothing(consumer, latent):
    use = CONSUMERS[consumer]
    for dtype, zero in itertools.product((torch.float32, torch.float64), (0.0, -0.0)):
        good = good_codes(dtype)
        torch.manual_seed(1)
        want = use(with_latent(good, 0, value=0.0))
        torch.manual_seed(1)
        got = use(with_latent(good, latent, value=zero))
        if isinstance(want, csrkern.PackedCodes):
            want, got = torch.from_numpy(want.rows), torch.from_numpy(got.rows)
        for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (want, got)), strict=True):
            assert torch.equal(a.to_dense(), b.to_dense())


def test_the_first_bad_row_is_named():
    codes = good_codes(n=3000)
    codes.indices[[1700, 900, 2999], 1] = 10**6
    for use in (SparseCodes.to_dense, CONSUMERS["decode"], csrkern.ops.transpose.transpose):
        with pytest.raises(IndexError, match="got 1000000 in row 900;"):
            use(codes)


def test_a_larger_code_does_not_grow_the_heap():
    """One latent more than there are: the smallest step out of bounds."""
    for h in (1, 16, 17):
        codes = SparseCodes(torch.ones(30, 1), torch.full((30, 1), h, dtype=torch.int32), h)
        for other in (codes, SparseCodes(torch.ones(3, 1), torch.zeros(3, 1).int(), h)):
            for a, b in ((codes, other), (other, codes)):
                with pytest.raises(IndexError):
                    csrkern.similarity(a, b)


def test_codes_that_were_changed_after_they_were_made():
    def changed(**parts) -> SparseCodes:
        codes = good_codes()
        for name, part in parts.items():
            setattr(codes, name, part)
        return codes

    for codes in (
        changed(indices=torch.zeros(9, 4, dtype=torch.int64)),
        changed(indices=torch.zeros(9, 3, dtype=torch.int32)),
        changed(indices=torch.zeros(2, 4, dtype=torch.int32)),
        changed(indices=torch.zeros(36, dtype=torch.int32)),
        changed(indices=torch.zeros(9, 4)),
        changed(values=torch.ones(90, 4)),
        changed(values=None),
        changed(dim=1),
        changed(dim=-1),
        changed(dim="64"),
    ):
        for name in ("decode", "similarity, left", "info_nce", "transpose", "to_dense", "pack"):
            with pytest.raises((TypeError, ValueError, IndexError, AttributeError, RuntimeError)):
                CONSUMERS[name](codes)


def arguments() -> dict[str, tuple]:
    """Good arguments of each registered operator that takes an address of a tensor."""
    a, b = good_codes(), good_codes(n=7)
    code, other = (a.values, a.indices), (b.values, b.indices)
    table, rows = torch.randn(H, D), torch.randn(2, 9, D)
    starts, places, slots, _ = ops.transpose(*code, H)
    classes = [torch.zeros(n, dtype=torch.int32) for n in (9, 7, 9)]
    losses = ops.info_nce(*code, *other, H, 0.1, *classes)
    ends = [2, 4]
    return {
        "gather_sum": (*code, table, torch.randn(D), ends),
        "gather_dot": (*code, table, rows, ends),
        "scatter_sum": (
            starts, places, slots, H, list(rows), [a.values, a.values], [0, 0], ends
        ),
        "transpose": (*code, H),
        "latents": (*code, H),
        "similarity": (*code, *other, H),
        "similarity_backward": (torch.randn(9, 7), *code, *other, H),
        "info_nce": (*code, *other, H, 0.1, *classes),
        "info_nce_backward": (*losses, *code, *other, H, 0.1, *classes),
        "topk_relu": (torch.randn(9, H), 4, torch.ones(H, dtype=torch.bool)),
        "topk_relu_backward": (torch.randn(9, 4), *code, H),
        "encode": (torch.randn(9, D), table, torch.randn(H), torch.randn(D), 4, True),
        "autoencode": (torch.randn(9, D), table, torch.randn(H), torch.randn(D), ends, True),
        "decode": (*code, table, torch.randn(D), ends),
        "prefix_errors": (torch.randn(9, D), *code, table, torch.randn(D)),
        "prefix_errors_backward": (torch.randn(4), torch.randn(9, D), *code, table),
    }  # fmt: skip


def misfits(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of which a kernel for `tensor` would read too much."""
    narrow = {torch.float32: torch.float16, torch.int64: torch.int32, torch.bool: torch.uint8}
    dtypes = {torch.int32: torch.int64, torch.bool: torch.float32}
    found = [
        tensor[:0],
        tensor[:1],
        tensor[:-1],
        tensor[..., :1],
        tensor.reshape(-1)[:0],
        tensor.unsqueeze(0),
        tensor.to(narrow.get(tensor.dtype, torch.int8)),
        tensor.to(dtypes.get(tensor.dtype, torch.float64)),
        tensor.to(torch.complex64),
    ]
    return [one for one in found if one.shape != tensor.shape or one.dtype != tensor.dtype]


# A few misfits are good arguments: of fewer rows, or of another dtype that is converted.
@pytest.mark.parametrize("name", arguments())
def test_registered_operators_check_what_they_take_addresses_of(name):
    given = arguments()[name]
    operator = getattr(ops, name)
    operator(*given)
    refused = 0
    for at, argument in enumerate(given):
        if isinstance(argument, torch.Tensor):
            wrong = misfits(argument)
        elif isinstance(argument, list) and isinstance(argument[0], torch.Tensor):
            wrong = [[argument[0], one] for one in misfits(argument[1])]
            wrong += [argument[:1], [], argument * 9]
        elif isinstance(argument, list):
            wrong = [[4, 2], [2, 5], [2**40], [-(2**40)], [-1, 2], [], [2], list(range(1, 12))]
        elif isinstance(argument, int):
            wrong = [0, -1, -(2**40), 1, 2**31, 2**40, 2**62]
        else:
            continue
        for one in wrong:
            try:
                operator(*given[:at], one, *given[at + 1 :])
            except (TypeError, ValueError, IndexError, RuntimeError, MemoryError):
                refused += 1
    assert refused > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("number", [9, -1, 2**30, -(2**31)])
def test_lists_that_transpose_did_not_make(dtype, number):
    codes = good_codes(dtype)
    source, ends = torch.randn(9, D, dtype=dtype), ([0], [4])
    for at in range(3):
        lists = [part.clone() for part in ops.transpose(codes.values, codes.indices, H)[:3]]
        lists[at][3] = number + 30 if at == 0 and number == 9 else number
        with pytest.raises(IndexError, match="starts, rows and slots: expected what transpose"):
            ops.scatter_sum(*lists, H, [source], [codes.values], *ends)


def test_tensors_of_any_strides_do():
    codes, table = good_codes(), torch.randn(H, D)
    strided = torch.empty(18, 8, dtype=torch.int32)[::2, ::2]
    strided.copy_(codes.indices)
    starts, rows, slots, _ = ops.transpose(codes.values, strided, H)
    assert torch.equal(
        ops.gather_sum(codes.values, strided, table, None, [4]),
        ops.gather_sum(codes.values, codes.indices, table, None, [4]),
    )
    apart = [torch.stack([part, part], 1)[:, 0] for part in (starts, rows, slots)]
    source = torch.randn(9, D)
    assert torch.equal(
        ops.scatter_sum(*apart, H, [source], [codes.values], [0], [4]),
        ops.scatter_sum(starts, rows, slots, H, [source], [codes.values], [0], [4]),
    )


@pytest.mark.parametrize(("n", "k", "h"), [(0, 4, 8), (5, 0, 8), (0, 0, 0), (5, 0, 0)])
def test_codes_without_a_slot(n, k, h):
    codes = SparseCodes(torch.empty(n, k), torch.empty(n, k, dtype=torch.int32), h)
    assert codes.validate() is codes
    assert csrkern.similarity(codes, codes).tolist() == [[0.0] * n] * n
    assert codes.to_dense().shape == codes.to_scipy().shape == (n, h)
    assert codes.to_torch_coo().shape == codes.to_torch_csr().shape == (n, h)
    assert csrkern.ops.transpose.transpose(codes).starts.tolist() == [0] * (h + 1)
    assert csrkern.info_nce(codes, temperature=0.1, reduction="none").shape == (n,)
    if k or n == 0:
        assert csrkern.decode(codes, torch.ones(h, 3)).tolist() == [[0.0] * 3] * n


def test_more_rows_than_int32_numbers():
    many = torch.empty(2**31, 0), torch.empty(2**31, 0, dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 2\\^31 - 1 rows and slots"):
        ops.transpose(*many, 4)


def test_more_columns_than_int32_numbers():
    for dtype in (torch.float32, torch.float64):
        pre = torch.zeros(1, 1, dtype=dtype).expand(1, 2**31)  # one number in memory
        with pytest.raises(ValueError, match=r"dim: expected at most 2\^31 - 1"):
            csrkern.topk_relu(pre, 3)
        with pytest.raises(ValueError, match=r"dim: expected at most 2\^31 - 1"):
            ops.topk_relu(pre, 3, None)


def test_latents_can_be_compiled_and_checked():
    codes = good_codes()
    torch.library.opcheck(ops.latents.default, (codes.values, codes.indices, H))
    torch._dynamo.reset()
    compiled = torch.compile(SparseCodes.to_dense, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(codes), codes.to_dense())
    with pytest.raises(IndexError, match="row 5"):
        compiled(with_latent(codes, H))
