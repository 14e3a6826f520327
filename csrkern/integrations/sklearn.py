"""scikit-learn's manners: a transformer that makes codes, and neighbors of codes.

    make_pipeline(CSRTransformer(k=16), LogisticRegression()).fit(embeddings, y)
    make_pipeline(CSRTransformer(), CSRNeighborsTransformer(), TSNE(metric="precomputed"))

Both pass all of scikit-learn's `check_estimator` that applies to them. Needs scikit-learn 1.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csrkern.arguments import as_int, check_int
from csrkern.index.inverted import InvertedIndex

try:
    import scipy.sparse as sp
    from joblib import effective_n_jobs
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"this needs scikit-learn 1.6 or later ({error}); pip install 'csrkern[sklearn]'"
    ) from error


class CSRNeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The nearest codes by cosine distance, exactly, from an `InvertedIndex`.

    In place of `KNeighborsTransformer` in front of estimators with metric="precomputed", and
    wherever an object with `kneighbors` will do, as `NearestNeighbors` has it.

    Parameters:
        n_neighbors: as many each row gets, where `kneighbors` is not told.
        mode: what `transform` gives: "distance" (of one neighbor more, for a row of the
            training set is its own) or "connectivity".
        dtype: in which the index stores values. Not "float16", as elsewhere: it is smaller, but
            rounds distances by up to 5e-4, which is more than near rows are apart.
        n_jobs: threads, as joblib counts them: −1 is one for each processor, −2 one less. None
            is one for each processor too.

    Attributes:
        index_: the `InvertedIndex` of the codes, by cosine.
        n_samples_fit_: codes in it.
        n_features_in_: the number of latents h.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        mode: str = "distance",
        dtype: str = "float32",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.mode = mode
        self.dtype = dtype
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> CSRNeighborsTransformer:
        """Indexes codes X [n, h]: SparseCodes, a SciPy sparse matrix or a dense array, ≥ 0.

        Raises:
            ValueError: if a value is negative or not finite, or `mode` is unknown.
        """
        if self.mode not in ("distance", "connectivity"):
            raise ValueError(f"mode: expected 'distance' or 'connectivity', got {self.mode!r}")
        codes = self._codes(X, reset=True)
        self.index_ = InvertedIndex.build(
            codes, metric="cosine", dtype=self.dtype, num_threads=self._threads
        )
        self.n_samples_fit_ = codes.shape[0]
        self._n_features_out = self.n_samples_fit_
        return self

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Return the `n_neighbors` nearest codes of each row, nearest first, equal ones by number.

        Args:
            X: queries [m, h]; None: the indexed codes, none of which is then its own neighbor.
            n_neighbors: None: the parameter of this name.
            return_distance: False leaves the distances out.

        Returns:
            distances float32 [m, n_neighbors], 1 − cosine, and numbers int64 of the same shape.

        Raises:
            ValueError: if there are not that many codes.
        """
        check_is_fitted(self)
        wanted = as_int("n_neighbors", self.n_neighbors if n_neighbors is None else n_neighbors)
        most = self.n_samples_fit_ - (X is None)
        if not 1 <= wanted <= most:
            raise ValueError(
                f"Expected 1 <= n_neighbors <= n_samples_fit, but n_neighbors = {wanted}, "
                f"n_samples_fit = {self.n_samples_fit_}"
                + (", of which one is the row itself" if X is None else "")
            )
        if X is None:
            order = np.argsort(self.index_.ids)
            values, latents = self.index_.to_numpy()
            neighbors = self._search((values[order], latents[order]), wanted + 1)
            distances, numbers = _without_own(*neighbors)
        else:
            distances, numbers = self._search(self._codes(X, reset=False), wanted)
        return (distances, numbers) if return_distance else numbers

    def kneighbors_graph(
        self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity"
    ) -> sp.csr_matrix:
        """`kneighbors` as a matrix [m, n]: 1 ("connectivity") or the distance of each neighbor."""
        if mode not in ("connectivity", "distance"):
            raise ValueError(f"mode: expected 'connectivity' or 'distance', got {mode!r}")
        distances, numbers = self.kneighbors(X, n_neighbors)
        data = distances if mode == "distance" else np.ones_like(distances)
        starts = np.arange(0, numbers.size + 1, numbers.shape[1])
        shape = (len(numbers), self.n_samples_fit_)
        return sp.csr_matrix((data.ravel(), numbers.ravel(), starts), shape=shape)

    def transform(self, X: Any) -> sp.csr_matrix:
        """Return the graph of neighbors of X [m, h] among the indexed codes, [m, n]."""
        check_is_fitted(self)
        wanted = check_int("n_neighbors", self.n_neighbors, 1, self.n_samples_fit_)
        return self.kneighbors_graph(X, wanted + (self.mode == "distance"), self.mode)

    def fit_transform(self, X: Any, y: Any = None) -> sp.csr_matrix:
        """`fit(X)`, then `transform(X)`: each row is its own first neighbor."""
        return self.fit(X).transform(X)

    @property
    def _threads(self) -> int | None:
        if self.n_jobs is None:
            return None
        return int(effective_n_jobs(as_int("n_jobs", self.n_jobs)))

    def _codes(self, X: Any, *, reset: bool) -> sp.csr_array:
        if hasattr(X, "to_scipy"):
            X = X.to_scipy()
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=reset)
        X = sp.csr_array(X)
        if X.nnz and X.data.min() < 0:
            raise ValueError(
                "Negative values in data passed to CSRNeighborsTransformer: expected codes, "
                "which are not negative; CSRTransformer makes them of embeddings"
            )
        return X

    def _search(self, queries: Any, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        scores, numbers = self.index_.search(queries, wanted, num_threads=self._threads)
        missing = numbers < 0
        # A search leaves out what shares no latent with the query; here that is at distance 1.
        for row in np.flatnonzero(missing.any(1)):
            taken = numbers[row][~missing[row]]
            # Of the first `wanted` codes, enough are not taken.
            rest = np.setdiff1d(np.arange(wanted), taken)
            numbers[row, len(taken) :] = rest[: wanted - len(taken)]
        scores[missing] = 0
        return np.maximum(1 - scores, 0), numbers

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def class_numbers(y: np.ndarray) -> np.ndarray:
    try:
        check_classification_targets(y)
        return np.unique(y, return_inverse=True)[1]
    except TypeError as error:  # as of names among which there is a None
        raise ValueError(
            f"y: expected classes that are all names or all numbers, with none missing ({error})"
        ) from error


def _without_own(distances: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row i without number i or, where equal codes crowd that out, without the last."""
    keep = numbers != np.arange(len(numbers))[:, None]
    keep[keep.all(1), -1] = False
    shape = (len(numbers), -1)
    return distances[keep].reshape(shape), numbers[keep].reshape(shape)


__all__ = ["CSRNeighborsTransformer"]
