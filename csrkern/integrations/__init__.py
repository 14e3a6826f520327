"""Other packages' models and files; each module here loads when it is first touched.

- `sentence_transformers`: `accelerate`, which runs an existing `SparseEncoder` on these kernels,
  and adapters to and from the directories that package saves.
- `checkpoints`: adapters to and from the paper's `.pth` and the autoencoders of EleutherAI's
  sparsify and of SAELens.
- `sae_lens`, `sparsify`: `accelerate` for the sparse autoencoders of these packages.
- `sklearn`: a transformer and neighbors with scikit-learn's manners.
- `frames`: codes as list columns of pyarrow and pandas, which DuckDB and LanceDB read, too.
- `langchain`, `llama_index`, `haystack`: vector stores on a `DocumentStore`.
- `mteb`: an adapter behind any of its models, and an index behind its searches.
- `trec`: runs and relevance judgments in the files that evaluation tools read.
- `big_ann`: the files of big-ann-benchmarks' sparse track.
- `qdrant`, `milvus`, `pgvector`, `elasticsearch`, `seismic`: codes to search engines and back.
"""

from __future__ import annotations

from csrkern import lazy

_MODULES = (
    "big_ann",
    "checkpoints",
    "elasticsearch",
    "frames",
    "haystack",
    "langchain",
    "llama_index",
    "milvus",
    "mteb",
    "pgvector",
    "qdrant",
    "sae_lens",
    "seismic",
    "sentence_transformers",
    "sklearn",
    "sparsify",
    "trec",
)

__getattr__, __dir__ = lazy.attributes(__name__, modules=_MODULES)
