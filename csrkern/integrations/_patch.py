"""Functions of other packages replaced by ours, with a way back."""

from __future__ import annotations

import functools
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Our functions, and what each stands for.
_stands_for: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def replaced(function: Any) -> Any:
    """Return what `function` stands for if it is one of ours, else `function` itself."""
    while function in _stands_for:
        function = _stands_for[function]
    return function


class Attribute:
    """A function that an owner (a class or module) holds by name; `make` makes ours of it."""

    def __init__(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._owner, self._name, self._make = owner, name, make
        self._original: Any = None
        self._ours: Any = None

    def put(self) -> None:
        """Put ours in its place."""
        self._original = replaced(vars(self._owner)[self._name])
        self._ours = functools.wraps(self._original)(self._make(self._original))
        _stands_for[self._ours] = self._original
        setattr(self._owner, self._name, self._ours)

    def take_back(self) -> None:
        """Put the original back, unless someone has since put a function of theirs around ours."""
        if vars(self._owner)[self._name] is self._ours:
            setattr(self._owner, self._name, self._original)


class Body:
    """The body of a function, so that names bound to it before reach ours too."""

    def __init__(self, function: Any, body: Callable[..., Any]) -> None:
        self._function, self._body = function, body
        self.original: Any = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )

    def put(self) -> None:
        """Put ours in its place."""
        self._function.__code__, self._function.__defaults__ = self._body.__code__, None
        self._function.__wrapped__ = self.original

    def take_back(self) -> None:
        """Put the original back."""
        original = self.original
        self._function.__code__ = original.__code__
        self._function.__defaults__ = original.__defaults__
        del self._function.__wrapped__


Change = Attribute | Body


class Patch:
    """The functions of one package; ours are in place while any `Acceleration` is in force."""

    def __init__(self, changes: Callable[[], list[Change]]) -> None:
        self._changes = changes
        self._made: list[Change] = []
        self._in_force: tuple[Acceleration, ...] = ()
        self._holds = 0
        self._told: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def accelerate(self, modules: Iterable[Any] | None = None) -> Acceleration:
        """Put ours in place for `modules`, or for all if None, until the result's `restore`."""
        acceleration = Acceleration(self, modules)
        self.begin(acceleration)
        return acceleration

    def restore(self) -> None:
        """End every acceleration."""
        for acceleration in self._in_force:
            self.end(acceleration)

    def begin(self, acceleration: Acceleration) -> None:
        """Take `acceleration` into force."""
        with self._lock:
            if acceleration not in self._in_force:
                self._put()
                self._in_force = (*self._in_force, acceleration)

    def end(self, acceleration: Acceleration) -> None:
        """Take `acceleration` out of force; with the last one ours go."""
        with self._lock:
            self._in_force = tuple(other for other in self._in_force if other is not acceleration)
            self._take_back()

    def __enter__(self) -> None:
        """Keep ours in place through a call that needs several of them, whoever restores."""
        with self._lock:
            self._holds += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._holds -= 1
            self._take_back()

    @property
    def in_force(self) -> bool:
        """Whether ours are in place."""
        return bool(self._in_force)

    def covers(self, module: Any) -> bool:
        """Return whether an acceleration in force is for `module`."""
        return any(acceleration.covers(module) for acceleration in self._in_force)

    def serves(self, what: Any, find_reason: Callable[[], str | None]) -> bool:
        """Return whether ours stand for `what` now; warn if the reason found is against it."""
        if torch.compiler.is_compiling() or not self.covers(what):
            return False
        if reason := find_reason():
            self.tell(what, reason, stacklevel=5)
        return reason is None

    def tell(self, what: Any, reason: str, stacklevel: int = 4) -> None:
        """Warn, once for each reason, that a module or function is the package's own."""
        with self._lock:
            told = self._told.setdefault(what, set())
            if reason in told:
                return
            told.add(reason)
        name = getattr(what, "__name__", type(what).__name__)
        warnings.warn(
            f"{name} is not accelerated, its package's own code runs: {reason}",
            UserWarning,
            stacklevel=stacklevel,
        )

    def _put(self) -> None:
        if self._made:
            return
        try:
            for change in self._changes():
                change.put()
                self._made.append(change)
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        if self._in_force or self._holds:
            return
        while self._made:
            self._made.pop().take_back()
        self._told.clear()


class Acceleration:
    """One call of `accelerate`, in force until `restore`; also a context manager."""

    def __init__(self, patch: Patch, modules: Iterable[Any] | None) -> None:
        self._patch = patch
        self._modules = None if modules is None else weakref.WeakSet(modules)
        self._entered = 0

    def covers(self, module: Any) -> bool:
        """Return whether this is for `module`, or for all."""
        return self._modules is None or module in self._modules

    def restore(self) -> None:
        """Undo this call; other calls of `accelerate` stay in force."""
        self._patch.end(self)

    def __enter__(self) -> Acceleration:
        self._patch.begin(self)
        self._entered += 1
        return self

    def __exit__(self, *_error: object) -> None:
        self._entered -= 1
        if not self._entered:
            self.restore()
