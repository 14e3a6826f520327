"""A digest of every operator's results, to be compared between instruction sets.

Run as a script, it prints them as JSON for the instruction set that CSRKERN_ISA forces.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from proposals import EXACT_WAYS, encode_by
from sums import small_integers
from torch import Tensor

import csrkern
from csrkern import SparseCodes
from csrkern.ops.transpose import transpose

ON_ARM = platform.machine() in {"aarch64", "arm64"}
ISAS = ["portable", "neon"] if ON_ARM else ["portable", "avx2", "avx512"]
NARROW = [torch.float32, torch.float16, torch.bfloat16]


def _numbers(*shape: int, dtype: torch.dtype, exact: bool) -> Tensor:
    """Random numbers, or integers whose sums are exact in whatever order."""
    seed = int(torch.randint(1 << 30, ()))
    return small_integers(*shape, dtype=dtype, seed=seed) if exact else torch.randn(shape).to(dtype)


def _decode(d: int, **kind: Any) -> list[Tensor]:
    codes = csrkern.topk_relu(_numbers(50, 600, **kind), 20)
    leaves = [codes.values, _numbers(600, d, **kind), _numbers(d, **kind)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = csrkern.decode(SparseCodes(leaves[0], codes.indices, 600), *leaves[1:])
    return [out, *torch.autograd.grad(out, leaves, _numbers(50, d, **kind))]


def _gather(d: int, **kind: Any) -> list[Tensor]:
    ops = torch.ops.csrkern
    codes = csrkern.topk_relu(_numbers(50, 300, **kind), 20)
    table, sources = _numbers(300, d, **kind), _numbers(3, 50, d, **kind)
    ends = [5, 6, 19]
    starts, rows, slots, _ = ops.transpose(codes.values, codes.indices, 300)
    scales = [codes.values] * 3
    return [
        ops.gather_sum(codes.values, codes.indices, table, table[0], ends),
        ops.gather_dot(codes.values, codes.indices, table, sources, ends),
        ops.scatter_sum(starts, rows, slots, 300, list(sources), scales, [0, 0, 4], ends),
    ]


def _encode(d: int, **kind: Any) -> list[Tensor]:
    leaves = [_numbers(40, d, **kind).requires_grad_(), _numbers(300, d, **kind).requires_grad_()]
    codes = csrkern.encode(*leaves, k=9)
    grads = torch.autograd.grad(codes.values, leaves, _numbers(40, 9, **kind))
    return [codes.values, codes.indices, *grads]


def _exact_codes(way: str) -> list[Tensor]:
    x, weight, bias = torch.randn(60, 70), torch.randn(900, 70), torch.randn(900)
    codes = encode_by(way, x, weight, bias, k=20)
    few = encode_by(way, x[:2], weight, bias, k=20)
    return [codes.values, codes.indices, few.values, few.indices]


def _autoencode(d: int, **kind: Any) -> list[Tensor]:
    leaves = [_numbers(40, d, **kind).requires_grad_(), _numbers(300, d, **kind).requires_grad_()]
    codes, out = csrkern.autoencode(*leaves, ks=[2, 9])
    grads = torch.autograd.grad(out, leaves, _numbers(2, 40, d, **kind))
    return [codes.values, codes.indices, out, *grads]


def _prefix_errors(d: int, **kind: Any) -> list[Tensor]:
    codes = csrkern.topk_relu(_numbers(64, 300, **kind), 20)
    leaves = [_numbers(64, d, **kind), codes.values, _numbers(300, d, **kind)]
    x, values, weight = (leaf.detach().requires_grad_() for leaf in leaves)
    errors = csrkern.prefix_errors(x, SparseCodes(values, codes.indices, 300), weight)
    return [errors, *torch.autograd.grad(errors.sum(), (x, values, weight))]


def _transpose(n: int) -> list[Tensor]:
    return list(transpose(csrkern.topk_relu(torch.randn(n, 100), 12)))


def _fine(width: int) -> list[Tensor]:
    lengths = torch.linspace(1, 30, 256)
    quantizer = csrkern.FineQuantizer(
        torch.randn(6, 256, width), torch.randn(2 * width), parts=2, lengths=lengths
    )
    x = torch.randn(41, 2 * width)
    fine = quantizer.encode(x)
    index = csrkern.InvertedIndex.build(csrkern.topk_relu(x, 5), fine=fine)
    queries = csrkern.topk_relu(x[:7], 5)
    scores, ids = index.search(queries, rerank=csrkern.Refine(x[:7] + 1))
    return [torch.from_numpy(array) for array in (*quantizer.tables(x), fine.codes, scores, ids)]


def _fine_search(n: int) -> list[Tensor]:
    quantizer = csrkern.FineQuantizer(
        torch.randn(6, 256, 3), torch.randn(6), parts=2, lengths=torch.linspace(1, 30, 256)
    )
    codes = torch.randint(0, 256, (5000, 7), dtype=torch.uint8).numpy()
    index = csrkern.InvertedIndex.build(None, fine=csrkern.FineCodes(codes, quantizer))
    scores, ids = index.search_fine(torch.randn(n, 6), 100)
    return [torch.from_numpy(array) for array in (scores, ids)]


def compute() -> dict[str, str]:
    """Name to digest; a name begins with the operator and the kind of data."""
    torch.manual_seed(0)
    results = {f"transpose {n}": _transpose(n) for n in (0, 3, 9000)}
    for exact, dtype in itertools.product([True, False], NARROW):
        kind = "exact" if exact else "rounded"
        for d in (1, 7, 16, 23, 100, 300):
            results[f"decode {kind} d={d} {dtype}"] = _decode(d, dtype=dtype, exact=exact)
            results[f"gather {kind} d={d} {dtype}"] = _gather(d, dtype=dtype, exact=exact)
        for d in (8, 64, 256) if exact else (7, 64, 100):  # 2 / (n d) is exact
            name = f"prefix_errors {kind} d={d} {dtype}"
            results[name] = _prefix_errors(d, dtype=dtype, exact=exact)
        if exact:  # how PyTorch's matrix products round is theirs to say
            results[f"encode {kind} {dtype}"] = _encode(20, dtype=dtype, exact=exact)
    for way in EXACT_WAYS:
        results[f"encode by {way}"] = _exact_codes(way)
    results |= {f"fine {width}": _fine(width) for width in (3, 15)}
    results |= {f"fine search {n}": _fine_search(n) for n in (1, 40)}
    results["autoencode"] = _autoencode(20, dtype=torch.float32, exact=True)
    return {
        name: hashlib.sha256(
            b"".join(t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
        ).hexdigest()
        for name, tensors in results.items()
    }


def _run_with(isa: str, *arguments: str) -> str | None:
    """What Python prints under an instruction set; None if the processor lacks it."""
    run = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "CSRKERN_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if f"CSRKERN_ISA={isa}: expected one that this processor has" in run.stderr:
        return None
    assert run.returncode == 0, run.stderr
    return run.stdout


def assert_runs_with(isa: str, script: str) -> None:
    """A script, which may import what tests do, ends well under an instruction set."""
    checked = f"from csrkern import _C\nassert _C.isa() == {isa!r}\n{script}"
    if _run_with(isa, "-c", checked) is None:
        pytest.skip(f"this processor lacks {isa}")


@functools.cache
def _computed_with(isa: str) -> dict[str, str] | None:
    printed = _run_with(isa, __file__)
    if printed is None:
        return None
    found = json.loads(printed)
    assert found.pop("isa") == isa
    return found


def assert_same_digests(prefix: str, isa: str, like: str = "portable") -> None:
    """The results whose names begin so are the same on both instruction sets, bit for bit."""
    here, there = _computed_with(isa), _computed_with(like)
    if here is None or there is None:
        pytest.skip(f"this processor lacks {isa} or {like}")
    names = [name for name in there if name.startswith(prefix)]
    assert names
    assert {name: here[name] for name in names} == {name: there[name] for name in names}


if __name__ == "__main__":
    from csrkern import _C

    print(json.dumps({"isa": _C.isa(), **compute()}))
