"""Texts with string ids and metadata, and the index of their codes, in one folder."""

from __future__ import annotations

from csrkern import lazy

__getattr__, __dir__ = lazy.attributes(
    __name__, {"Document": ".store", "DocumentStore": ".store", "FilterLike": ".filter"}
)
