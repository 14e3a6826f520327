"""The specification: every operator in plain PyTorch, in the dtype of its input.

Each function is the twin of the public operator of the same name; kernels are tested
against these in float64. Written to be read: dense intermediates, no blocking, no speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csrkern.codes.sparse import SparseCodes


def topk_relu(pre: Tensor, k: int, latent_mask: Tensor | None = None) -> SparseCodes:
    """ReLU(TopK(pre)): the k largest positive entries of each row [n, h].

    NaN sorts as largest; equal values go to the lower index; slots without a positive
    entry hold value 0 and index 0. Where `latent_mask` [h] is False, a latent cannot win.
    """
    if latent_mask is not None:
        pre = pre.masked_fill(~latent_mask, -torch.inf)
    values, indices = torch.sort(pre, dim=1, descending=True, stable=True)
    values, indices = values[:, :k], indices[:, :k]
    wins = (values > 0) | values.isnan()
    values = torch.where(wins, values, torch.zeros_like(values))
    indices = torch.where(wins, indices, torch.zeros_like(indices))
    return SparseCodes(values, indices.int(), pre.shape[1])


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, k: int, pre_bias: Tensor | None = None
) -> SparseCodes:
    """topk_relu((x - pre_bias) @ weight.T + bias, k); x [n, d], weight [h, d]."""
    centered = x if pre_bias is None else x - pre_bias
    return topk_relu(F.linear(centered, weight, bias), k)


def decode(
    codes: SparseCodes,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ks: Sequence[int] | None = None,
) -> Tensor:
    """Σ_j values_j · weight[indices_j] + bias, [n, d] (or [len(ks), n, d]); weight [h, d].

    The sum is over active slots: an empty one adds nothing, whatever its row of weight holds.
    """
    if ks is not None:
        return torch.stack([decode(codes.truncate(k), weight, bias) for k in ks])
    out = (codes.values[:, :, None] * _active_rows(codes, weight)).sum(1)
    return out if bias is None else out + bias


def _active_rows(codes: SparseCodes, weight: Tensor) -> Tensor:
    """Rows of weight by slot, [n, k, d]; 0 in empty slots."""
    return weight[codes.latents()].masked_fill(~codes.active[:, :, None], 0)


def autoencode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    ks: Sequence[int],
    pre_bias: Tensor | None = None,
) -> tuple[SparseCodes, Tensor]:
    """Codes of x at the last of `ks`, and what each of `ks` decodes to with the same weight."""
    codes = encode(x, weight, bias, k=ks[-1], pre_bias=pre_bias)
    return codes, decode(codes, weight, pre_bias, ks=ks)


def prefix_errors(
    x: Tensor, codes: SparseCodes, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Mean squared error of decode(codes.truncate(k), weight, bias) to x, for each k, [codes.k]."""
    parts = codes.values[:, :, None] * _active_rows(codes, weight)
    centered = x if bias is None else x - bias
    return (centered[:, None] - parts.cumsum(1)).square().mean((0, 2))


def similarity(a: SparseCodes, b: SparseCodes) -> Tensor:
    """Return a · bᵀ, [n, m]."""
    return a.to_dense() @ b.to_dense().T


def info_nce(
    a: SparseCodes,
    b: SparseCodes | None = None,
    *,
    temperature: float,
    labels: Tensor | tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Return the contrastive loss over codes; see `csrkern.info_nce` for the three variants."""
    dense_a = a.to_dense()
    dense_b = dense_a if b is None else b.to_dense()
    if normalize:
        dense_a, dense_b = _unit_rows(dense_a), _unit_rows(dense_b)
    logits = dense_a @ dense_b.T / temperature

    itself = torch.eye(len(a), dtype=torch.bool, device=logits.device) if b is None else None
    if labels is not None:
        labels_a, labels_b = labels if isinstance(labels, tuple) else (labels, labels)
        positive = labels_a[:, None] == labels_b[None, :]
        rest = logits
        if itself is not None:
            positive = positive & ~itself
            rest = logits.masked_fill(itself, -torch.inf)
        count = positive.sum(1)
        mean_positive = (logits * positive).sum(1) / count.clamp(min=1)
        log_sum = torch.logsumexp(rest, 1)
        # A row without any positive teaches nothing: it costs 0 and leaves the mean.
        loss = torch.where(count > 0, log_sum - mean_positive, torch.zeros_like(log_sum))
        if reduction == "mean":
            return loss.sum() / (count > 0).sum().clamp(min=1)
    elif itself is not None:
        # Two identical views of every row: the twin is the positive, all else occurs twice.
        difference = (logits - logits.diagonal()[:, None]).masked_fill(itself, -torch.inf)
        loss = F.softplus(torch.logsumexp(difference, 1) + float(np.log(2.0)))
    else:
        loss = torch.logsumexp(logits, 1) - logits.diagonal()
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def search(
    values: np.ndarray,
    indices: np.ndarray,
    dim: int,
    query_values: np.ndarray,
    query_indices: np.ndarray,
    top_k: int,
    ids: np.ndarray | None = None,
    most: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-inner-product search, exact, as `InvertedIndex` defines it.

    values/indices [N, k] are the stored codes, query_values/query_indices [n, k'] the
    queries, both as float32 and in SparseCodes order. A score is summed in float32 over
    the query's slots from first to last, each product rounded before it is added; a sum of
    more than `most`, which is 1 for cosines, counts as that. Returns scores [n, top_k] and
    ids [n, top_k]: best first, equal scores by lower id, scores that are not above 0 left out,
    missing places (-inf, -1).
    """
    n_docs, n_queries = len(values), len(query_values)
    ids = np.arange(n_docs, dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
    dense = np.zeros((n_docs, dim), np.float32)
    rows, slots = np.nonzero(values)
    dense[rows, indices[rows, slots]] = values[rows, slots]

    scores_out = np.full((n_queries, top_k), -np.inf, np.float32)
    ids_out = np.full((n_queries, top_k), -1, np.int64)
    for i in range(n_queries):
        score = np.zeros(n_docs, np.float32)
        for value, latent in zip(query_values[i], query_indices[i], strict=True):
            if value != 0:
                score += np.float32(value) * dense[:, latent]
        score = np.minimum(score, np.float32(most))
        hits = np.flatnonzero(score > 0)
        best = hits[np.lexsort((ids[hits], -score[hits]))][:top_k]
        scores_out[i, : len(best)] = score[best]
        ids_out[i, : len(best)] = ids[best]
    return scores_out, ids_out


def walk(
    docs: np.ndarray,
    neighbors: np.ndarray,
    latents: np.ndarray,
    weights: np.ndarray,
    top_k: int,
    *,
    kept: float,
    width: int,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search for one query by a walk along the graph of an index, as `mode="fast"` may.

    It begins with the best 8 documents of a tenth (of more than 100,000, of 10,000), by the
    first entries of the query that make up a share `kept` of its squared norm. Documents are
    ordered by near scores: float32 sums over their latents, ascending, in eight lanes, of which
    the halves are added. The neighbors of the best one whose neighbors have not been scored are
    next, until those of the best `width` have been. The best `top_k` are remembered, or `width`,
    or 10. Where the sample has fewer than 8, or fewer than `top_k` and 10 are found and allowed,
    all documents are searched.

    Args:
        docs: float32 [n, dim], as stored.
        neighbors: [n, any] documents; n or more for none.
        latents, weights: of the query, by descending weight.
        allowed: bool [n]; `width` and `top_k` count for these: they grow by the share of the
            others.

    Returns:
        scores [top_k] and documents [top_k]: of the best `top_k` (or 10) by near scores that are
        allowed, the best by exact scores (as `search`), missing places (-inf, -1).
    """
    n, dim = docs.shape
    allowed = np.ones(n, bool) if allowed is None else allowed
    wanted, n_allowed = max(top_k, 10), max(1, int(allowed.sum()))
    width, most = (-(-min(one, n) * n // n_allowed) for one in (width, wanted))
    query = np.zeros(dim, np.float32)
    query[latents] = weights

    def exact(some: np.ndarray, entries: int) -> np.ndarray:
        score = np.zeros(len(some), np.float32)
        for latent, weight in zip(latents[:entries], weights[:entries], strict=True):
            score += weight * docs[some, latent]
        return score

    def near(doc: int) -> np.float32:
        own = np.flatnonzero(docs[doc])
        lanes = np.zeros(8, np.float32)
        for first in range(0, len(own), 8):
            some = own[first : first + 8]
            lanes[: len(some)] += query[some] * docs[doc, some]
        for half in (4, 2, 1):
            lanes[:half] += lanes[half : 2 * half]
        return lanes[0]

    squares = np.cumsum(weights.astype(np.float64) ** 2)
    before = np.concatenate([[0], squares[:-1]])
    entries = (
        int((before < kept * squares[-1]).sum()) if kept < 1 and len(squares) else len(weights)
    )
    stride = max(10, n // 10_000)
    numbers = np.arange(-(-n // stride))
    shifts = (numbers * 2_654_435_761 % 2**32 >> 16) % stride
    sample = np.minimum(numbers * stride + shifts, n - 1)
    of_sample = exact(sample, entries)
    entrances = sample[np.lexsort((sample, -of_sample))][: min(8, int((of_sample > 0).sum()))]
    met, left = set(entrances.tolist()), set()
    stops = [(-near(doc), doc) for doc in entrances.tolist()]
    while True:
        stops = sorted(stops)[: max(width, most)]
        open_ones = [doc for _, doc in stops[:width] if doc not in left]
        if not open_ones:
            break
        left.add(open_ones[0])
        fresh = dict.fromkeys(neighbors[open_ones[0]].tolist())
        for doc in fresh:
            if doc < n and doc not in met:
                met.add(doc)
                stops.append((-near(doc), doc))
    found = np.array([doc for _, doc in stops if allowed[doc]][:wanted], np.int64)
    if len(entrances) < 8 or len(found) < wanted:
        found = np.flatnonzero(allowed)
    scores_out = np.full(top_k, -np.inf, np.float32)
    docs_out = np.full(top_k, -1, np.int64)
    score = exact(found, len(weights))
    found, score = found[score > 0], score[score > 0]
    order = np.lexsort((found, -score))[:top_k]
    scores_out[: len(order)], docs_out[: len(order)] = score[order], found[order]
    return scores_out, docs_out


def similarity_top_k(
    queries: np.ndarray, codes: np.ndarray, top_k: int, min_score: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top_k` greatest positive entries of each row of queries · codesᵀ; see `search`.

    queries [n, dim] and codes [m, dim] are dense, of either sign. A score is summed by the
    query's values, descending, then by latent; one below `min_score` is left out.
    """
    queries, codes = (side.astype(np.float32) for side in (queries, codes))
    order = np.argsort(-queries, axis=1, kind="stable")
    latents = np.broadcast_to(np.arange(codes.shape[1]), codes.shape)
    scores, ids = search(
        *(codes, latents, codes.shape[1]), np.take_along_axis(queries, order, 1), order, top_k
    )
    low = scores < min_score
    return np.where(low, -np.float32(np.inf), scores), np.where(low, -1, ids)


def fine_encode(x: np.ndarray, codebooks: np.ndarray, parts: int, beam: int) -> np.ndarray:
    """Fine codes uint8 [n, books] of rows x float32 [n, d], without the mean.

    codebooks [books, 256, d / parts] are float32. Codebook by codebook of a part, the `beam` best
    choices of words so far are kept: those of the least |sum|² - 2 ⟨x, sum⟩, of equal ones that of
    the better beginning, then of the lower word. Sums are of float32, from the first term on, those
    of products rounded with each product at once.
    """
    books, words, width = codebooks.shape
    each = books // parts
    out = np.zeros((len(x), books), np.uint8)
    squares = np.square(codebooks, dtype=np.float64).sum(2).astype(np.float32)
    two = np.float32(2)
    for i, row in enumerate(x):
        for first in range(0, books, each):
            z = row[first // each * width :][:width]
            kept: list[tuple[np.float32, list[int]]] = [(np.float32(0), [])]
            for b in range(first, first + each):
                alone = squares[b] - two * _dots(codebooks[b], z)
                costs = []
                for cost, chosen in kept:
                    new = alone
                    for book, word in enumerate(chosen, first):
                        new = new + two * _dots(codebooks[b], codebooks[book, word])
                    costs.append(new + cost)
                order = np.argsort(np.concatenate(costs), kind="stable")[:beam]
                kept = [
                    (costs[at // words][at % words], [*kept[at // words][1], int(at % words)])
                    for at in order
                ]
            out[i, first : first + each] = kept[0][1]
    return out


def fine_scores(
    codes: np.ndarray,
    queries: np.ndarray,
    codebooks: np.ndarray,
    mean: np.ndarray,
    parts: int,
    scales: np.ndarray | None = None,
) -> np.ndarray:
    """Scores float32 [m, n] of queries float32 [m, d] with fine codes uint8 [n, bytes].

    The sum over a code's words of their products with the query, from the first codebook on, plus
    the product with `mean`; times what the code's last byte chooses of `scales`, where given.
    """
    books, _, width = codebooks.shape
    each = books // parts
    out = np.zeros((len(queries), len(codes)), np.float32)
    for i, query in enumerate(queries):
        for b in range(books):
            part = query[b // each * width :][:width]
            out[i] += _dots(codebooks[b], part)[codes[:, b]]
        out[i] += _dots(mean[None], query)[0]
        if scales is not None:
            out[i] *= scales[codes[:, books]]
    return out


def search_fine(
    codes: np.ndarray,
    tables: np.ndarray,
    offsets: np.ndarray,
    top_k: int,
    *,
    scales: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    min_score: float = -np.inf,
    probes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search by the fine codes uint8 [n, bytes] of all documents, as `InvertedIndex` defines it.

    A score is the float32 sum of a code's entries in a query's tables [m, books, 256], from the
    first book on, plus the query's offset; times what the code's last byte chooses of `scales`
    [256], where given. NaN counts as the least number. Documents that are not `allowed`, bool
    [m, n], or score below `min_score`, are left out, and with `probes` those whose first byte is
    not among that many of the largest entries of a query's first table (NaN last, equal ones by
    lower byte). Returns scores [m, top_k] and ids [m, top_k]:
    best first, equal scores by lower id, missing places (-inf, -1).
    """
    n, books = len(codes), tables.shape[1]
    ids = np.arange(n, dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
    scores_out = np.full((len(tables), top_k), -np.inf, np.float32)
    ids_out = np.full((len(tables), top_k), -1, np.int64)
    for i, (table, offset) in enumerate(zip(tables, offsets, strict=True)):
        score = np.zeros(n, np.float32)
        with np.errstate(all="ignore"):
            for b in range(books):
                score += table[b][codes[:, b]]
            score += offset
            if scales is not None:
                score *= scales[codes[:, books]]
        score[np.isnan(score)] = np.finfo(np.float32).min
        hits = np.flatnonzero(score >= np.float32(min_score))
        if allowed is not None:
            hits = hits[allowed[i][hits]]
        if probes is not None:
            best_words = np.argsort(-table[0], kind="stable")[:probes]  # NaN is last
            hits = hits[np.isin(codes[hits, 0], best_words)]
        best = hits[np.lexsort((ids[hits], -score[hits]))][:top_k]
        scores_out[i, : len(best)] = score[best]
        ids_out[i, : len(best)] = ids[best]
    return scores_out, ids_out


def _dots(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Inner products float32 of rows [n, d] with x [d], from the first column on.

    A product and the sum that it is added to are rounded at once (fused multiply-add).
    """
    total = np.zeros(len(rows), np.float32)
    for column, value in zip(rows.T, x, strict=True):
        total = _fused(column, value, total)
    return total


def _fused(a: np.ndarray, b: np.float32, c: np.ndarray) -> np.ndarray:
    """Return a * b + c of float32, rounded once.

    A product is exact in float64. A sum that is not is made odd in its last bit, so that rounding
    it to float32 rounds what it stands for (Boldo & Melquiond, IEEE Trans. Computers 2008).
    """
    product = a.astype(np.float64) * np.float64(b)
    total = product + c
    added = total - product
    lost = (product - (total - added)) + (c - added)
    bits = total.view(np.int64)
    odd = (lost != 0) & (bits % 2 == 0)
    bits[odd] += np.where((lost > 0) == (total > 0), 1, -1)[odd]
    return total.astype(np.float32)


def stored_values(values: np.ndarray, form: str, largest: float = 1.0) -> np.ndarray:
    """Values ≥ 0 (float32) as an `InvertedIndex` holds them.

    "float16" and "float32" round to the nearest number; "uint8" to the nearest,
    the lower of two, of the squares of 1..256, times what makes the last one
    `largest`, a power of two; "uint4" of those of 1..16. No positive value becomes 0.
    """
    if form.startswith("float"):
        rounded = values.astype(form).astype(np.float32)
        least = np.float32(np.finfo(form).smallest_subnormal)
        return np.where((values > 0) & (rounded == 0), least, rounded)
    roots = np.arange(1.0, {"uint8": 257, "uint4": 17}[form])
    unit = largest / roots[-1] ** 2
    middles = (roots[:-1] ** 2 + roots[1:] ** 2) / 2
    nearest = roots[np.searchsorted(middles, values / unit)].astype(np.float32)
    return np.where(values > 0, nearest * nearest * np.float32(unit), np.float32(0))


def pack(
    values: np.ndarray, indices: np.ndarray, dim: int, value_bits: int, largest: float
) -> list[bytes]:
    """Rows of `PackedCodes`, as csrc/include/csrkern/packed.hpp describes them.

    values/indices [n, k] are codes with float32 values of at most `largest`.
    """
    k, top = values.shape[1], np.float32(2**value_bits - 1)
    low_bits = min(range(32), key=lambda low: k * (low + 1) + ((dim - 1) >> low))
    scales = [np.float32(largest) * np.float32(2 ** (-byte / 8)) for byte in range(256)]
    rows = []
    for row_values, row_indices in zip(values, indices, strict=True):
        byte = max((i for i, scale in enumerate(scales) if scale >= row_values.max()), default=0)
        entries = []
        for value, latent in zip(row_values, row_indices, strict=True):
            if value > 0:
                level = value / scales[byte] * top + np.float32(0.5)
                entries.append((int(latent), int(np.clip(level, 1, top))))
        entries = sorted(entries)
        entries += [(entries[-1][0] if entries else 0, 0)] * (k - len(entries))
        bits = [f"{byte:08b}"[::-1]]
        highs = [latent >> low_bits for latent, _ in entries]
        unary = "".join(
            "0" * (high - before) + "1" for before, high in zip([0, *highs], highs, strict=False)
        )
        bits.append(unary.ljust(k + ((dim - 1) >> low_bits), "0"))
        for column, width in ((0, low_bits), (1, value_bits)):
            for entry in entries:
                bits += ["0" if not entry[column] >> i & 1 else "1" for i in range(width)]
        text = "".join(bits)
        rows.append(int(text[::-1], 2).to_bytes(-(-len(text) // 8), "little"))
    return rows


def _unit_rows(dense: Tensor) -> Tensor:
    """Rows at L2 norm 1; a zero row stays zero (and passes no gradient) instead of NaN."""
    square = dense.square().sum(1, keepdim=True)
    inverse = torch.where(square > 0, square, torch.ones_like(square)).rsqrt()
    return dense * inverse
