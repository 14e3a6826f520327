"""Adapters to and from the folders of sentence-transformers, without needing the package.

A folder of a `SparseEncoder` lists its modules in modules.json, each with a folder of its own;
an adapter is the module of type `SparseAutoEncoder`. The module's folder alone will do too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from csrkern import __version__
from csrkern.integrations.checkpoints import load_pth
from csrkern.nn import SparseAutoencoder
from csrkern.nn.storage import CONFIG_NAME, WEIGHTS_NAME
from csrkern.storage import read_json, write_atomically

MODULES_NAME = "modules.json"
PICKLED_NAME = "pytorch_model.bin"  # the weights, where safe_serialization=False saved them
# Versions from 5.0 on know the module by this name.
_TYPE = "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"
# The settings in the package's config.json, and the model's names of them.
_NAME_OF = {name: name for name in ("input_dim", "hidden_dim", "k", "k_aux", "dead_threshold")}
_NAME_OF["normalize"] = "standardize"
_REQUIRED = ("input_dim", "hidden_dim", "k")


def load_sentence_transformers(directory: str | os.PathLike[str]) -> SparseAutoencoder:
    """Return the adapter of a saved `SparseEncoder`, or of its `SparseAutoEncoder` folder alone.

    Of sentence-transformers 5.1 and later. Weights are read without running code, also of
    pytorch_model.bin.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if no module is the package's `SparseAutoEncoder`, its files do not fit
            together, or a weight is NaN or infinite.
    """
    folder = Path(directory)
    if (folder / MODULES_NAME).is_file():
        modules = _modules(folder)
        ours = [m for m in modules if _is_adapter(m)]
        if len(ours) != 1:
            types = ", ".join(str(m.get("type")) for m in modules)
            raise ValueError(
                f"{folder}: expected one SparseAutoEncoder among its modules, got {types}"
            )
        folder = folder / str(ours[0].get("path", ""))
    if (folder / WEIGHTS_NAME).is_file() or not (folder / PICKLED_NAME).is_file():
        return SparseAutoencoder.from_pretrained(folder)
    config = read_json(folder / CONFIG_NAME)
    missing = set(_REQUIRED) - (config.keys() if isinstance(config, dict) else set())
    if missing:
        raise ValueError(f"{folder / CONFIG_NAME} lacks {', '.join(sorted(missing))}")
    settings = {
        own: config[name]
        for name, own in _NAME_OF.items()
        if name in config and own not in ("input_dim", "hidden_dim")
    }
    model = load_pth(folder / PICKLED_NAME, **settings)
    if (model.input_dim, model.hidden_dim) != (config["input_dim"], config["hidden_dim"]):
        raise ValueError(
            f"{folder / PICKLED_NAME} does not fit its config: expected {config['hidden_dim']} "
            f"latents of width {config['input_dim']}, got {model.hidden_dim} of {model.input_dim}"
        )
    return model.eval()


def save_sentence_transformers(
    model: SparseAutoencoder,
    directory: str | os.PathLike[str],
    backbone: str | os.PathLike[str],
    *,
    name: str | None = None,
) -> None:
    """Write a folder that `SparseEncoder(directory)` loads: the backbone, then the adapter.

    Every module of the backbone is copied, so the adapter should have been trained on what
    the whole of it gives. A model card (README.md) says how to use the folder.

    Args:
        model: tied; in the folder it is the last module.
        directory: new, or an empty folder; appears at one instant, complete.
        backbone: the folder of a `SentenceTransformer` with embeddings [n, model.input_dim], as
            `SentenceTransformer(name).save(folder)` writes it.
        name: of the model in its card; None: the folder's name.

    Raises:
        FileNotFoundError: if the backbone has no modules.json.
        FileExistsError: if `directory` holds something.
        ValueError: if the model is not tied, or the backbone's width is another.
    """
    if not model.tied:
        raise ValueError("model: expected tied weights; a SparseAutoEncoder has no other kind")
    source, target = Path(backbone), Path(directory)
    if not (source / MODULES_NAME).is_file():
        raise FileNotFoundError(
            f"backbone: no {MODULES_NAME} in {source}; expected a folder that "
            "SentenceTransformer(name).save(folder) wrote"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty; expected a new folder")
    modules = _modules(source)
    if any(map(_is_adapter, modules)):
        raise ValueError(f"{source} ends with an adapter already; expected a dense backbone")
    width = _width(source, modules)
    if width not in (None, model.input_dim):
        raise ValueError(
            f"backbone: expected embeddings of width {model.input_dim}, the model's input_dim, "
            f"got {width}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        inner = beside / "model"
        shutil.copytree(source, inner, ignore=shutil.ignore_patterns(".git", "README.md"))
        path = f"{len(modules)}_SparseAutoEncoder"
        entry = {"idx": len(modules), "name": str(len(modules)), "path": path, "type": _TYPE}
        _write_json(inner / MODULES_NAME, [*modules, entry])
        _write_module(model, inner / path)
        settings_path = inner / "config_sentence_transformers.json"
        settings = read_json(settings_path) if settings_path.is_file() else {}
        # Codes are compared as they are searched: by cosine.
        settings |= {"model_type": "SparseEncoder", "similarity_fn_name": "cosine"}
        _write_json(settings_path, settings)
        card = model_card(model, name or target.name)
        write_atomically(inner / "README.md", card.encode())
        os.replace(inner, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def model_card(model: SparseAutoencoder, name: str) -> str:
    """Return the README.md of a saved adapter: front matter, sizes, and two ways to use it."""
    size = (6 if model.hidden_dim <= 65_536 else 8) * model.k
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags:
- sentence-transformers
- sparse-encoder
- csr
- csrkern
---

# {name}

A sparse encoder: a dense text encoder and, behind it, a Contrastive Sparse Representation adapter
([arXiv 2503.01776](https://arxiv.org/abs/2503.01776)) that turns each embedding into a code with
at most {model.k} active latents of {model.hidden_dim:,}. A code takes {size} bytes with float32
values; the dense embedding takes {4 * model.input_dim}.

| | |
|---|---|
| embedding width | {model.input_dim} |
| latents | {model.hidden_dim} |
| active latents, k | {model.k} |
| input standardized | {"yes" if model.standardize else "no"} |
| compared by | cosine |

```python
from sentence_transformers import SparseEncoder

model = SparseEncoder("{name}")
codes = model.encode(["a first text", "a second text"])
print(model.similarity(codes, codes))
```

The same codes and searches through faster kernels:

```python
import csrkern.integrations.sentence_transformers

csrkern.integrations.sentence_transformers.accelerate()
```

Written by csrkern {__version__}.
"""


def _write_module(model: SparseAutoencoder, folder: Path) -> None:
    model.save_pretrained(folder)
    # The package refuses settings that its module does not take.
    config = {name: getattr(model, own) for name, own in _NAME_OF.items()}
    _write_json(folder / CONFIG_NAME, config)


def _is_adapter(module: dict[str, Any]) -> bool:
    """Whether it is the package's own: a subclass of that name may make other codes."""
    package, _, name = str(module.get("type", "")).rpartition(".")
    return name == "SparseAutoEncoder" and package.partition(".")[0] == "sentence_transformers"


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = read_json(folder / MODULES_NAME)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ValueError(f"{folder / MODULES_NAME}: expected a list of modules")
    return modules


def _width(folder: Path, modules: list[dict[str, Any]]) -> int | None:
    """Return the width of a backbone's embeddings, told by its last pooling or dense module."""
    width = None
    for module in modules:
        config = folder / str(module.get("path", "")) / CONFIG_NAME
        if module.get("path") and config.is_file():
            settings = read_json(config)
            for key in ("word_embedding_dimension", "embedding_dimension", "out_features"):
                width = settings.get(key, width)
    return width


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
