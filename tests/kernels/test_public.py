"""The public operators on tensors of a device: dispatcher, autograd, opcheck and compilation.

On a GPU these come first: each kernel runs once, as a user would have it run.
"""

from __future__ import annotations

import pytest
import torch
from opchecks import opcheck_calls_of

import csrkern

N, D, H, K = 12, 40, 96, 5


def leaves(device):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(N, D, generator=generator), torch.randn(H, D, generator=generator)
    return [part.to(device).requires_grad_() for part in (x, weight / D**0.5)]


def topk_relu(x, weight):
    return csrkern.topk_relu(x @ weight.T, K).values


def encode(x, weight):
    return csrkern.encode(x, weight, k=K).values


def decode(x, weight):
    return csrkern.decode(csrkern.encode(x, weight, k=K), weight, ks=[2, K])


def autoencode(x, weight):
    return csrkern.autoencode(x, weight, ks=[2, K])[1]


def prefix_errors(x, weight):
    return csrkern.prefix_errors(x, csrkern.encode(x, weight, k=K), weight)


def similarity(x, weight):
    codes = csrkern.encode(x, weight, k=K)
    return csrkern.similarity(codes, codes[:4])


def info_nce(x, weight):
    codes = csrkern.encode(x, weight, k=K)
    return csrkern.info_nce(codes[:6], codes[6:], temperature=0.2)


PUBLIC = [topk_relu, encode, decode, prefix_errors, autoencode, similarity, info_nce]


@pytest.mark.parametrize("compute", PUBLIC, ids=lambda f: f.__name__)
def test_values_and_gradients_are_those_of_the_cpu(compute, device):
    results = []
    for place in ("cpu", device):
        inputs = leaves(place)
        out = compute(*inputs)
        assert out.device.type == place
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)


def decode_alone(x, weight):
    codes = csrkern.encode(x.detach(), weight.detach(), k=K)
    return csrkern.decode(codes, weight, ks=[2, K])


def prefix_errors_alone(x, weight):
    codes = csrkern.encode(x.detach(), weight.detach(), k=K)
    return csrkern.prefix_errors(x, codes, weight)


OF_ONE_CALL = [*PUBLIC, decode_alone, prefix_errors_alone]
OF_ONE_CALL = [f for f in OF_ONE_CALL if f not in (decode, prefix_errors)]


@pytest.mark.parametrize("compute", OF_ONE_CALL, ids=lambda f: f.__name__)
def test_operators_pass_opcheck(compute, device):
    assert opcheck_calls_of(lambda: compute(*leaves(device)))


@pytest.mark.parametrize("compute", PUBLIC, ids=lambda f: f.__name__)
def test_compiles_whole(compute, device):
    torch._dynamo.reset()
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(compute, fullgraph=True, backend=backend)
    inputs = leaves(device)
    torch.testing.assert_close(compiled(*inputs), compute(*inputs), rtol=1e-5, atol=1e-5)


def test_autocast_gives_its_dtype(device):
    with torch.autocast(device, dtype=torch.bfloat16):
        assert decode(*leaves(device)).dtype == torch.bfloat16
