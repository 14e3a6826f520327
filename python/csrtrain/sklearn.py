"""CSRTransformer: a scikit-learn transformer that trains an adapter."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import scipy.sparse as sp
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"this needs scikit-learn 1.6 or later ({error}); pip install 'csrkern[sklearn]'"
    ) from error

from csrkern.arguments import as_int, check_int
from csrkern.integrations.sklearn import class_numbers


class CSRTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeddings to sparse codes: `fit` trains an adapter, `transform` encodes.

    Parameters:
        k: active latents a row.
        hidden_dim: number of latents h; None: as the settings have it (default: 4,096).
        contrast: "self", or "label", which pulls the codes of rows of one class together and
            needs y; None trains on reconstruction alone.
        steps: optimizer steps; None: by the number of rows.
        preset: published settings to start from, a name for `csrtrain.TrainConfig.preset`;
            None: the recommended recipe.
        config: further fields of `csrtrain.TrainConfig`, as a dictionary.
        random_state: an int gives the same model each time; None, or a RandomState, does not.
        device: where to train; None: a CUDA device if there is one, else the CPU.

    Attributes:
        model_: the trained `csrkern.nn.SparseAutoencoder`.
        n_features_in_: the width d of the embeddings.
    """

    def __init__(
        self,
        k: int = 32,
        *,
        hidden_dim: int | None = None,
        contrast: str | None = "self",
        steps: int | None = None,
        preset: str | None = None,
        config: dict[str, Any] | None = None,
        random_state: Any = 0,
        device: Any = None,
    ) -> None:
        self.k = k
        self.hidden_dim = hidden_dim
        self.contrast = contrast
        self.steps = steps
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> CSRTransformer:
        """Train on embeddings X [n, d]; y [n] are classes, for contrast="label" only.

        Raises:
            TypeError: if a parameter has the wrong type.
            ValueError: if X is not finite and of at least 2 rows, y is not of classes (a missing
                one is none), or a parameter does not fit.
        """
        from csrtrain import TrainConfig, train

        needs_y = self.contrast == "label"
        if needs_y and y is None:
            raise ValueError(
                "contrast='label' requires y to be passed, but the target y is None: "
                "give the class of each row, or contrast='self'"
            )
        checks = {"dtype": np.float32, "ensure_min_samples": 2}
        labels = None
        if needs_y:
            X, y = validate_data(self, X, y, **checks)
            labels = class_numbers(y)
        else:
            X = validate_data(self, X, **checks)
        seed = self.random_state
        if isinstance(seed, (int, np.integer)):
            seed = check_int("random_state", int(seed), 0, 2**32 - 1)
        else:
            seed = int(check_random_state(seed).randint(2**31))
        sizes = {"k": self.k, "hidden_dim": self.hidden_dim, "steps": self.steps}
        changes = {
            **{name: as_int(name, size) for name, size in sizes.items() if size is not None},
            "contrast": self.contrast,
            "seed": seed,
            **(self.config or {}),
        }
        config = (
            TrainConfig.preset(self.preset, **changes) if self.preset else TrainConfig(**changes)
        )
        self.model_ = train(X, labels, config, progress=False, device=self.device)
        return self

    def transform(self, X: Any) -> sp.csr_array:
        """Return the codes of embeddings X [m, d]: float32 [m, h], at most k entries a row."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        return self.model_.encode(X).to_scipy()

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the embeddings float32 [m, d] that codes X [m, h] stand for.

        Raises:
            ValueError: if X has another width or is negative or not finite, or the model
                standardizes its input.
        """
        import torch

        from csrkern.codes.sparse import SparseCodes

        check_is_fitted(self)
        if self.model_.standardize:
            raise ValueError(
                "standardize=True takes out each row's mean and scale, which codes do not keep; "
                "train without it to get embeddings back"
            )
        X = X.to_scipy() if hasattr(X, "to_scipy") else X
        X = sp.csr_array(check_array(X, accept_sparse="csr", dtype=np.float32, input_name="X"))
        if X.shape[1] != self.model_.hidden_dim:
            raise ValueError(
                f"X: expected codes over {self.model_.hidden_dim} latents, got {X.shape[1]}"
            )
        with torch.inference_mode():
            return self.model_.decode(SparseCodes.from_scipy(X)).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.model_.hidden_dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.contrast == "label"
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


__all__ = ["CSRTransformer"]
