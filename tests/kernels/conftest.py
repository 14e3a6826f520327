"""Kernels run on a GPU where there is one, else in the Triton interpreter on CPU tensors."""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpret),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels of a test run."""
    if request.param == "cuda" and not HAS_GPU:
        pytest.skip("needs a CUDA device")
    if request.param == "cpu" and HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled for the GPU here; TRITON_INTERPRET=1 interprets them")
    return request.param
