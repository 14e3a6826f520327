"""Functions of other packages exchanged for ours, with a way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# An owner (class or module), a name in it, and what makes ours of the original.
Change = tuple[Any, str, Callable[[Any], Any]]


class Exchange:
    """What `accelerate` of a package returns: in force until `restore`; also a context manager."""

    def __init__(self, changes: Callable[[], list[Change]]) -> None:
        self._changes = changes
        self._originals: list[tuple[Any, str, Any]] = []

    def accelerate(self) -> Exchange:
        """Puts ours in, if they are not there already."""
        if not self._originals:
            for owner, name, make in self._changes():
                original = vars(owner)[name]
                self._originals.append((owner, name, original))
                setattr(owner, name, make(original))
        return self

    def restore(self) -> None:
        """Puts the package's own back, however often `accelerate` was called."""
        while self._originals:
            setattr(*self._originals.pop())

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_error: object) -> None:
        self.restore()
