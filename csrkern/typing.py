"""Names for the forms in which arrays, codes, ids, filters and vectors are taken.

They are for annotations: each function checks what it is given and says what it expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import numpy as np
    import scipy.sparse as sp
    import torch
    from numpy.typing import ArrayLike

    from csrkern.codes.sparse import SparseCodes

ArraySource: TypeAlias = "str | bytes | os.PathLike[str] | ArrayLike | torch.Tensor"
"""Embeddings [n, d] or what belongs to them: a path (also "file.npz:name"), an array of NumPy or
what speaks DLPack, a tensor, a data frame, or nested lists. See `csrtrain.load_embeddings`."""

CodesLike: TypeAlias = (
    "SparseCodes | sp.sparray | sp.spmatrix | torch.Tensor | tuple[ArrayLike, ArrayLike]"
)
"""n codes: SparseCodes; a SciPy sparse matrix [n, dim]; a torch sparse COO or CSR tensor [n, dim];
or a pair (values, indices) of arrays or tensors, both [n, k]."""

CodesSource: TypeAlias = "str | os.PathLike[str] | CodesLike | Iterable[CodesLike]"
"""More codes than fit in memory: a file of `SparseCodes.save`, a pair of mapped arrays (values,
indices), or an iterable of codes."""

IdsLike: TypeAlias = "ArrayLike | torch.Tensor"
"""Integers 0..2^63 - 1: a sequence, an array or a tensor."""

FilterLike: TypeAlias = "np.ndarray | torch.Tensor | IdsLike | Sequence[FilterLike | None]"
"""A choice of the codes that a search may find: a boolean mask [n] or [queries, n], ids, or a list
with a mask, ids or None for each query."""

VectorsLike: TypeAlias = "ArrayLike | torch.Tensor"
"""Numbers: nested sequences, an array or a tensor."""

DevicesLike: TypeAlias = "str | torch.device | Sequence[str | torch.device]"
"""GPUs: "cuda", "cuda:1", a torch.device or a list of these."""
