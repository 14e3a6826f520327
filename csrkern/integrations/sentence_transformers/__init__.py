"""sentence-transformers: `accelerate` its sparse encoders; read and write its folders."""

from __future__ import annotations

from csrkern import lazy

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "accelerate": ".patch",
        "restore": ".patch",
        "Acceleration": ".patch",
        "load_sentence_transformers": ".folder",
        "save_sentence_transformers": ".folder",
    },
)
