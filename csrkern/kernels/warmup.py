"""Compiles the kernels of a training step at given sizes, and measures their configurations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from csrkern.kernels import (
    gather,
    info_nce,
    prefix_errors,
    similarity,
    topk_relu,
    transpose,
    tuning,
)
from csrkern.kernels.encode import product as encode
from csrkern.kernels.encode import verified as encode_verified


def steps(
    n: int, d: int, h: int, k: int, dtype: torch.dtype, device: str | torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, call) of every kernel that training, encoding and scoring n rows launch.

    Random data: times depend on how evenly latents are used, here as evenly as can be.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x, weight = normal(n, d), normal(h, d)
    wide = min(4 * k, h)
    for slots in sorted({k, wide}):
        pre = normal(min(n, 256), h)
        if slots <= topk_relu.MAX_K:  # beyond that PyTorch sorts: there is nothing to measure
            yield f"topk_relu k={slots}", functools.partial(topk_relu.topk_relu, pre, slots, None)
    if dtype == torch.float32 and wide <= topk_relu.MAX_K:
        yield "encode", lambda: encode_verified.encode(x, weight, None, None, wide)
    yield "encode fast", lambda: encode.encode(x, weight, None, None, wide, False)
    values = normal(n, wide).abs()
    indices = torch.rand(n, h, generator=generator, device=device).topk(wide).indices.int()
    yield "transpose", lambda: transpose.transpose(values, indices, h)
    starts, rows, slots_of, sorted_values = transpose.transpose(values, indices, h)
    ends = sorted({k, wide})
    yield "gather_sum", lambda: gather.gather_sum(values, indices, weight, None, ends)
    grads = x.expand(len(ends), n, d)
    yield "gather_dot", lambda: gather.gather_dot(values, indices, weight, grads, ends)
    yield (
        "scatter_sum",
        lambda: gather.scatter_sum(
            starts, rows, slots_of, h, [x, x], [values, values], [0, 0], [wide, k]
        ),
    )
    left = x.float()
    yield (
        "prefix_errors",
        lambda: prefix_errors.prefix_errors(values, indices, weight, left.clone()),
    )
    weights = left.new_ones(wide)
    yield (
        "prefix_errors backward",
        lambda: prefix_errors.prefix_errors_backward(weights, left, values, indices, weight),
    )
    few = values[:, :k].float().contiguous()
    few_indices = indices[:, :k].contiguous()
    starts, rows, _, sorted_values = transpose.transpose(few, few_indices, h)
    postings = starts, rows, sorted_values
    yield (
        "similarity",
        lambda: similarity.similarity((few, few_indices), (few, few_indices), postings),
    )
    labels: tuple[None, None, None] = (None, None, None)
    loss = few, few_indices, postings, n, True
    yield "info_nce", lambda: info_nce.info_nce(*loss, 0.2, *labels)
    ones = few.new_ones(n)
    yield (
        "info_nce backward",
        lambda: info_nce.info_nce_backward(ones, ones, ones, *loss, False, 0.2, *labels),
    )


def warm_up(
    n: int,
    d: int,
    h: int,
    k: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cuda",
    on_step: Callable[[str, float], None] = lambda name, seconds: None,
) -> None:
    """Run each step once in mode "measure"; tell `on_step` its name and the seconds it took.

    Raises:
        ValueError: if a size is not positive, or k exceeds h.
    """
    for name, size in (("n", n), ("d", d), ("h", h), ("k", k)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if k > h:
        raise ValueError(f"k: expected at most h = {h}, got {k}")
    with tuning.tuning_mode("measure"):
        for name, run in steps(n, d, h, k, dtype, device):
            on_step(name, tuning.elapsed(run))
