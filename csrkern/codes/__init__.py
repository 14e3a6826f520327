"""SparseCodes, their packed form and their files; loads PyTorch only when a class is touched."""

from __future__ import annotations

from csrkern import lazy

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "SparseCodes": ".sparse",
        "PackedCodes": ".packed",
        "packed_bytes": ".packed",
        "packed_k": ".packed",
    },
)
