"""InvertedIndex: exact search over sparse codes, on NumPy alone."""

from __future__ import annotations

from csrkern import lazy

__getattr__, __dir__ = lazy.attributes(
    __name__, {"InvertedIndex": ".inverted", "Rerank": ".rerank", "CudaIndex": ".cuda.index"}
)
