"""The command line compares models: codes, indexes and adapters of others are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import error_of, exit_code, json_lines, type_in, words  # noqa: F401

from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import recipe

D, H, K = 24, 64, 4
LINES = [f"line {i}" for i in range(30)]


def make(folder: str, seed: int) -> SparseAutoencoder:
    torch.manual_seed(seed)
    model = SparseAutoencoder(D, H, K)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def folder(tmp_path, monkeypatch, words) -> Path:  # noqa: F811
    """Lines, a model, codes of the lines and an index of these."""
    monkeypatch.delenv("CSRKERN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(words, "fingerprint", "00000000000000aa")
    Path("lines.txt").write_text("\n".join(LINES) + "\n")
    make("model", 1)
    assert exit_code("embed lines.txt --text-model w --model model -o codes.safetensors") == 0
    assert exit_code("index codes.safetensors -o index") == 0
    return tmp_path


@pytest.fixture(autouse=True)
def _quiet(folder, capsys) -> None:
    capsys.readouterr()


def hits(capsys) -> list[list[int]]:
    return [[hit["id"] for hit in record["hits"]] for record in json_lines(capsys)]


def refused(line: str, capsys, *parts: str) -> None:
    """Before any hit is shown, in one sentence that names the models and the way out."""
    assert exit_code(line) == 2
    message = error_of(capsys)
    for part in ("--any-model", *parts):
        assert part in message, message


def retrain() -> SparseAutoencoder:
    """Another model under the name of the first."""
    return make("model", 2)


def test_an_index_moves_with_its_adapter(folder, tmp_path_factory, monkeypatch, capsys):
    assert exit_code("search", "index", LINES[7], "--json") == 0
    before = hits(capsys)
    assert before[0][0] == 7
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move("index", elsewhere / "moved")
    for name in ("model", "codes.safetensors"):
        shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)
    monkeypatch.chdir(elsewhere)
    assert exit_code("search", "moved", LINES[7], "--json") == 0
    assert hits(capsys) == before
    monkeypatch.chdir("/")
    assert exit_code("search", str(elsewhere / "moved"), LINES[7], "--json") == 0
    assert hits(capsys) == before
    shutil.rmtree(elsewhere / "moved" / recipe.ADAPTER)
    assert exit_code("search", str(elsewhere / "moved"), LINES[7]) == 2
    assert "no config.json in" in error_of(capsys)


def test_training_over_the_adapter_leaves_the_index_as_it_is(folder, capsys):
    rows = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    np.save("rows.npy", rows)
    own = InvertedIndex.load("index").fingerprint
    assert exit_code("search index rows.npy --json") == 0
    before = hits(capsys)
    new = retrain()
    assert exit_code("search index rows.npy --json") == 0
    assert hits(capsys) == before
    for queries in ("rows.npy", LINES[0]):
        line = ["search", "index", queries, "--model", "model"]
        assert exit_code(*line) == 2
        message = error_of(capsys)
        for part in (own, new.fingerprint, "--any-model", "index"):
            assert part in message
        assert exit_code(*line, "--any-model", "--json") == 0
        assert json_lines(capsys)


def test_codes_of_another_model_are_refused(folder, capsys):
    own = InvertedIndex.load("index").fingerprint
    new = retrain()
    new.encode(torch.randn(3, D)).detach().save("asks.safetensors")
    refused(
        "search index asks.safetensors", capsys, "asks.safetensors: made by", own, new.fingerprint
    )
    assert exit_code("search index asks.safetensors --any-model --json") == 0
    assert len(hits(capsys)) == 3
    unknown = SparseCodes.load("asks.safetensors")
    unknown.fingerprint = None
    unknown.save("unknown.safetensors")
    assert exit_code("search index unknown.safetensors --json") == 0
    assert len(hits(capsys)) == 3


def test_codes_are_not_indexed_with_another_adapter(folder, capsys):
    own, new = InvertedIndex.load("index").fingerprint, retrain()
    for line in ("index codes.safetensors -o new", "index codes.safetensors -o new --model model"):
        refused(line, capsys, "codes.safetensors: made by", "the adapter", own, new.fingerprint)
        assert not os.path.exists("new")
        assert exit_code(f"{line} --any-model --force") == 0
        capsys.readouterr()
        assert InvertedIndex.load("new").fingerprint == own
        assert exit_code("search", "new", LINES[0]) == 2
        error_of(capsys)
        shutil.rmtree("new")
    shutil.rmtree("model")
    assert exit_code("index codes.safetensors -o new") == 0  # codes find codes
    capsys.readouterr()
    assert exit_code("search new codes.safetensors --json") == 0
    assert len(hits(capsys)) == len(LINES)
    assert exit_code("index codes.safetensors -o newer --model model") == 2
    assert "no config.json in model" in error_of(capsys)


def test_the_adapter_named_for_codes_of_unknown_models_is_theirs(folder, capsys):
    codes = SparseCodes.load("codes.safetensors")
    codes.fingerprint = None
    codes.save("codes.safetensors")
    assert exit_code("index codes.safetensors -o unknown") == 0
    assert InvertedIndex.load("unknown").fingerprint is None
    assert exit_code("index codes.safetensors -o known --model model") == 0
    expected = SparseAutoencoder.from_pretrained("model").fingerprint
    assert InvertedIndex.load("known").fingerprint == expected


def test_an_adapter_outside_of_the_index_is_compared(folder, capsys):
    """As of indexes whose adapter was not found when they were built."""
    shutil.rmtree(Path("index", recipe.ADAPTER))
    Path("index", recipe.RECIPE).write_text(
        json.dumps({"text_model": "w", "adapter": str(Path("model").absolute())})
    )
    assert exit_code("search", "index", LINES[3], "--json") == 0
    assert hits(capsys)[0][0] == 3
    retrain()
    assert exit_code("search", "index", LINES[3]) == 2
    assert "queries: made by another model" in error_of(capsys)


def test_lines_of_codes_say_which_model_made_them(folder, capsys, monkeypatch):
    assert exit_code("embed lines.txt --text-model w --model model") == 0
    old = capsys.readouterr().out
    own = json.loads(old.split("\n")[0])["csrkern"]["fingerprint"]
    assert own == InvertedIndex.load("index").fingerprint
    new = retrain()
    assert exit_code("embed lines.txt --text-model w --model model") == 0
    lines = capsys.readouterr().out
    type_in(monkeypatch, lines)
    refused("search index -", capsys, "queries: made by", own, new.fingerprint)
    type_in(monkeypatch, old)
    assert exit_code("search index - --json") == 0
    assert len(hits(capsys)) == len(LINES)
    type_in(monkeypatch, old)
    refused("index - -o new", capsys, "standard input: made by", own, new.fingerprint)
    type_in(monkeypatch, lines)
    assert exit_code("index - -o new") == 0
    assert InvertedIndex.load("new").fingerprint == new.fingerprint
    capsys.readouterr()
    for command in ("index - -o mixed", "search index -"):
        type_in(monkeypatch, old + lines)
        assert exit_code(command) == 2
        assert "line 31: expected codes of the models of standard input: line 1" in error_of(capsys)


def test_another_text_model_is_refused(folder, capsys, monkeypatch, words):  # noqa: F811
    monkeypatch.setattr(words, "fingerprint", "00000000000000bb")  # changed, under its name
    for option in ("", " --text-model other"):
        line = ["search", "index", LINES[0], *option.split()]
        assert exit_code(*line) == 2
        message = error_of(capsys)
        for part in ("00000000000000aa", "00000000000000bb", "--text-model", "--any-model"):
            assert part in message
        assert exit_code(*line, "--any-model", "--json") == 0
        assert json_lines(capsys)
    assert exit_code("embed lines.txt --text-model w --model model -o asks.safetensors") == 0
    capsys.readouterr()
    refused("search index asks.safetensors", capsys, "the text model of asks.safetensors is not")
    monkeypatch.setattr(words, "fingerprint", "00000000000000aa")
    assert exit_code("search", "index", LINES[0], "--text-model", "elsewhere/w") == 0  # the same


def test_texts_follow_their_codes(folder, capsys):
    def shown(*, source: str = "lines.txt") -> dict[int, str]:
        assert exit_code(f"search index codes.safetensors --top-k 40 --texts {source} --json") == 0
        records = json_lines(capsys)
        return {hit["id"]: hit["text"] for record in records for hit in record["hits"]}

    index = InvertedIndex.load("index")
    assert shown() == dict(enumerate(LINES))
    index.remove([0, 4])
    index.save("index")
    expected = {id: text for id, text in enumerate(LINES) if id not in (0, 4)}
    assert shown() == expected  # by the file that was encoded
    rest = "\n".join(expected.values()) + "\n"
    Path("rest.txt").write_text(rest)
    assert shown(source="rest.txt") == expected  # or by what is left of it
    index.add(SparseCodes.load("codes.safetensors")[:2])
    index.save("index")
    # As many lines as codes, and yet line 29 is not the last code's.
    assert exit_code("search index codes.safetensors --texts lines.txt") == 2
    assert "expected a line for code 31, which was added to the index of 30" in error_of(capsys)
    Path("more.txt").write_text("\n".join([*LINES, "one", "two"]) + "\n")
    assert shown(source="more.txt") == expected | {30: "one", 31: "two"}
    Path("few.txt").write_text("a\nb\n")
    assert exit_code("search index codes.safetensors --texts few.txt") == 2
    assert "few.txt: expected 30 lines, one for each code of the index, got 2" in error_of(capsys)


@pytest.mark.parametrize(
    "held", [{"codes": -1}, {"codes": "1"}, {"fingerprint": "x"}, {"text_fingerprint": 3}]
)
def test_damaged_recipes_are_named(held, folder, capsys):
    Path("index", recipe.RECIPE).write_text(json.dumps(held))
    assert exit_code("search index codes.safetensors") == 2
    assert "text.json is damaged" in error_of(capsys)


def test_an_index_in_the_place_of_another_keeps_none_of_it(folder, capsys):
    SparseCodes.load("codes.safetensors").save("bare.safetensors")
    assert exit_code("index bare.safetensors -o index --force") == 0
    assert not os.path.exists(Path("index", recipe.ADAPTER))
    capsys.readouterr()
    assert exit_code("search", "index", LINES[0]) == 2
    assert "no text model is known" in error_of(capsys)
