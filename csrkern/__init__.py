"""csrkern: fast kernels and exact search for Contrastive Sparse Representation (CSR).

Importing this package costs a few milliseconds and does not import PyTorch: the operators
and `SparseCodes` load on first use, and `InvertedIndex` needs only NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# The native module is loaded at once: it watches for forks, after which PyTorch's threads are gone.
from csrkern import _C, lazy  # noqa: F401
from csrkern._version import __version__

if TYPE_CHECKING:
    from csrkern import integrations, nn, reference, roofline
    from csrkern.codes.packed import PackedCodes, packed_bytes, packed_k
    from csrkern.codes.sparse import SparseCodes
    from csrkern.identity import ModelMismatchError
    from csrkern.index.cuda.index import CudaIndex
    from csrkern.index.fine import FineCodes, FineQuantizer
    from csrkern.index.fuse import fuse
    from csrkern.index.inverted import InvertedIndex
    from csrkern.index.projection import Projection
    from csrkern.index.rerank import Refine, Rerank
    from csrkern.index.top_k import similarity_top_k
    from csrkern.ops.autoencode import autoencode
    from csrkern.ops.decode import decode
    from csrkern.ops.encode import encode
    from csrkern.ops.info_nce import info_nce
    from csrkern.ops.prefix_errors import prefix_errors
    from csrkern.ops.similarity import similarity
    from csrkern.ops.topk_relu import topk_relu

_HOME_OF = {
    "CudaIndex": ".index.cuda.index",
    "FineCodes": ".index.fine",
    "FineQuantizer": ".index.fine",
    "InvertedIndex": ".index.inverted",
    "ModelMismatchError": ".identity",
    "PackedCodes": ".codes.packed",
    "Projection": ".index.projection",
    "Refine": ".index.rerank",
    "Rerank": ".index.rerank",
    "SparseCodes": ".codes.sparse",
    "autoencode": ".ops.autoencode",
    "decode": ".ops.decode",
    "encode": ".ops.encode",
    "fuse": ".index.fuse",
    "info_nce": ".ops.info_nce",
    "packed_bytes": ".codes.packed",
    "packed_k": ".codes.packed",
    "prefix_errors": ".ops.prefix_errors",
    "similarity": ".ops.similarity",
    "similarity_top_k": ".index.top_k",
    "topk_relu": ".ops.topk_relu",
}
_SUBMODULES = ("integrations", "nn", "reference", "roofline")

__all__ = [
    "CudaIndex",
    "FineCodes",
    "FineQuantizer",
    "InvertedIndex",
    "ModelMismatchError",
    "PackedCodes",
    "Projection",
    "Refine",
    "Rerank",
    "SparseCodes",
    "__version__",
    "autoencode",
    "decode",
    "encode",
    "fuse",
    "info_nce",
    "integrations",
    "nn",
    "packed_bytes",
    "packed_k",
    "prefix_errors",
    "reference",
    "roofline",
    "similarity",
    "similarity_top_k",
    "topk_relu",
]

__getattr__, __dir__ = lazy.attributes(__name__, _HOME_OF, _SUBMODULES)
