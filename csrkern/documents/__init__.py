"""Texts with string ids and metadata, and the index of their codes, in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrkern import lazy

if TYPE_CHECKING:
    from csrkern.documents.filter import FilterLike
    from csrkern.documents.store import Document, DocumentStore

__all__ = ["Document", "DocumentStore", "FilterLike"]

__getattr__, __dir__ = lazy.attributes(
    __name__, {"Document": ".store", "DocumentStore": ".store", "FilterLike": ".filter"}
)
