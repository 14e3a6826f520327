"""The forms of requests and answers: JSON, and safetensors for many queries at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from csrkern.codes.file import KEY
from csrkern.identity import check_fingerprint
from csrkern.index.fine import WORDS
from csrtrain.serve.library import Library

MOST_SLOTS = 4_000_000  # of a request in JSON: 64 MB
LARGEST = float(np.finfo(np.float32).max)
DTYPES = {"F32": "<f4", "F16": "<f2", "U16": "<u2", "I32": "<i4"}
CODES, EMBEDDINGS = {"values", "indices"}, {"embeddings"}

Latent = Annotated[int, Field(ge=0, lt=2**31)]
Value = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
DocumentId = Annotated[int, Field(ge=0, lt=2**63)]


class Form(BaseModel):
    """Base of all parts of a request: refuses misspelt names, and "7" for 7."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Query(Form):
    """One query: a code (its active latents and their values, in any order), or another form."""

    indices: list[Latent] | None = Field(None, max_length=65_536)
    values: list[Value] | None = Field(None, max_length=65_536)
    embedding: list[Number] | None = Field(None, max_length=65_536)
    text: str | None = Field(None, max_length=100_000)


class Search(Form):
    """A request: queries, and which hits are wanted."""

    queries: list[Query] = Field(min_length=1, description="All of one kind.")
    top_k: int = Field(10, ge=1, lt=2**31)
    min_score: float | None = Field(None, allow_inf_nan=False)
    probes: int | None = Field(
        None,
        ge=1,
        le=WORDS,
        description="Cells to read of an index of fine codes alone; null: all.",
    )
    where: dict[str, str | int | bool] | None = Field(
        None, description="Fields of payloads, and the values that they must have."
    )
    ids: list[DocumentId] | None = Field(None, description="The only documents that may be found.")
    payloads: bool = Field(True, description="Whether hits bring their payloads.")
    fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="Of the model that made the codes."
    )


class Hit(BaseModel):
    """A document that was found."""

    id: int
    score: float
    payload: Any = Field(None, description="Its row of the payloads, if the server has some.")


class Answer(BaseModel):
    """The hits of each query, best first."""

    hits: list[list[Hit]]


@dataclass(frozen=True)
class Asked:
    """The queries of a request: arrays (values, indices), embeddings [m, d], or texts."""

    kind: str
    queries: Any
    fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.queries[0] if self.kind == "codes" else self.queries)


def asked_in_json(search: Search) -> Asked:
    """Return the queries of a request in JSON.

    Raises:
        ValueError: if they are not all of one kind.
    """
    kinds = [_kind(row, query) for row, query in enumerate(search.queries)]
    for row, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(f"queries[{row}]: expected {kinds[0]}, as before it, got {kind}")
    if kinds[0] == "codes":
        return Asked("codes", _padded(search.queries), search.fingerprint)
    if kinds[0] == "texts":
        return Asked("texts", [query.text for query in search.queries])
    rows = [query.embedding or [] for query in search.queries]
    for row, numbers in enumerate(rows):
        if len(numbers) != len(rows[0]):
            raise ValueError(
                f"queries[{row}]: expected an embedding of {len(rows[0])} numbers, as the first, "
                f"got {len(numbers)}"
            )
    return Asked("embeddings", np.array(rows, np.float32))


def _kind(row: int, query: Query) -> str:
    given = [name for name, value in query if value is not None]
    if given == ["indices", "values"]:
        return "codes"
    if given in (["embedding"], ["text"]):
        return f"{given[0]}s"
    raise ValueError(
        f"queries[{row}]: expected indices and values, or embedding, or text, got "
        f"{' and '.join(given) or 'none of them'}"
    )


def _padded(queries: list[Query]) -> tuple[np.ndarray, np.ndarray]:
    """Return values float64 and indices int64, both [m, k], empty slots filled with 0."""
    width = max(1, *(len(query.indices or ()) for query in queries))
    if len(queries) * width > MOST_SLOTS:
        raise ValueError(
            f"queries: expected at most {MOST_SLOTS} numbers of queries times latents of the "
            f"longest, got {len(queries)} times {width}; ask with long queries on their own"
        )
    values = np.zeros((len(queries), width))
    indices = np.zeros((len(queries), width), np.int64)
    for row, query in enumerate(queries):
        latents, weights = query.indices or [], query.values or []
        if len(latents) != len(weights):
            raise ValueError(
                f"queries[{row}]: expected a value for each of the {len(latents)} indices, "
                f"got {len(weights)}"
            )
        values[row, : len(latents)] = weights
        indices[row, : len(latents)] = latents
    return values, indices


def asked_in_binary(body: bytes) -> Asked:
    """Return the queries of a safetensors file: of codes, as `SparseCodes.save` writes it, or one
    tensor "embeddings".

    Raises:
        ValueError: if it is damaged or holds something else.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(body))
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        facts = json.loads((header.get("__metadata__") or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a safetensors file, got something else: {error}") from error
    if set(tensors) not in (CODES, EMBEDDINGS):
        names = ", ".join(sorted(tensors))[:100] or "none"
        raise ValueError(f"expected tensors values and indices, or embeddings, got {names}")
    arrays = {name: _array(name, tensor) for name, tensor in tensors.items()}
    if "embeddings" in arrays:
        return Asked("embeddings", _of_kind("embeddings", arrays["embeddings"], "f").astype("<f4"))
    if arrays["values"].shape != arrays["indices"].shape:
        raise ValueError("expected values and indices of one shape [m, k]")
    codes = _of_kind("values", arrays["values"], "f"), _of_kind("indices", arrays["indices"], "iu")
    fingerprint = facts.get("fingerprint") if isinstance(facts, dict) else None
    return Asked("codes", codes, check_fingerprint("fingerprint", fingerprint))


def _array(name: str, tensor: dict[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in DTYPES or len(tensor["shape"]) != 2:
        raise ValueError(
            f"{name}: expected two dimensions of {', '.join(DTYPES)}, got {tensor['shape']} of "
            f"{tensor['dtype']}"
        )
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _of_kind(name: str, array: np.ndarray, kinds: str) -> np.ndarray:
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name}: expected {'floats' if kinds == 'f' else 'integers'}")
    return array


def in_json(library: Library, scores: np.ndarray, ids: np.ndarray, payloads: bool) -> bytes:
    """Return hits in JSON, with payloads; an infinite score is sent as the largest float32."""
    scores = np.minimum(scores, LARGEST)
    hits = (
        b",".join(
            _hit(id, score, library.payload(id) if payloads else None)
            for id, score in zip(row_ids, row_scores, strict=True)
            if id >= 0
        )
        for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
    )
    return b'{"hits":[' + b",".join(b"[" + row + b"]" for row in hits) + b"]}"


def _hit(id: int, score: float, payload: bytes | None) -> bytes:
    if payload is None:
        return b'{"id":%d,"score":%s}' % (id, repr(score).encode())
    return b'{"id":%d,"score":%s,"payload":%s}' % (id, repr(score).encode(), payload)


def in_binary(scores: np.ndarray, ids: np.ndarray) -> bytes:
    """Return hits as a safetensors file: scores float32 and ids int64, both [m, top_k]."""
    from safetensors.numpy import save

    return bytes(save({"scores": np.ascontiguousarray(scores), "ids": np.ascontiguousarray(ids)}))
