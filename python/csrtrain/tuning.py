"""tune: the settings that serve given embeddings best in given bytes, by rows that are held out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern import FineCodes, InvertedIndex, Projection, Refine, SparseCodes
from csrkern.arguments import check_at_least, check_bool, check_int, check_number
from csrkern.embeddings.dataset import open_embeddings
from csrkern.embeddings.labels import number_labels, read_integers, read_labels
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource
from csrtrain.evaluation.metrics import Judgments, search
from csrtrain.indexing import SHORTLIST_DTYPE, build_index
from csrtrain.progress import working
from csrtrain.training.config import TrainConfig
from csrtrain.training.projection import (
    LEAST_ROWS,
    favored,
    learn_projection,
    principal_projection,
    widths,
)
from csrtrain.training.quantizer import most_bytes, train_quantizers
from csrtrain.training.train import train

ENTRY_BYTES = {"uint4": 2, "uint8": 3}  # of a latent in lists, by the form of its value
DEPTH = 10
HELD, SHARE = 1000, 0.1  # rows that are held out: a share of them, at most so many
LEAST_FINE = 4  # bytes of a fine code that are worth a codebook's words
KS = (4, 8, 16, 32)  # of lists with fine codes beside them
WHITENINGS = (0.0, 0.3, -0.3)
PRINCIPAL_WHITENINGS = (0.0, 0.3, 0.6)
PROBES = (8, 16, 32, 64)  # cells of 256
LEAST_DIRECTIONS = 16  # of a projection

Judge = Callable[[np.ndarray], np.ndarray]
"""From ids [m, DEPTH] that queries find to scores of queries, 0..1; as many in each call."""


@dataclass(frozen=True)
class Setting:
    """One way to store embeddings in an index.

    Attributes:
        hidden_dim: of the model's `TrainConfig`; None: no lists and no model.
        whitening: of the model's `TrainConfig`; None: no lists and no model.
        k: latents of a document in the lists; 0: no lists, fine codes alone.
        dtype: of the values in the lists; None: no lists.
        fine_bytes: of its fine code; 0: none, codes are compared with codes.
        directions: of the projection behind which fine codes are made; None: no projection.
    """

    hidden_dim: int | None
    whitening: float | None
    k: int
    dtype: str | None
    fine_bytes: int
    directions: int | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of a document, without the directory of the lists."""
        entries = 0 if self.dtype is None else ENTRY_BYTES[self.dtype] * self.k
        return entries + self.fine_bytes


@dataclass(frozen=True)
class Trial:
    """The measured score and speed of a setting.

    Attributes:
        setting: what was tried.
        score: of held-out rows or queries, 0..1.
        queries_per_second: of batches on one thread, without their encoding.
        probes: of `InvertedIndex.search_fine`: the cells that give this score in the least time;
            None: no fewer than all do, or there are lists.
    """

    setting: Setting
    score: float
    queries_per_second: float
    probes: int | None = None


@dataclass(frozen=True)
class Tuned:
    """The outcome of `tune`.

    Attributes:
        measure: what scores are: "1-NN accuracy", "nDCG@10" or "dense neighbors kept".
        dense: the score of the embeddings themselves.
        trials: all that were made.
        best: of the highest score; of equals, the one of fewer bytes, then of fewer latents, then
            of fewer directions.
        config: settings to train the model of `best` with; None: it has none.
        projection: of `best`, learned from all labels or judgments, or principal directions;
            None: it has none.
    """

    measure: str
    dense: float
    trials: tuple[Trial, ...]
    best: Trial
    config: TrainConfig | None
    projection: Projection | None

    def build(
        self, embeddings: ArraySource, *, progress: bool = True
    ) -> tuple[SparseAutoencoder | None, InvertedIndex]:
        """Return a model and an index of all embeddings with the best setting.

        The model is None where the best setting has no lists (k = 0). Search then with
        `index.search_fine(queries, probes=tuned.best.probes)`; else with
        `index.search(model.encode(queries), rerank=Refine(queries))`, without `rerank` where the
        setting has no fine codes.
        """
        setting = self.best.setting
        model = None
        if self.config is not None:
            model = train(embeddings, config=self.config, progress=progress)
        dtype = setting.dtype or SHORTLIST_DTYPE  # of no meaning without lists
        if model is not None and not setting.fine_bytes:
            return model, InvertedIndex.build(model.encode(embeddings, setting.k), dtype=dtype)
        return model, build_index(
            model,
            embeddings,
            setting.k,
            n_bytes=setting.fine_bytes,
            projection=self.projection,
            dtype=dtype,
            progress=progress,
        )


def tune(
    embeddings: ArraySource,
    labels: ArraySource | None = None,
    *,
    n_bytes: int = 32,
    queries: ArraySource | None = None,
    qrels: ArraySource | None = None,
    lists: bool = True,
    whitenings: Sequence[float] = WHITENINGS,
    hidden_dims: Sequence[int | None] | None = None,
    config: TrainConfig | None = None,
    shortlist: int = 200,
    progress: bool = True,
) -> Tuned:
    """Find the settings that serve embeddings best in at most `n_bytes` a document.

    First come fine codes alone, which need no model, of all bytes, a half of them, a quarter and so
    on. Then a model is trained for each whitening and number of latents; with it, every split of
    the bytes between latents and fine codes is tried, and codes alone, with values of a byte and of
    half a byte (beside fine codes lists only choose: half a byte). With labels, or queries
    enough to learn from, a projection is learned (`learn_projection`), and everything with fine
    codes is tried behind it, too; where none is learned, behind the principal directions that
    score best (`principal_projection`), if they score more than the embeddings. Fine codes alone
    are also tried behind the first half of its directions, a quarter and so on, of at most a byte
    for two directions: faster, and of few bytes at times better. All are judged

    - by `labels`: 1-NN accuracy of held-out rows (a tenth, at most 1,000);
    - by `queries` with `qrels`: nDCG@10 over all embeddings; by all queries if fewer than 500 have
      a relevant document, else by half of them, at most 1,000, and a projection is learned from
      the others;
    - with neither, by the share of the 10 dense neighbors of held-out rows that are found.

    Takes a training for each model and, with a projection twice, one of codebooks: a minute or so
    for 32 bytes.

    Args:
        embeddings: [n, d], a path or an array, that fit in memory; at least 512 rows, with
            queries 256.
        labels: [n] integers or strings.
        n_bytes: of a document: 2 or 3 for a latent in the lists, by its value's form ("uint4",
            "uint8"), and its fine code. The directory of the lists comes on top: 16 bytes or so
            for each latent and window of documents.
        queries: [m, d].
        qrels: [p, 2] or [p, 3] rows (query, document, grade).
        lists: False: try fine codes alone; what is said of models then does not matter.
        whitenings: to try; see `TrainConfig`.
        hidden_dims: to try; None: that of `config`.
        config: all other settings of the models.
        shortlist: documents that fine codes score where there are lists.
        progress: say what is being done.

    Raises:
        ImportError: without FAISS.
        TypeError, ValueError: if an argument does not fit.

    Example:
        >>> tuned = csrtrain.tune(embeddings, n_bytes=32)  # doctest: +SKIP
        >>> model, index = tuned.build(embeddings)  # doctest: +SKIP
    """
    n_bytes = check_int("n_bytes", n_bytes, max(ENTRY_BYTES.values()), 4096)
    check_at_least("shortlist", shortlist, DEPTH)
    check_bool("lists", lists)
    config = config or TrainConfig()
    hidden_dims = (config.hidden_dim,) if hidden_dims is None else hidden_dims
    for name, given in (("whitenings", whitenings), ("hidden_dims", hidden_dims)):
        if not given:
            raise ValueError(f"{name}: expected at least one")
    configs = [
        dataclasses.replace(config, whitening=check_number("whitenings", w), hidden_dim=h)
        for h in hidden_dims
        for w in whitenings
    ]
    task = _Task.of(embeddings, labels, queries, qrels)
    learned = learn_projection(**task.known[0], progress=progress) if task.known else None
    other = learned or task.principal(progress)
    rows = task.database.numpy()
    trials = []
    choices: list[tuple[int, str, FineCodes | None]] = [
        (min(n_bytes // each, config.k), dtype, None) for dtype, each in ENTRY_BYTES.items()
    ]
    for projection in (None, *_narrower(other)):
        width = rows.shape[1] if projection is None else projection.width
        whole = projection in (None, other)
        sizes = [size for size in _halves(n_bytes) if whole or size <= width // 2]
        if not sizes:
            continue
        alone = {most_bytes(size, width) for size in sizes}
        beside = {
            k: most_bytes(n_bytes - ENTRY_BYTES[SHORTLIST_DTYPE] * k, width)
            for k in (_ks(n_bytes, config.k) if lists and whole else ())
        }
        with working(f"learning codebooks of {max(alone)} bytes", wanted=progress):
            made = train_quantizers(rows, {*alone, *beside.values()}, projection)
            fines = {size: quantizer.encode(rows) for size, quantizer in made.items()}
        for size in sorted(alone, reverse=True):
            trials.append(task.trial(_setting(None, None, 0, None, fines[size]), fines[size]))
        choices += ((k, SHORTLIST_DTYPE, fines[size]) for k, size in beside.items())
    for settings in configs if lists else ():
        model = train(task.database, config=settings, progress=progress)
        h, whitening = model.hidden_dim, settings.whitening
        with working(f"trying h = {h}, whitening {whitening:g}", wanted=progress):
            codes = model.encode(rows, max(k for k, *_ in choices))
            asked = model.encode(task.queries.numpy())
            for k, dtype, fine_or_none in choices:
                setting = _setting(h, whitening, k, dtype, fine_or_none)
                own = codes.truncate(k)
                trials.append(task.trial(setting, fine_or_none, own, asked, shortlist))
    best = max(trials, key=partial(_rank, rows.shape[1]))
    chosen = best.setting
    trained = None
    if chosen.whitening is not None:
        trained = dataclasses.replace(
            config, whitening=chosen.whitening, hidden_dim=chosen.hidden_dim
        )
    projection = None
    if chosen.directions is not None and other is not None:
        projection = other
        if learned and task.known:
            # All judgments may say that nothing is gained where some said that something is.
            projection = learn_projection(**task.known[1], progress=progress) or learned
        if chosen.directions < other.width:
            projection = projection.truncate(min(chosen.directions, projection.width))
    return Tuned(task.measure, task.dense(), tuple(trials), best, trained, projection)


def _ks(n_bytes: int, most: int) -> Iterator[int]:
    """Yield the numbers of latents that leave enough of n_bytes for a fine code."""
    for k in KS:
        if k <= most and n_bytes - ENTRY_BYTES[SHORTLIST_DTYPE] * k >= LEAST_FINE:
            yield k


def _halves(n_bytes: int) -> Iterator[int]:
    """Yield n_bytes, and a half of it again and again, down to what is worth a codebook."""
    yield n_bytes
    while (n_bytes := n_bytes // 2) >= LEAST_FINE:
        yield n_bytes


def _rank(d: int, trial: Trial) -> tuple[float, int, int, int]:
    """Return what `best` has most of, for embeddings of width d."""
    setting = trial.setting
    return trial.score, -setting.n_bytes, -setting.k, -(setting.directions or d)


def _narrower(projection: Projection | None) -> Iterator[Projection]:
    """Yield a projection, and the first half of its directions again and again."""
    while projection is not None:
        yield projection
        half = projection.width // 2
        projection = projection.truncate(half) if half >= LEAST_DIRECTIONS else None


def _setting(
    h: int | None, whitening: float | None, k: int, dtype: str | None, fine: FineCodes | None
) -> Setting:
    if fine is None:
        return Setting(h, whitening, k, dtype, 0)
    own = fine.quantizer
    directions = None if own.projection is None else own.projection.width
    return Setting(h, whitening, k, dtype, own.n_bytes, directions)


@dataclass(frozen=True)
class _Task:
    """Rows to index, queries, and a judge of what they find.

    Attributes:
        known: arguments of `learn_projection`: without what is judged by, and with all; None:
            too little to learn from.
    """

    measure: str
    database: Tensor
    queries: Tensor
    judge: Judge
    known: tuple[dict[str, Any], dict[str, Any]] | None = None

    @classmethod
    def of(
        cls,
        embeddings: ArraySource,
        labels: ArraySource | None,
        queries: ArraySource | None,
        qrels: ArraySource | None,
    ) -> _Task:
        if (queries is None) != (qrels is None):
            raise ValueError("queries, qrels: expected both or neither")
        if labels is not None and queries is not None:
            raise ValueError("labels, queries: expected one of the two to judge by")
        rows = torch.cat([*open_embeddings("embeddings", embeddings).pieces()])
        if queries is not None:
            assert qrels is not None
            asked = torch.cat([*open_embeddings("queries", queries, width=rows.shape[1]).pieces()])
            return cls._by_queries(rows, asked, read_integers(qrels))
        if len(rows) < 512:
            raise ValueError(f"embeddings: expected at least 512 rows, got {len(rows)}")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        n_held = min(HELD, round(SHARE * len(rows)))
        held, kept = order[:n_held], order[n_held:].sort().values
        if labels is not None:
            (numbers,) = number_labels(read_labels(labels, n=len(rows)))

            names, wanted = numbers[kept].numpy(), numbers[held].numpy()

            def accuracy(ids: np.ndarray) -> np.ndarray:
                first = ids[:, 0]
                right: np.ndarray = ((names[first] == wanted) & (first >= 0)).astype(np.float64)
                return right

            kept_rows = rows[kept]
            known = (
                {"embeddings": kept_rows, "labels": numbers[kept]},
                {"embeddings": rows, "labels": numbers},
            )
            return cls("1-NN accuracy", kept_rows, rows[held], accuracy, known)
        neighbors = search(rows[kept], rows[held], DEPTH)

        def kept_share(ids: np.ndarray) -> np.ndarray:
            found = (ids[:, :DEPTH, None] == neighbors[:, None]).any(2)
            share: np.ndarray = found.sum(1) / neighbors.shape[1]
            return share

        return cls("dense neighbors kept", rows[kept], rows[held], kept_share)

    @classmethod
    def _by_queries(cls, rows: Tensor, queries: Tensor, qrels: np.ndarray) -> _Task:
        """Hold out half of the queries to judge by, if the others are enough to learn from."""
        judgments = Judgments(qrels, len(queries), len(rows))
        pairs = judgments.pairs()
        judged = np.unique(pairs[:, 0])
        n_held = min(HELD, len(judged) // 2)
        if len(judged) - n_held < LEAST_ROWS:
            return cls("nDCG@10", rows, queries, judgments.ndcg_each)
        order = torch.randperm(len(judged), generator=torch.Generator().manual_seed(0)).numpy()
        held = np.sort(judged[order[:n_held]])
        is_held = np.isin(qrels[:, 0], held)
        own = qrels[is_held].copy()
        own[:, 0] = np.searchsorted(held, own[:, 0])
        sides = {"embeddings": queries, "partners": rows}
        known = (
            {**sides, "pairs": pairs[~np.isin(pairs[:, 0], held)]},
            {**sides, "pairs": pairs},
        )
        judge = Judgments(own, n_held, len(rows)).ndcg_each
        return cls("nDCG@10", rows, queries[torch.from_numpy(held)], judge, known)

    def dense(self) -> float:
        """Return the score of the embeddings themselves."""
        return float(self.plain.mean())

    @cached_property
    def plain(self) -> np.ndarray:
        """Scores of the embeddings themselves, one a query."""
        return self.judge(search(self.database, self.queries, DEPTH))

    def principal(self, progress: bool) -> Projection | None:
        """Return the principal directions that score best; None: the embeddings do."""
        if self.plain.min() == 1:
            return None
        d, scores, wholes = self.database.shape[1], {}, {}
        with working("trying principal directions", wanted=progress):
            for how in PRINCIPAL_WHITENINGS:
                wholes[how] = whole = principal_projection(self.database, d, whitening=how)
                sides = self.database.numpy(), self.queries.numpy()
                rows, queries = (torch.from_numpy(whole(side)) for side in sides)
                for width in widths(d):
                    found = search(rows[:, :width], queries[:, :width], DEPTH)
                    scores[how, width] = self.judge(found)
        best = favored(scores, self.plain)
        if best is None:
            return None
        how, width = best
        return wholes[how].truncate(width)

    def trial(
        self,
        setting: Setting,
        fine: FineCodes | None,
        codes: SparseCodes | None = None,
        asked: SparseCodes | None = None,
        shortlist: int = 0,
    ) -> Trial:
        """Try a setting: fine codes alone, or codes of rows and queries as well."""
        dtype = setting.dtype or SHORTLIST_DTYPE  # of no meaning without lists
        index = InvertedIndex.build(codes, dtype=dtype, fine=fine)
        dense = self.queries.numpy()

        def find(some: slice, probes: int | None) -> np.ndarray:
            if asked is None:
                return index.search_fine(dense[some], DEPTH, probes=probes, num_threads=1)[1]
            rerank = None if fine is None else Refine(dense[some], shortlist)
            return index.search(asked[some], DEPTH, rerank=rerank, num_threads=1)[1]

        def measured(probes: int | None) -> Trial:
            find(slice(1), probes)  # makes what is made at first use
            began = time.perf_counter()
            ids = find(slice(None), probes)
            spent = time.perf_counter() - began
            return Trial(setting, float(self.judge(ids).mean()), len(dense) / spent, probes)

        whole = measured(None)
        if asked is not None:
            return whole
        as_good = [t for t in map(measured, PROBES) if t.score >= whole.score]
        fastest = max([whole, *as_good], key=lambda trial: trial.queries_per_second)
        return dataclasses.replace(fastest, score=whole.score)
