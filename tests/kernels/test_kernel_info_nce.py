from __future__ import annotations

import pytest
import torch

import csrkern.ops.info_nce  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
DIM = 30
N = 9


@pytest.fixture
def kernels(monkeypatch):
    from csrkern.kernels import info_nce

    monkeypatch.setattr(info_nce, "PROGRAMS", (2,))  # so that buffers are used again
    return info_nce


def some_codes(n, k=5):
    dense = torch.rand(n, DIM) * (torch.rand(n, DIM) < 0.3)
    dense[1] = 0  # empty
    dense[:4, 7] = 2.0
    return SparseCodes.from_dense(dense, k).normalize()


def postings(codes):
    starts, rows, _, values = ops.transpose(codes.values, codes.indices, DIM)
    return starts, rows, values


def arguments(variant):
    """a, b or None, and the label arguments of the operators."""
    a = some_codes(N)
    b = None if variant.startswith("one set") else some_codes(N if variant == "pairs" else 12)
    if not variant.endswith("labels"):
        return a, b, (None, None, None)
    labels = torch.randint(0, 4, (N,))
    labels[2] = 9  # without a positive
    other = labels if b is None else torch.randint(0, 4, (12,))
    return a, b, ops.match_labels(labels, other, b is None)


VARIANTS = ["one set", "pairs", "one set, labels", "two sets, labels"]


@pytest.mark.parametrize("temperature", [0.2, 1e-3])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("poisoned_empty")
def test_forward_and_backward_equal_the_cpu(kernels, device, variant, temperature):
    a, b, labels = arguments(variant)
    other = a if b is None else b
    two = (None, None) if b is None else (b.values, b.indices)
    inputs = (a.values, a.indices, *two, DIM, temperature, *labels)
    want = ops.info_nce(*inputs)

    def put(*tensors):
        return tuple(t.to(device) if isinstance(t, torch.Tensor) else t for t in tensors)

    got = kernels.info_nce(
        *put(a.values, a.indices),
        put(*postings(other)),
        len(other),
        b is None,
        temperature,
        *put(*labels),
    )
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=2e-5, atol=1e-6)

    grad = torch.rand(N)
    grads = ops.info_nce_backward(grad, *want[1:], *inputs)
    sides = [(a, other, False, labels[0], labels[1])]
    if b is not None:
        sides.append((b, a, True, labels[1], labels[0]))
    for (of, against, of_columns, *classes), expected in zip(sides, grads, strict=False):
        gradient = kernels.info_nce_backward(
            *put(grad, *want[1:], of.values, of.indices),
            put(*postings(against)),
            len(against),
            b is None,
            of_columns,
            temperature,
            *put(*classes, labels[2]),
        )
        scale = expected.abs().max().item() + 1e-6
        torch.testing.assert_close(gradient.cpu(), expected, rtol=2e-4, atol=1e-4 * scale)
