"""More than one machine: encode a corpus, build and search a sharded index, train, on Ray.

Needs `pip install 'csrkern[ray]'`. Nothing else of csrkern imports this package, and importing
it imports neither Ray nor PyTorch.

A corpus becomes *pieces* of codes (`encode_corpus`), pieces become *shards*, each an index of the
ordinary file format (`build_shards`), and a manifest says which shards make up the index at the
moment. `ShardedIndex` serves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csrkern import lazy

if TYPE_CHECKING:
    from csrtrain.scale.build import add_shard as add_shard
    from csrtrain.scale.build import build_shards as build_shards
    from csrtrain.scale.encode import encode_corpus as encode_corpus
    from csrtrain.scale.search import ShardedIndex as ShardedIndex
    from csrtrain.scale.serving import Answer as Answer
    from csrtrain.scale.training import train_on_ray as train_on_ray

_HOME_OF = {
    "Answer": ".serving",
    "ShardedIndex": ".search",
    "add_shard": ".build",
    "build_shards": ".build",
    "encode_corpus": ".encode",
    "train_on_ray": ".training",
}

__all__ = sorted(_HOME_OF)

__getattr__, __dir__ = lazy.attributes(__name__, _HOME_OF)
