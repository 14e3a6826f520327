"""Projections: directions that bring together what belongs together, and principal ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csrkern import Projection
from csrkern.arguments import check_int, check_number
from csrkern.embeddings.dataset import open_embeddings
from csrkern.embeddings.labels import number_labels, read_integers, read_labels
from csrkern.typing import ArraySource
from csrtrain.evaluation.metrics import Judgments, search
from csrtrain.pca import PCA
from csrtrain.progress import working

FOLDS, MOST_HELD = 5, 1000  # times that rows or queries are held out, at most so many of them
LEAST_ROWS = 250  # to learn from
MOST_SEARCHED = 20_000  # rows, of which directions are told apart by search
FINALISTS = 12  # of what is tried: the best of the first fold, which the others judge, too
DEPTH = 10
SHRINKAGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384)
# Standard errors: what a gain must exceed, and what fewer dimensions may cost. The best of so many
# gains more than 1 on half of random data.
GAIN, LOSS = 2.0, 0.5

Judge = Callable[[np.ndarray], np.ndarray]
"""From ids [n, DEPTH] that queries find to a score for each query."""


@dataclass(frozen=True)
class _Fold:
    """Rows or queries that are held out to judge by.

    Attributes:
        rows: [n, d] that are searched, at norm 1.
        queries: [m, d] that are held out, at norm 1.
        own: [m] rows of `queries` among `rows`, which they may not find; -1: none.
        judge: of what they find.
        apart: `_Evidence.apart` without them.
    """

    rows: Tensor
    queries: Tensor
    own: Tensor
    judge: Judge
    apart: Tensor


@dataclass(frozen=True)
class _Evidence:
    """Rows to search, and how those that belong together differ.

    Attributes:
        rows: [n, d] that are searched, at norm 1.
        apart: [d, d], the mean outer product of differences between rows that belong together.
        folds: what it is judged by.
    """

    rows: Tensor
    apart: Tensor
    folds: Iterator[_Fold]


def learn_projection(
    embeddings: ArraySource,
    labels: ArraySource | None = None,
    *,
    partners: ArraySource | None = None,
    pairs: ArraySource | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Projection | None:
    """Learn directions of embeddings that tell what belongs together, in less than a minute.

    Directions in which rows that belong together differ are shrunk, and the strongest directions
    of what is left are kept. A fifth of the rows or queries, at most 1,000, is held out and tells
    how much to shrink and how many to keep: by 1-NN accuracy, or by nDCG@10. So is each other
    fifth. Then all are learned from.

    Args:
        embeddings: [n, d], a path or an array, that fit in memory.
        labels: [n] integers or strings: rows of one label belong together.
        partners: [m, d] that belong to rows of `embeddings`, such as documents to queries; they
            are what is searched. None with `pairs`: the embeddings themselves.
        pairs: [p, 2] rows of `embeddings` and of `partners` that belong together; None: those of
            the same number. Without partners, two different rows.
        seed: of what is held out.
        progress: say what is being done.

    Returns:
        The projection, for `train_quantizer`; None: by what is held out, none is better than the
        embeddings themselves by more than two standard errors.

    Raises:
        TypeError, ValueError: if the data do not fit, or there are fewer than 250 rows.

    Source: learned whitening (Mikolajczyk & Matas, ICCV 2007; Radenovic et al., arXiv 1711.02512),
        shrunk (Friedman 1989); with labels, regularized discriminant analysis.

    Example:
        >>> projection = csrtrain.learn_projection(embeddings, labels)  # doctest: +SKIP
    """
    check_int("seed", seed, 0, 2**31 - 1)
    x = _unit(torch.cat([*open_embeddings("embeddings", embeddings).pieces()]))
    draw = torch.Generator().manual_seed(seed)
    if labels is not None:
        if partners is not None or pairs is not None:
            raise ValueError("labels: expected labels, or pairs, not both")
        (numbers,) = number_labels(read_labels(labels, n=len(x)))
        evidence = _by_labels(x, numbers, draw)
    elif partners is None and pairs is None:
        raise ValueError("labels: expected labels, partners or pairs to learn from, got none")
    else:
        evidence = _by_pairs(x, partners, pairs, draw)
    with working("learning a projection", wanted=progress):
        return _best(evidence)


def principal_projection(
    embeddings: ArraySource, width: int, *, whitening: float = 0.0
) -> Projection:
    """Keep the leading principal directions of embeddings, more or less whitened.

    Needs no labels. Fine codes of fewer dimensions are learned and searched faster. Where weak
    directions are noise, or strong ones tell little, they score more as well, elsewhere less:
    `csrtrain.tune` chooses by labels or judgments.

    Args:
        embeddings: [n, d], a path or an array, that fit in memory.
        width: directions to keep, at most d.
        whitening: from 0, directions as they are, to 1, all of the same variance.

    Raises:
        TypeError, ValueError: if an argument does not fit.

    Source: principal components; partial whitening as in Jegou & Chum (ECCV 2012).

    Example:
        >>> projection = csrtrain.principal_projection(embeddings, 64)  # doctest: +SKIP
    """
    whitening = check_number("whitening", whitening)
    if not 0 <= whitening <= 1:
        raise ValueError(f"whitening: expected a number in 0..1, got {whitening:g}")
    opened = open_embeddings("embeddings", embeddings)
    check_int("width", width, 1, opened.width)
    pca = PCA(_unit(torch.cat([*opened.pieces()])))
    # The floor keeps rounding errors small in directions without variance.
    floor = 1e-9 * float(pca.variances[0]) + 1e-30
    scales = pca.variances[:width].double().clamp(min=floor).pow(-whitening / 2)
    return Projection((pca.directions[:, :width] * scales).T.float().numpy(), pca.mean.numpy())


def _best(evidence: _Evidence) -> Projection | None:
    center = evidence.rows.mean(0)
    spread = _outer(evidence.rows - center)
    plain: list[np.ndarray] = []
    tried: dict[tuple[float, int], list[np.ndarray]] = {
        (shrinkage, width): [] for shrinkage in SHRINKAGES for width in widths(len(center))
    }
    for fold in evidence.folds:
        plain.append(fold.judge(_search(fold.rows, fold.queries, fold.own)))
        rows, queries = fold.rows - center, fold.queries - center
        for shrinkage in {shrinkage for shrinkage, _ in tried}:
            directions = _directions(fold.apart, spread, shrinkage).float()
            for width in [width for other, width in tried if other == shrinkage]:
                some = directions[:, :width]
                found = _search(rows @ some, queries @ some, fold.own)
                tried[shrinkage, width].append(fold.judge(found))
        finalists = sorted(tried, key=lambda one: -float(tried[one][0].mean()))[:FINALISTS]
        tried = {one: tried[one] for one in finalists}
    scores = {one: np.concatenate(judged) for one, judged in tried.items()}
    best = favored(scores, np.concatenate(plain))
    if best is None:
        return None
    shrinkage, width = best
    directions = _directions(evidence.apart, spread, shrinkage)[:, :width]
    return Projection(directions.T.float().numpy(), center.numpy())


def favored(
    scores: Mapping[tuple[float, int], np.ndarray], plain: np.ndarray
) -> tuple[float, int] | None:
    """Return the narrowest (how, width) that scores as well as the best; None: `plain` does.

    Args:
        scores: for each (how, width) those of queries, float64 [n].
        plain: [n], those of embeddings as they are.
    """
    most = max(scores.values(), key=lambda judged: judged.mean())
    if not _gain(most, plain) > GAIN:
        return None
    near = [one for one in scores if not _gain(most, scores[one]) > LOSS]
    return min(near, key=lambda one: (one[1], -scores[one].mean()))


def _gain(one: np.ndarray, other: np.ndarray) -> float:
    """Return by how many standard errors the mean of `one` is above that of `other`."""
    differences = one - other
    mean, error = float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))
    if error == 0:
        return math.inf if mean > 0 else 0.0
    return mean / error


def _directions(apart: Tensor, spread: Tensor, shrinkage: float) -> Tensor:
    """Return directions [d, d] as columns, the strongest first.

    They are the principal ones of rows whose second moments are `spread`, after the map
    (apart + shrinkage * mean variance of apart) to the power -1/2.
    """
    if shrinkage == math.inf:
        turn = torch.eye(len(apart), dtype=torch.float64)
    else:
        values, vectors = torch.linalg.eigh(apart)
        mean = values.clamp(min=0).mean()
        turn = vectors * (values.clamp(min=0) + shrinkage * mean + 1e-30).rsqrt() @ vectors.T
    principal = torch.linalg.eigh(turn @ spread @ turn)[1].flip(1)
    return turn @ principal


def widths(d: int) -> Iterator[int]:
    """Yield the numbers of directions to try of d."""
    yield from (width for width in WIDTHS if width < d)
    yield d


def _by_labels(x: Tensor, labels: Tensor, draw: torch.Generator) -> _Evidence:
    order = torch.randperm(len(x), generator=draw)

    def fold(held: Tensor) -> _Fold:
        kept = order[~torch.isin(order, held)]
        searched = kept[:MOST_SEARCHED].sort().values
        names, wanted = labels[searched].numpy(), labels[held].numpy()

        def judge(ids: np.ndarray) -> np.ndarray:
            first = ids[:, 0]
            right: np.ndarray = ((names[first] == wanted) & (first >= 0)).astype(np.float64)
            return right

        own = torch.full((len(held),), -1)
        return _Fold(x[searched], x[held], own, judge, _within(x[kept], labels[kept]))

    return _Evidence(x, _within(x, labels), map(fold, _held_out(order)))


def _within(x: Tensor, labels: Tensor) -> Tensor:
    """Return twice the covariance within classes: the mean over pairs of a class."""
    _, numbers = labels.unique(return_inverse=True)
    n = int(numbers.max()) + 1
    means = torch.zeros(n, x.shape[1]).index_add_(0, numbers, x)
    return 2 * _outer(x - (means / numbers.bincount()[:, None])[numbers])


def _by_pairs(
    x: Tensor, partners: ArraySource | None, pairs: ArraySource | None, draw: torch.Generator
) -> _Evidence:
    y = x
    if partners is not None:
        opened = open_embeddings("partners", partners, width=x.shape[1])
        y = _unit(torch.cat([*opened.pieces()]))
    within = torch.equal(x, y)
    both = _read_pairs(pairs, len(x), len(y), within)
    asked = both[:, 0].unique()
    order = asked[torch.randperm(len(asked), generator=draw)]
    shuffled = torch.randperm(len(y), generator=draw)

    def apart(chosen: Tensor) -> Tensor:
        return _outer(x[chosen[:, 0]] - y[chosen[:, 1]])

    def fold(held: Tensor) -> _Fold:
        is_held = torch.isin(both[:, 0], held)
        relevant = both[is_held]
        # The same pair may stand in both orders.
        unseen = torch.isin(both, held).any(1) if within else is_held
        # Rows that are searched: what is to be found, and others.
        needed = relevant[:, 1].unique()
        others = shuffled[~torch.isin(shuffled, needed)][: max(0, MOST_SEARCHED - len(needed))]
        searched = torch.cat([needed, others]).sort().values
        place = torch.full((len(y),), -1).index_copy_(0, searched, torch.arange(len(searched)))
        own = place[held] if within else torch.full((len(held),), -1)
        query_of = torch.full((len(x),), -1).index_copy_(0, held, torch.arange(len(held)))
        judged = torch.stack([query_of[relevant[:, 0]], place[relevant[:, 1]]], 1).numpy()
        judge = Judgments(judged, len(held), len(searched)).ndcg_each
        return _Fold(y[searched], x[held], own, judge, apart(both[~unseen]))

    return _Evidence(y, apart(both), map(fold, _held_out(order, "pairs", "rows with a partner")))


def _read_pairs(pairs: ArraySource | None, n: int, m: int, within: bool) -> Tensor:
    """Return pairs of n rows and m partners, int64 [p, 2]; `within`: these are the same rows."""
    if pairs is None:
        if within:
            raise ValueError("pairs: expected pairs, for the partners are the embeddings, got none")
        if n != m:
            raise ValueError(f"pairs: expected pairs, for there are {n} rows and {m} partners")
        return torch.arange(n).repeat(2, 1).T
    both = torch.from_numpy(read_integers(pairs, "pairs").astype(np.int64))
    if both.shape[1] != 2:
        raise ValueError(f"pairs: expected [p, 2] rows, got {list(both.shape)}")
    for column, count in ((0, n), (1, m)):
        wrong = both[:, column][(both[:, column] < 0) | (both[:, column] >= count)]
        if len(wrong):
            raise ValueError(f"pairs: expected rows in 0..{count - 1}, got {int(wrong[0])}")
    same = both[:, 0][both[:, 0] == both[:, 1]]
    if within and len(same):
        raise ValueError(
            f"pairs: expected two different rows in each, got row {int(same[0])} twice"
        )
    return both


def _held_out(order: Tensor, name: str = "embeddings", what: str = "rows") -> Iterator[Tensor]:
    """Yield the rows that each fold holds out."""
    if len(order) < LEAST_ROWS:
        raise ValueError(
            f"{name}: expected at least {LEAST_ROWS} {what} to learn from, got {len(order)}"
        )
    return (part[:MOST_HELD] for part in order.tensor_split(FOLDS))


def _search(rows: Tensor, queries: Tensor, own: Tensor) -> np.ndarray:
    """Return the ids [m, DEPTH] that queries find by cosine, without their own."""
    ids = search(rows, queries, DEPTH + 1)
    others_first = np.argsort(ids == own[:, None].numpy(), axis=1, kind="stable")[:, :DEPTH]
    return np.take_along_axis(ids, others_first, 1)


def _outer(rows: Tensor) -> Tensor:
    """Return the mean outer product of rows, in double."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for some in rows.split(8192):
        total += some.double().T @ some.double()
    return total / max(len(rows), 1)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1, eps=1e-300).float()
