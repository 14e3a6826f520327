"""Other packages' models and files; each module here loads when it is first touched.

- `sentence_transformers`: `accelerate`, which runs an existing `SparseEncoder` on our kernels.
- `sentence_transformers_folder`: adapters to and from the directories that package saves.
- `checkpoints`: adapters to and from the paper's `.pth` and EleutherAI's TopK autoencoders.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("checkpoints", "sentence_transformers", "sentence_transformers_folder")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
