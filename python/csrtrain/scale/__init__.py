"""More than one machine: encode a corpus, build and search a sharded index, train, on Ray.

Needs `pip install 'csrkern[ray]'`. Nothing else of csrkern imports this package, and importing
it imports neither Ray nor PyTorch.

A corpus becomes *pieces* of codes (`encode_corpus`), pieces become *shards*, each an index of the
ordinary file format (`build_shards`), and a manifest says which shards make up the index at the
moment. `ShardedIndex` serves them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csrtrain.scale.build import add_shard, build_shards
    from csrtrain.scale.encode import encode_corpus
    from csrtrain.scale.search import Answer, ShardedIndex
    from csrtrain.scale.training import train_on_ray

_HOME_OF = {
    "Answer": "search",
    "ShardedIndex": "search",
    "add_shard": "build",
    "build_shards": "build",
    "encode_corpus": "encode",
    "train_on_ray": "training",
}

__all__ = [
    "Answer",
    "ShardedIndex",
    "add_shard",
    "build_shards",
    "encode_corpus",
    "train_on_ray",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'csrtrain.scale' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"csrtrain.scale.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
