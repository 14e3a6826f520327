"""tune: the settings that serve given embeddings best in given bytes, by rows that are held out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrkern import FineQuantizer, InvertedIndex, Refine, SparseCodes
from csrkern.arguments import check_at_least, check_int, check_number
from csrkern.embeddings.dataset import open_embeddings
from csrkern.embeddings.labels import number_labels, read_integers, read_labels
from csrkern.nn import SparseAutoencoder
from csrkern.typing import ArraySource
from csrtrain.evaluation.metrics import Judgments, search
from csrtrain.indexing import build_index
from csrtrain.progress import working
from csrtrain.training.config import TrainConfig
from csrtrain.training.quantizer import train_quantizer
from csrtrain.training.train import train

ENTRY_BYTES = 3  # of a latent in lists with uint8 values
DEPTH = 10
HELD, SHARE = 1000, 0.1  # rows that are held out: a share of them, at most so many
LEAST_FINE = 4  # bytes of a fine code that are worth a codebook's words
KS = (4, 8, 16, 32)  # of lists with fine codes beside them
WHITENINGS = (0.0, 0.3, -0.3)

Judge = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Setting:
    """One way to store embeddings in an index.

    Attributes:
        hidden_dim: of the model's `TrainConfig`.
        whitening: of the model's `TrainConfig`.
        k: latents of a document in the lists.
        fine_bytes: of its fine code; 0: none, codes are compared with codes.
    """

    hidden_dim: int
    whitening: float
    k: int
    fine_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of a document, without the directory of the lists."""
        return ENTRY_BYTES * self.k + self.fine_bytes


@dataclass(frozen=True)
class Trial:
    """The measured score and speed of a setting.

    Attributes:
        setting: what was tried.
        score: of held-out rows or queries, 0..1.
        queries_per_second: of batches on one thread, without their encoding.
    """

    setting: Setting
    score: float
    queries_per_second: float


@dataclass(frozen=True)
class Tuned:
    """The outcome of `tune`.

    Attributes:
        measure: what scores are: "1-NN accuracy", "nDCG@10" or "dense neighbors kept".
        dense: the score of the embeddings themselves.
        trials: all that were made.
        best: of the highest score; of equals, the one with fewer latents.
        config: settings to train the model of `best` with.
    """

    measure: str
    dense: float
    trials: tuple[Trial, ...]
    best: Trial
    config: TrainConfig

    def build(
        self, embeddings: ArraySource, *, progress: bool = True
    ) -> tuple[SparseAutoencoder, InvertedIndex]:
        """Return a model and an index of all embeddings with the best setting.

        Search the index with `index.search(model.encode(queries), rerank=Refine(queries))`, or
        without `rerank` where the best setting has no fine codes.
        """
        setting = self.best.setting
        model = train(embeddings, config=self.config, progress=progress)
        if setting.fine_bytes:
            n_bytes = setting.fine_bytes
            return model, build_index(
                model, embeddings, setting.k, n_bytes=n_bytes, progress=progress
            )
        return model, InvertedIndex.build(model.encode(embeddings, setting.k), dtype="uint8")


def tune(
    embeddings: ArraySource,
    labels: ArraySource | None = None,
    *,
    n_bytes: int = 32,
    queries: ArraySource | None = None,
    qrels: ArraySource | None = None,
    whitenings: Sequence[float] = WHITENINGS,
    hidden_dims: Sequence[int | None] | None = None,
    config: TrainConfig | None = None,
    shortlist: int = 200,
    progress: bool = True,
) -> Tuned:
    """Find the settings that serve embeddings best in at most `n_bytes` a document.

    For each whitening and number of latents a model is trained; with it, every split of the
    bytes between latents and fine codes is tried, and codes alone. They are judged

    - by `labels`: 1-NN accuracy of held-out rows (a tenth, at most 1,000);
    - by `queries` with `qrels`: nDCG@10 over all embeddings;
    - with neither, by the share of the 10 dense neighbors of held-out rows that are found.

    Takes a training for each model and a minute or so for each number of fine bytes.

    Args:
        embeddings: [n, d], a path or an array, that fit in memory; at least 512 rows.
        labels: [n] integers or strings.
        n_bytes: of a document: 3 for a latent in the lists, and its fine code. The directory of
            the lists comes on top: 16 bytes or so for each latent and window of documents.
        queries: [m, d].
        qrels: [p, 2] or [p, 3] rows (query, document, grade).
        whitenings: to try; see `TrainConfig`.
        hidden_dims: to try; None: that of `config`.
        config: all other settings of the models.
        shortlist: documents that fine codes score.
        progress: say what is being done.

    Raises:
        ImportError: without FAISS.
        TypeError, ValueError: if an argument does not fit.

    Example:
        >>> tuned = csrtrain.tune(embeddings, n_bytes=32)  # doctest: +SKIP
        >>> model, index = tuned.build(embeddings)  # doctest: +SKIP
    """
    n_bytes = check_int("n_bytes", n_bytes, ENTRY_BYTES, 4096)
    check_at_least("shortlist", shortlist, DEPTH)
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
    splits = list(_splits(n_bytes, config))
    quantizers: dict[int, FineQuantizer] = {}
    for size in {fine for _, fine in splits if fine}:
        with working(f"learning codebooks of {size} bytes", wanted=progress):
            quantizers[size] = train_quantizer(task.database, size, progress=False)
    fines = {size: made.encode(task.database.numpy()) for size, made in quantizers.items()}
    trials = []
    for settings in configs:
        model = train(task.database, config=settings, progress=progress)
        h, whitening = model.hidden_dim, settings.whitening
        with working(f"trying h = {h}, whitening {whitening:g}", wanted=progress):
            widest = max(k for k, _ in splits)
            codes = model.encode(task.database.numpy(), widest)
            asked = model.encode(task.queries.numpy())
            for k, size in splits:
                setting = Setting(h, whitening, k, size)
                trials.append(
                    task.trial(setting, codes.truncate(k), asked, fines.get(size), shortlist)
                )
    best = max(trials, key=lambda trial: (trial.score, -trial.setting.k))
    chosen = dataclasses.replace(
        config, whitening=best.setting.whitening, hidden_dim=best.setting.hidden_dim
    )
    return Tuned(task.measure, task.dense(), tuple(trials), best, chosen)


def _splits(n_bytes: int, config: TrainConfig) -> Iterator[tuple[int, int]]:
    """Yield (k, fine bytes) that fill n_bytes: codes alone, then those with fine codes."""
    yield min(n_bytes // ENTRY_BYTES, config.k), 0
    for k in KS:
        fine = n_bytes - ENTRY_BYTES * k
        if k <= config.k and fine >= LEAST_FINE:
            yield k, fine


@dataclass(frozen=True)
class _Task:
    """Rows to index, queries, and a judge of what they find."""

    measure: str
    database: Tensor
    queries: Tensor
    judge: Judge

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
            judgments = Judgments(read_integers(qrels), len(asked), len(rows))
            return cls("nDCG@10", rows, asked, judgments.ndcg)
        if len(rows) < 512:
            raise ValueError(f"embeddings: expected at least 512 rows, got {len(rows)}")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        n_held = min(HELD, round(SHARE * len(rows)))
        held, kept = order[:n_held], order[n_held:].sort().values
        if labels is not None:
            (numbers,) = number_labels(read_labels(labels, n=len(rows)))

            def accuracy(ids: np.ndarray) -> float:
                nearest = numbers[kept][torch.from_numpy(np.maximum(ids[:, 0], 0))]
                return float(
                    ((nearest == numbers[held]) & torch.from_numpy(ids[:, 0] >= 0)).float().mean()
                )

            return cls("1-NN accuracy", rows[kept], rows[held], accuracy)
        neighbors = search(rows[kept], rows[held], DEPTH)

        def kept_share(ids: np.ndarray) -> float:
            found = (ids[:, :DEPTH, None] == neighbors[:, None]).any(2)
            return float(found.sum() / neighbors.size)

        return cls("dense neighbors kept", rows[kept], rows[held], kept_share)

    def dense(self) -> float:
        """Return the score of the embeddings themselves."""
        return self.judge(search(self.database, self.queries, DEPTH))

    def trial(
        self, setting: Setting, codes: SparseCodes, asked: SparseCodes, fine: Any, shortlist: int
    ) -> Trial:
        """Try a setting."""
        index = InvertedIndex.build(codes, dtype="uint8", fine=fine)
        rerank = None if fine is None else Refine(self.queries.numpy(), shortlist)
        index.search(asked[:1], DEPTH, rerank=None, num_threads=1)  # what is made at first use
        began = time.perf_counter()
        _, ids = index.search(asked, DEPTH, rerank=rerank, num_threads=1)
        spent = time.perf_counter() - began
        return Trial(setting, self.judge(ids), len(self.queries) / spent)
