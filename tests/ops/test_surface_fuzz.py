"""Random calls of everything that takes codes: whatever comes in, an answer or one clear error.

A call may raise what is listed in `REFUSED`; it may not crash, hang, or read what is not its own,
which a build with AddressSanitizer shows (`make attack`).
`CSRKERN_FUZZ_EXAMPLES=100000 pytest tests/ops/test_surface_fuzz.py` runs for long.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import csrkern
from csrkern import PackedCodes, SparseCodes
from csrkern.nn import SparseAutoencoder

EXAMPLES = int(os.environ.get("CSRKERN_FUZZ_EXAMPLES", "60"))
REFUSED = (ValueError, TypeError, IndexError, RuntimeError, MemoryError)

for name in csrkern.__all__:  # an operator is registered when it is first touched
    getattr(csrkern, name)

NAN, INF = float("nan"), float("inf")
SIZES = st.sampled_from([0, 1, 2, 3, 5, 8, 17, 33])
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (torch.int32, torch.int64, torch.bool, torch.uint8, torch.complex64)
VALUES = [0.0, -0.0, 1.0, 0.5, 3.0, -1.0, 1e-45, 1e-8, 65504.0, 7e4, 3e38, NAN, INF, -INF]
WILD = [-1, -(2**31), 2**31 - 1, 2**30, 65_535, 65_536]

Draw = Callable[[st.SearchStrategy[Any]], Any]


def usually(draw: Draw, good: Any, *odd: Any) -> Any:
    """`good` three times in four, else one of `odd`."""
    return good if draw(st.integers(0, 3)) else draw(st.sampled_from(odd))


def laid_out(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with other strides, which kernels must respect."""
    way = draw(st.sampled_from(["contiguous", "transposed", "padded", "reversed", "expanded"]))
    if tensor.dim() != 2 or way == "contiguous":
        return tensor
    if way == "transposed":
        return tensor.T.contiguous().T
    if way == "padded":
        return torch.nn.functional.pad(tensor, (1, 2))[:, 1 : 1 + tensor.shape[1]]
    if way == "reversed":
        return tensor.flip(0).flip(0)
    return tensor[:1].expand_as(tensor) if len(tensor) else tensor


def floats(draw: Draw, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of about this shape; rarely another shape or kind."""
    dtype = dtype or usually(draw, torch.float32, *FLOATS, *OTHERS)
    shape = usually(draw, shape, (*shape, 1), shape[1:], tuple(reversed(shape)))
    seed = draw(st.integers(0, 2**16))
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if made.numel() and draw(st.booleans()):
        place = draw(st.integers(0, made.numel() - 1))
        made.view(-1)[place] = draw(st.sampled_from(VALUES))
    return laid_out(draw, made.to(dtype))


def indices(draw: Draw, n: int, k: int, dim: int) -> torch.Tensor:
    """Latents [n, k], some of them out of range or twice in a row."""
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n, max(dim, k), generator=generator).argsort(1)[:, :k]
    if order.numel() and draw(st.booleans()):
        place = draw(st.integers(0, order.numel() - 1))
        order.reshape(-1)[place] = draw(st.sampled_from([*WILD, dim, dim - 1, 0]))
        order = order.clone()
    return laid_out(draw, order.to(usually(draw, torch.int32, *OTHERS)))


def codes(draw: Draw, dim: int | None = None) -> SparseCodes:
    """Codes of whatever their constructor accepts."""
    n, k = draw(SIZES), draw(SIZES)
    dim = dim or draw(st.sampled_from([1, 8, 33, 64, 65_536, 65_537, 2**31 - 1]))
    values = floats(draw, n, k)
    if draw(st.booleans()):
        values = values.abs().sort(1, descending=True).values
    return SparseCodes(values, indices(draw, n, k, min(dim, 100)), usually(draw, dim, 0, -1, 5.0))


def small_codes(draw: Draw) -> SparseCodes:
    """Return codes over few enough latents for dense results."""
    return codes(draw, draw(st.sampled_from([1, 8, 33, 64])))


def operator(draw: Draw) -> None:
    """One of the public operators, forward and backward."""
    n, d, h = draw(SIZES), draw(SIZES), draw(SIZES)
    k = usually(draw, draw(st.integers(1, max(h, 1))), 0, -1, h + 1, 2**31, 1.5, "2", None, True)
    name = draw(st.sampled_from(["topk_relu", "encode", "autoencode", "decode", "prefix_errors",
                                 "similarity", "info_nce"]))  # fmt: skip
    grad = draw(st.booleans())
    leaves = []

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        leaves.append(tensor)
        return tensor.detach().requires_grad_() if grad and tensor.is_floating_point() else tensor

    if name == "topk_relu":
        mask = usually(draw, None, torch.ones(h, dtype=torch.bool), torch.ones(h), "mask")
        out = csrkern.topk_relu(leaf(floats(draw, n, h)), k, latent_mask=mask).values
    elif name == "encode":
        x, weight = floats(draw, n, d), floats(draw, h, d)
        precision = draw(st.sampled_from(["exact", "fast", "auto"]))
        bias = usually(draw, None, floats(draw, h))
        out = csrkern.encode(leaf(x), leaf(weight), bias, k=k, precision=precision).values
    elif name == "autoencode":
        x, weight = floats(draw, n, d), floats(draw, h, d)
        ks = usually(draw, [k], [1, k], [2, 1], [], 3, ["1"])
        out = csrkern.autoencode(leaf(x), leaf(weight), ks=ks)[1]
    elif name == "decode":
        made = small_codes(draw)
        made = SparseCodes(leaf(made.values), made.indices, made.dim)
        weight = leaf(floats(draw, made.dim, d))
        out = csrkern.decode(made, weight, usually(draw, None, floats(draw, d)))
    elif name == "prefix_errors":
        made = small_codes(draw)
        made = SparseCodes(leaf(made.values), made.indices, made.dim)
        x, weight = leaf(floats(draw, len(made), d)), leaf(floats(draw, made.dim, d))
        out = csrkern.prefix_errors(x, made, weight, usually(draw, None, floats(draw, d)))
    elif name == "similarity":
        a, b = small_codes(draw), small_codes(draw)
        out = csrkern.similarity(SparseCodes(leaf(a.values), a.indices, a.dim), b)
    else:
        a = small_codes(draw)
        b = usually(draw, None, small_codes(draw))
        labels = usually(draw, None, torch.arange(len(a)) % 3, torch.rand(len(a)), "labels")
        temperature = usually(draw, 0.2, 0, -1, NAN, 1e-30, "1")
        a = SparseCodes(leaf(a.values), a.indices, a.dim)
        out = csrkern.info_nce(a, b, temperature=temperature, labels=labels)
    if out.requires_grad:
        out.sum().backward()


def raw_operator(draw: Draw) -> None:
    """An operator as registered with PyTorch, without the checks of its public function."""
    n, k, dim, d = draw(SIZES), draw(SIZES), draw(SIZES), draw(SIZES)
    ops = torch.ops.csrkern
    values, latents = floats(draw, n, k), indices(draw, n, k, max(dim, 1))
    ends = usually(draw, [k], [1, k], [k + 1], [], [-1], [2**40], list(range(20)))
    name = draw(st.sampled_from(["transpose", "gather_sum", "gather_dot", "scatter_sum", "decode",
                                 "prefix_errors", "prefix_errors_backward", "similarity",
                                 "similarity_backward", "info_nce", "encode", "topk_relu",
                                 "topk_relu_backward"]))  # fmt: skip
    other = floats(draw, n, k), indices(draw, n, k, max(dim, 1))
    size = usually(draw, dim, -1, 2**31, 2**40)
    if name == "transpose":
        ops.transpose(values, latents, min(size, 2**31))
    elif name == "gather_sum":
        ops.gather_sum(values, latents, floats(draw, dim, d), None, ends)
    elif name == "gather_dot":
        ops.gather_dot(values, latents, floats(draw, dim, d), floats(draw, len(ends), n, d), ends)
    elif name == "scatter_sum":
        starts = torch.tensor(draw(st.lists(st.integers(-2, 40), max_size=dim + 2)))
        rows, slots = indices(draw, n, k, max(n, 1)), indices(draw, n, k, max(k, 1))
        source = floats(draw, n, d)
        ops.scatter_sum(
            starts.long(), rows.reshape(-1), slots.reshape(-1), min(dim, 40), [source], [values],
            [0], ends[:1],
        )  # fmt: skip
    elif name == "decode":
        ops.decode(values, latents, floats(draw, dim, d), None, ends)
    elif name == "prefix_errors":
        ops.prefix_errors(floats(draw, n, d), values, latents, floats(draw, dim, d), None)
    elif name == "prefix_errors_backward":
        weights, left = floats(draw, k), floats(draw, n, d)
        ops.prefix_errors_backward(weights, left, values, latents, floats(draw, dim, d))
    elif name == "similarity":
        ops.similarity(values, latents, *other, min(size, 2**20))
    elif name == "similarity_backward":
        ops.similarity_backward(floats(draw, n, n), values, latents, *other, min(size, 2**20))
    elif name == "info_nce":
        classes = usually(draw, (None, None, None), (torch.zeros(n, dtype=torch.int32),) * 3)
        both = usually(draw, (None, None), other)
        ops.info_nce(values, latents, *both, min(size, 2**20), 0.2, *classes)
    elif name == "encode":
        exact = draw(st.booleans())
        x, weight = floats(draw, n, d), floats(draw, dim, d)
        ops.encode(x, weight, None, None, usually(draw, k, -1), exact)
    elif name == "topk_relu":
        ops.topk_relu(values, usually(draw, k, -1, k + 1, 2**31), None)
    else:
        ops.topk_relu_backward(values, values, latents, min(size, 2**16))


def method(draw: Draw) -> None:
    """Call a method or conversion of SparseCodes."""
    made = small_codes(draw) if draw(st.booleans()) else codes(draw)
    rows = draw(st.sampled_from([0, -1, 10**9, [0, 0], [0.5], ["1"], True, (0, 1), slice(1, None),
                                 np.array([True]), torch.tensor([1]), None]))  # fmt: skip
    calls: dict[str, Callable[[], Any]] = {
        "validate": made.validate,
        "scipy": made.to_scipy,
        "coo": made.to_torch_coo,
        "csr": made.to_torch_csr,
        "normalize": made.normalize,
        "power": lambda: made.power(usually(draw, 0.5, 0, -1, NAN)),
        "truncate": lambda: made.truncate(usually(draw, 1, 0, 99, 1.5)),
        "half": lambda: made.to(torch.float16),
        "rows": lambda: made[rows],
        "cat": lambda: SparseCodes.cat([made, made]),
        "pack": lambda: PackedCodes.pack(made, usually(draw, 4, 0, 9, 1)).unpack(),
        "save": lambda: made.save(os.devnull, dtype=draw(st.sampled_from(["float16", "float32"]))),
        "index": lambda: csrkern.InvertedIndex.build(made).search(made, 3),
        "numpy": lambda: SparseCodes.from_numpy(*made.numpy(), made.dim),
        "equal": lambda: made.equal(made),
    }
    if made.dim < 1000:
        calls["dense"] = made.to_dense
    calls[draw(st.sampled_from(sorted(calls)))]()


def sparse_form(draw: Draw) -> None:
    """Matrices of SciPy and PyTorch whose parts were not checked by anybody."""
    n, dim = draw(SIZES), draw(SIZES)
    column = st.one_of(st.integers(0, max(dim - 1, 0)), st.sampled_from(WILD))
    columns = np.array(draw(st.lists(column, max_size=20)), np.int64)
    start = st.one_of(st.integers(0, len(columns)), st.sampled_from([-1, 1000, 2**40]))
    starts = np.array(draw(st.lists(start, min_size=n + 1, max_size=n + 1)), np.int64)
    if draw(st.booleans()):
        starts = np.sort(starts)
    value = st.sampled_from(VALUES)
    numbers = np.array([draw(value) for _ in columns], draw(st.sampled_from([np.float32, ">f8"])))
    k = usually(draw, None, 0, 1, 99, -1)
    if draw(st.booleans()):
        matrix = scipy.sparse.csr_array((n, dim), dtype=numbers.dtype)
        matrix.data, matrix.indices, matrix.indptr = numbers, columns, starts
        if draw(st.booleans()):
            matrix.has_canonical_format = True
        if draw(st.booleans()):
            csrkern.InvertedIndex.build(matrix)
        else:
            SparseCodes.from_scipy(matrix, k)
        return
    native = torch.from_numpy(numbers.astype(np.float32))
    parts = torch.from_numpy(starts), torch.from_numpy(columns)
    with torch.sparse.check_sparse_tensor_invariants(False):
        tensor = torch.sparse_csr_tensor(*parts, native, (n, dim))
    SparseCodes.from_torch(tensor, k)


def packed(draw: Draw) -> None:
    """Packed rows of any bytes."""
    k, dim = draw(SIZES), draw(st.sampled_from([1, 8, 64, 65_536, 2**31 - 1, 2**40]))
    n, bits = draw(SIZES), usually(draw, 4, 0, 1, 8, 9)
    width = usually(draw, None, 0, 1, 7)
    if width is None:
        width = csrkern.packed_bytes(k, dim, bits)
    rows = np.frombuffer(draw(st.binary(min_size=n * width, max_size=n * width)), np.uint8)
    PackedCodes(rows.reshape(n, width), k, dim, bits, usually(draw, 1.0, 0.0, NAN, 1e39)).unpack()


def file(draw: Draw) -> None:
    """A file of codes with bytes changed or cut off."""
    made = csrkern.topk_relu(torch.rand(4, 20), 3)
    path = Path("codes.safetensors")
    made.save(path)
    data = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    path.write_bytes(bytes(data[: usually(draw, len(data), 0, 7, 100)]))
    SparseCodes.load(path).to_dense()


def module(draw: Draw) -> None:
    """The autoencoder on inputs and codes that need not be its own."""
    sizes = [usually(draw, size, 0, -1, 2.5) for size in (8, 32, 4)]
    model = SparseAutoencoder(*sizes, standardize=draw(st.booleans()), tied=draw(st.booleans()))
    made = codes(draw, 32)
    x = floats(draw, draw(SIZES), 8)
    calls = {
        "encode": lambda: model.encode(x, usually(draw, 2, 0, 99, 1.5)),
        "forward": lambda: model(x)[0].sum().backward(),
        "decode": lambda: model.decode(made),
        "norms": lambda: model.norms(made),
        "rerank": lambda: model.rerank(x),
        "stats": lambda: model.update_stats(made),
    }
    calls[draw(st.sampled_from(sorted(calls)))]()


CALLS = [operator, raw_operator, method, sparse_form, packed, file, module]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_random_calls_answer_or_refuse(call, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(data.draw)
            except REFUSED:
                return

    run()
