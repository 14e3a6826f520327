"""Which documents a search may find: masks and lists of ids as bits for each segment."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from csrkern.arguments import array_of, integers
from csrkern.index.segment import Segment, pack


def allowed_bits(
    chosen: Any, segments: Sequence[Segment], n_queries: int
) -> list[np.ndarray | None]:
    """For each segment the bits of the documents that may be found, in words of 64.

    [words], or [n_queries, words] where `chosen` differs from query to query; None: all.

    Raises:
        TypeError, ValueError: if `chosen` is no filter.
    """
    if chosen is None:
        return [segment.alive for segment in segments]
    if _one_for_each_query(chosen):
        if len(chosen) != n_queries:
            raise ValueError(
                f"filter: expected one for each of {n_queries} queries, got {len(chosen)}"
            )
        of_query = [allowed_bits(own, segments, 1) for own in chosen]
        return [
            np.array([_all(segment) if bits[g] is None else bits[g] for bits in of_query])
            for g, segment in enumerate(segments)
        ]
    array = array_of("filter", chosen)
    if array.dtype == bool:
        return _from_mask(array, segments, n_queries)
    if array.ndim == 1 or array.size == 0:
        with contextlib.suppress(TypeError):  # the one below says more
            ids = integers("filter", chosen).ravel()
            _refuse_mask_of_numbers(ids)
            return [_from_ids(ids, segment) for segment in segments]
    raise TypeError(
        "filter: expected a boolean mask, a list of ids, or a list of these for each query, "
        f"got {array.dtype} of shape {list(array.shape)}"
    )


def _refuse_mask_of_numbers(ids: np.ndarray) -> None:
    """Refuse what is a mask in numbers: as ids, it would let codes 0 and 1 pass."""
    if (ids[:3] > 1).any() or ids.size < 2:
        return
    if np.isin(ids, (0, 1)).all() and (ids.size > 2 or ids[0] == ids[1]):
        raise ValueError(
            "filter: expected a boolean mask or ids, got a mask in numbers 0 and 1; "
            "give mask.astype(bool), or each id once"
        )


def _one_for_each_query(chosen: Any) -> bool:
    return (
        isinstance(chosen, (list, tuple))
        and len(chosen) > 0
        and all(own is None or array_of("filter", own).ndim == 1 for own in chosen)
    )


def _all(segment: Segment) -> np.ndarray:
    """All living documents of a segment."""
    return pack(np.ones(segment.documents, bool)) if segment.alive is None else segment.alive


def _from_mask(
    mask: np.ndarray, segments: Sequence[Segment], n_queries: int
) -> list[np.ndarray | None]:
    n = sum(len(segment) for segment in segments)
    if mask.shape not in ((n,), (n_queries, n)):
        raise ValueError(
            f"filter: expected a mask of {n} codes, or one for each of {n_queries} queries, "
            f"got shape {list(mask.shape)}"
        )
    bits: list[np.ndarray | None] = []
    begin = 0
    for segment in segments:
        own = mask[..., begin : begin + len(segment)]
        begin += len(segment)
        if segment.alive is not None:
            whole = np.zeros((*mask.shape[:-1], segment.documents), bool)
            whole[..., segment.mask()] = own
            own = whole
        bits.append(pack(own))
    return bits


def _from_ids(ids: np.ndarray, segment: Segment) -> np.ndarray:
    # Ids that no int64 holds name no code.
    held = ids[(ids >= 0) & (ids <= 2**63 - 1)].astype(np.int64)
    docs = segment.find(held)
    docs = docs[docs >= 0]
    if len(docs) * 32 > segment.documents:
        mask = np.zeros(segment.documents, bool)
        mask[docs] = True
        return pack(mask)
    # A short list costs what it is long, not what the index is.
    words = np.zeros(-(-segment.documents // 64), np.uint64)
    np.bitwise_or.at(words, docs >> 6, np.uint64(1) << (docs & 63).astype(np.uint64))
    return words
