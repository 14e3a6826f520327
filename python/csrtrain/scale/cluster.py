"""The Ray cluster that work runs on: a running one, or one of this machine's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

INSTALL = "this needs Ray: pip install 'csrkern[ray]'"


def import_ray() -> Any:
    """Return Ray, or raise an ImportError that says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return ray


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Yield Ray, connected to `address`, to the cluster this process is in, or to a new local one.

    A cluster that was started here ends here.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    if address is None and "RAY_ADDRESS" not in os.environ:
        ray.init(address="local", include_dashboard=False, **quiet)
    else:
        ray.init(address=address or "auto", **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()
