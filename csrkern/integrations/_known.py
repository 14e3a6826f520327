"""Whether a module is exactly what its package made: only then do our functions stand for its own.

`changed`, `hooked` and `surrounded` return, in words, what they find that ours do not know, or
None.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from csrkern.arguments import as_int
from csrkern.integrations._patch import replaced


def changed(module: Any, known: type, methods: Iterable[str]) -> str | None:
    """How `module` differs from a plain instance of `known` in any of `methods`."""
    if type(module) is not known:
        return f"{type(module).__name__} is another class than {known.__name__}"
    for name in methods:
        method = inspect.getattr_static(known, name, None)
        if name in vars(module) or not (method is None or written_in(known, replaced(method))):
            return f"its {name} was replaced"
    if isinstance(module, nn.Module) and module._compiled_call_impl is not None:
        return "it is compiled"
    return None


def written_in(known: type, function: Any) -> bool:
    """Return whether a function is written in the package that `known` is of."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_folders(known))


@functools.cache
def _folders(known: type) -> tuple[str, ...]:
    package = sys.modules[known.__module__.partition(".")[0]]
    return tuple(os.path.join(folder, "") for folder in package.__path__)


def hooked(modules: Iterable[nn.Module]) -> str | None:
    """Which of `modules` has a hook that its call would run; or any, if there are global ones."""
    if nn_module._has_any_global_hook():
        return "there are global hooks of modules"
    for module in modules:
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            return f"{type(module).__name__} has hooks"
    return None


def as_size(number: Any) -> int:
    """Return an integer of Python's, NumPy's or of a tensor as an int; 0 for anything else."""
    try:
        return as_int("size", number)
    except TypeError:
        return 0


def surrounded() -> str | None:
    """Return the name of what watches or transforms every operation that runs now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "it is compiled or traced"
    # A default device, which operations that are told theirs do not ask for, is such a mode too.
    modes = [
        mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)
    ]
    if modes := modes + _get_current_dispatch_mode_stack():
        return f"{type(modes[-1]).__name__} is in force"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "torch.func or forward-mode derivatives are in force"
    return None
