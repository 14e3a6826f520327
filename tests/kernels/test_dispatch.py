"""What is registered for CUDA, called as the dispatcher calls it, equals what CPU tensors get."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from synchronizing import NoWaiting

from csrkern import SparseCodes
from csrkern.ops import encode, gather, info_nce, prefix_errors, similarity, topk_relu, transpose

ops = torch.ops.csrkern
REGISTERED = {
    "topk_relu": topk_relu,
    "topk_relu_backward": topk_relu,
    "encode": encode,
    "transpose": transpose,
    "gather_sum": gather,
    "gather_dot": gather,
    "scatter_sum": gather,
    "prefix_errors": prefix_errors,
    "prefix_errors_backward": prefix_errors,
    "similarity": similarity,
    "similarity_backward": similarity,
    "info_nce": info_nce,
    "info_nce_backward": info_nce,
}


def on_a_gpu(name, inputs, monkeypatch):
    """Return the result of an operator's GPU kernel for CPU tensors."""
    module = REGISTERED[name]
    kernel = getattr(module, name if module is gather else f"_{name}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "on_gpu", lambda _: True)
        return kernel(*inputs)


def arguments(name, dtype):
    """Small arguments of the operator."""
    codes = SparseCodes.from_dense(torch.rand(5, 12) * (torch.rand(5, 12) < 0.6), 4)
    values, indices = codes.values.to(dtype), codes.indices
    table, rows = torch.randn(12, 6, dtype=dtype), torch.randn(2, 5, 6, dtype=dtype)
    starts, posting_rows, slots, _ = ops.transpose(codes.values, indices, 12)
    two = (values, indices, values.flip(0), indices.flip(0), 12)
    loss = (*two, 0.2, None, None, None)
    forward = ops.info_nce(*loss) if name == "info_nce_backward" else ()
    return {
        "topk_relu": (torch.randn(3, 40, dtype=dtype), 4, torch.rand(40) < 0.5),
        "topk_relu_backward": (torch.randn(5, 4, dtype=dtype), values, indices, 12),
        "encode": (rows[0], table, None, rows[1, 0], 4, True),
        "transpose": (values, indices, 12),
        "gather_sum": (values, indices, table, table[0], [2, 4]),
        "gather_dot": (values, indices, table, rows, [2, 4]),
        "scatter_sum": (starts, posting_rows, slots, 12, [rows[0]], [values], [0], [4]),
        "prefix_errors": (rows[0].float(), values, indices, table, rows[1, 0].float()),
        "prefix_errors_backward": (torch.rand(4), rows[0].float(), values, indices, table),
        "similarity": two,
        "similarity_backward": (torch.randn(5, 5), *two),
        "info_nce": loss,
        "info_nce_backward": (torch.rand(5), *forward[1:], *loss),
    }[name]


@pytest.mark.interpret
@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU tensors need the interpreter")
@pytest.mark.parametrize("name", REGISTERED)
def test_equals_the_cpu(name, monkeypatch):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"csrkern::{name}", "CUDA")
    inputs = arguments(name, torch.float32)
    got, want = on_a_gpu(name, inputs, monkeypatch), getattr(ops, name)(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["topk_relu", "encode", "gather_sum", "gather_dot", "scatter_sum"])
def test_float64_goes_another_way(name, monkeypatch):
    inputs = arguments(name, torch.float64)
    got, want = on_a_gpu(name, inputs, monkeypatch), getattr(ops, name)(*inputs)
    torch.testing.assert_close(got, want)


def test_cpu_tensors_need_no_triton():
    script = (
        "import sys, torch, csrkern\n"
        "codes = csrkern.topk_relu(torch.randn(3, 50), 4)\n"
        "csrkern.info_nce(codes, temperature=0.2), csrkern.similarity(codes, codes)\n"
        "csrkern.decode(codes, torch.randn(50, 6))\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.interpret
@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU tensors need the interpreter")
@pytest.mark.parametrize("name", [*REGISTERED, "match_labels"])
def test_makes_no_host_wait(name, monkeypatch):
    if name == "match_labels":
        labels = torch.randint(0, 3, (5,))
        with NoWaiting():
            info_nce._match_labels(labels, labels, True)
        return
    inputs = arguments(name, torch.float32)
    with NoWaiting():
        on_a_gpu(name, inputs, monkeypatch)
