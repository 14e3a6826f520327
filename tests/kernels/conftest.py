"""Kernels run on a GPU where there is one, else in the Triton interpreter on CPU tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def patched_once_a_launch() -> Iterator[None]:
    """Makes the interpreter replace the functions of triton.language once for each launch.

    It does so again at every call of a device function, which takes half of its time and changes
    nothing: what a kernel replaced is replaced until it ends.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    tl, patch, launch = interpreter.tl, interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(function: Callable[..., Any]) -> Any:
        known = function.__globals__.values()
        seen = any(value is tl for value in known), any(value is tl.core for value in known)
        if seen in patched:
            return None  # a device function, which does not ask
        patched.add(seen)
        return patch(function)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        yield


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
