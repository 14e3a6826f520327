"""The Python blocks of the documentation, and what each page takes as given."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import csrkern
import csrtrain
from csrkern.nn import SparseAutoencoder

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```python(?: needs=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


ELSEWHERE = {
    "server": "needs a running server; tests/test_serve.py asks one",
    "engines": "needs clients of search engines; tests/test_engines.py has them",
    "cluster": "needs a cluster; tests/test_scale.py has one",
    "network": "needs a model from the network",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, first line, code, and what it needs beyond the test suite."""

    page: str
    line: int
    code: str
    needs: str | None

    @property
    def id(self) -> str:
        """Its place, for the name of its test."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page whose blocks are run."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("examples/*/*.md")]


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text()
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, found.start(2)) + 1, found[2], found[1])
        for found in FENCE.finditer(text)
    ]


def why_not(needs: str | None) -> str | None:
    """Why a block cannot run here; None if it can."""
    if needs is None:
        return None
    if needs == "gpu":
        there = torch.cuda.is_available() and importlib.util.find_spec("csrkern._cuda")
        return None if there else "needs a GPU"
    if needs in ELSEWHERE:
        return ELSEWHERE[needs]
    return None if importlib.util.find_spec(needs) else f"needs {needs}"


def namespace(page: str) -> dict[str, Any]:
    """The names that a page's blocks may use without saying where they come from."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(
        torch.randn(20, 16)[torch.arange(300) % 20] + 0.3 * torch.randn(300, 16)
    )
    common = {
        "np": np,
        "torch": torch,
        "csrkern": csrkern,
        "csrtrain": csrtrain,
        "embeddings": rows[:256],
        "queries": rows[256:],
        "labels": torch.arange(256) % 20,
    }
    prepare = PREPARED.get(page)
    return common if prepare is None else {**common, **prepare(common)}


def _model(common: dict[str, Any]) -> SparseAutoencoder:
    return SparseAutoencoder(16, 64, 8).eval()


def _backbone() -> None:
    """A folder "minilm" as a SentenceTransformer leaves it, without weights."""
    Path("minilm").mkdir()
    Path("minilm/modules.json").write_text("[]")


def _readme(common: dict[str, Any]) -> dict[str, Any]:
    from csrkern.integrations.checkpoints import save_pth, save_sparsify

    _backbone()
    save_pth(_model(common), "checkpoint_9.pth")
    untied = SparseAutoencoder(16, 64, 8, tied=False)
    save_sparsify(untied, "sae/layers.5")
    return {
        "pre_activations": torch.randn(10, 64),
        "x": common["queries"],
        "weight": torch.randn(64, 16),
        "bias": torch.zeros(64),
        "pre_bias": torch.zeros(16),
        "codes_a": csrkern.topk_relu(torch.randn(5, 64), 8),
        "codes_b": csrkern.topk_relu(torch.randn(6, 64), 8),
    }


def _integrations(common: dict[str, Any]) -> dict[str, Any]:
    import pyarrow.parquet

    names = _searching(common)
    codes, labels = names["codes"], common["labels"].numpy()
    names |= {"pyarrow": pyarrow, "embeddings": common["embeddings"].numpy(), "labels": labels}
    if importlib.util.find_spec("pandas"):
        import pandas

        values, latents = codes.numpy()
        names["frame"] = pandas.DataFrame({"latents": list(latents), "weights": list(values)})
    return names


def _migrating(common: dict[str, Any]) -> dict[str, Any]:
    _backbone()
    return {}


def _serving(common: dict[str, Any]) -> dict[str, Any]:
    from csrtrain.demo_data import load_demo

    return {"data": load_demo(), "codes": _searching(common)["codes"]}


def _searching(common: dict[str, Any]) -> dict[str, Any]:
    model = _model(common)
    codes = csrtrain.encode_all(model, common["embeddings"])
    queries = csrtrain.encode_all(model, common["queries"])
    decoder = model.decoder.linear.weight.detach()
    return {
        "model": model,
        "codes": codes,
        "queries": queries,
        "query": queries[0],
        "id": 0,
        "mask": np.arange(len(codes)) % 2 == 0,
        "dense_queries": (common["queries"] @ decoder.T).numpy(),
        "more_codes": codes[:10],
        "index": csrkern.InvertedIndex.build(codes),
    }


def _training(common: dict[str, Any]) -> dict[str, Any]:
    from csrtrain import CSRLoss

    return {"model": _model(common), "CSRLoss": CSRLoss, "x": common["queries"]}


PREPARED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "README.md": _readme,
    "examples/serve/README.md": _serving,
    "docs/how-search-works.md": _searching,
    "docs/index-cuda.md": _searching,
    "docs/gpu.md": _training,
    "docs/training.md": _training,
    "docs/integrations.md": _integrations,
    "docs/migrating.md": _migrating,
    "docs/faq.md": _searching,
}
