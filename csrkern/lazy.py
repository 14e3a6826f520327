"""Names of a package that are loaded when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def attributes(
    package: str, home_of: Mapping[str, str] | None = None, modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package; the latter gives `__all__`, if there is one.

    Args:
        package: its `__name__`.
        home_of: the module of each name that it gives; ".codes" is one below the package.
        modules: modules below it that are names themselves.
    """
    homes = dict(home_of or {})

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name], package), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(getattr(sys.modules[package], "__all__", {*homes, *modules}))

    return get, names
