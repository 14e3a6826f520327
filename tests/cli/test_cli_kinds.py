"""Wrong arguments are explained by what they are, and commands end with what to do next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from command_line import (  # noqa: F401
    error_of,
    exit_code,
    inside_the_folder,
    make_untrained,
    words,
)

from csrtrain.cli.kinds import kind_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    make_untrained(folder)
    (folder / "rows.csv").write_text("1,2\n3,4\n")
    (folder / "lines.txt").write_text("one\ntwo\n")
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 20)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "codes.json").write_text("{}")
    (folder / "sharded").mkdir()
    (folder / "sharded" / "shards.json").write_text("{}")
    return folder


def test_what_a_file_or_folder_is(folder):
    kinds = {
        "model": "model",
        "index": "index",
        "corpus": "corpus",
        "sharded": "shards",
        "codes.safetensors": "codes",
        "model/model.safetensors": "embeddings",
        "damaged.safetensors": "embeddings",
        "rows.npy": "embeddings",
        "lines.txt": "lines",
        "rows.csv": "table",
        "model/config.json": None,
        ".": None,
        "missing": None,
    }
    assert {name: kind_of(name) for name in kinds} == kinds


WRONG = {
    "train model -o new": "model: expected a file of embeddings, got a model, a folder written by",
    "train codes.safetensors -o new": "got a file of codes; name the embeddings that the codes",
    "train rows.csv -o new": "got a table of text; convert it: np.save(",
    "train lines.txt -o new": "got a file of lines; csrkern embed makes embeddings",
    "train row.npy -o new": "row.npy: expected a file of embeddings, found nothing; did you mean "
    "rows.npy?",
    "train rows -o new": "did you mean rows.npy?",
    "tune index -o new": "index: expected a file of embeddings, got an index",
    "encode rows.npy model -o new": "rows.npy: expected a model, a folder written by train, got a "
    "file of embeddings; the order is: csrkern encode MODEL EMBEDDINGS",
    "encode model index -o new": "index: expected a file of embeddings, got an index",
    "encode modelx rows.npy -o new": "modelx: expected a model, a folder written by train, found "
    "nothing; did you mean model?",
    "index model -o new": "model: expected a file of codes, got a model",
    "index rows.npy -o new": "got a file of embeddings; csrkern encode makes codes",
    "index codes.safetensors --model index -o new": "index: expected a model",
    "index codes.safetensors --embeddings model -o new": "model: expected a file of embeddings",
    "search rows.npy index": "rows.npy: expected an index, a folder written by index, got a file "
    "of embeddings; the order is: csrkern search INDEX QUERIES",
    "search codes.safetensors rows.npy": "got a file of codes; csrkern index makes an index",
    "search sharded rows.npy": "got a sharded index, written by ray build; csrkern ray serve",
    "search index model": "model: expected a file of embeddings or a file of codes or a file of",
    "search index rows.csv": "got a table of text",
    "search index_ rows.npy": "index_: expected an index, a folder written by index, found "
    "nothing; did you mean index?",
    "search index codes.safetensors --model index": "index: expected a model",
    "serve codes.safetensors": "got a file of codes; csrkern index makes an index of codes",
    "serve model": "model: expected an index, a folder written by index, got a model",
    "eval model --labels y.npy": "model: expected a file of embeddings, got a model",
    "eval rows.npy --labels y.npy --test codes.safetensors": "got a file of codes",
    "eval rows.npy --labels y.npy --model rows.npy": "rows.npy: expected a model",
    "embed rows.npy": "rows.npy: expected a file of lines, got a file of embeddings",
    "embed lines.tx": "lines.tx: expected a file of lines, found nothing; did you mean lines.txt?",
    "embed lines.txt --model index": "index: expected a model",
    "ray encode rows.npy model -o new": "the order is: csrkern ray encode MODEL SOURCE...",
    "ray build codes.safetensors -o new": "got a file of codes; csrkern index makes an index",
    "ray serve index": "index: expected a sharded index, written by ray build, got an index, a "
    "folder written by index; csrkern search and csrkern serve are for it",
}


@pytest.mark.parametrize("line", WRONG)
@pytest.mark.usefixtures("words")
def test_a_wrong_argument_is_explained_by_what_it_is(folder, capsys, line):
    assert exit_code(line) == 2
    assert WRONG[line] in error_of(capsys)
    assert not Path("new").exists()


NEXT = {
    "embed lines.txt -o {}/words.npy": "train {}/words.npy -o model",
    "embed lines.txt -o {}/words.jsonl": "search index {}/words.jsonl",
    "search index codes.safetensors": "serve index",
    "eval rows.npy --labels y.npy --k 2": "train rows.npy -o model",
    "eval rows.npy --labels y.npy --k 2 --model model": "encode model rows.npy -o "
    "codes.safetensors",
    "doctor": "demo",
}


@pytest.mark.parametrize("line", NEXT)
@pytest.mark.usefixtures("words")
def test_a_command_ends_with_what_to_do_next(folder, tmp_path, capsys, line):
    assert exit_code(line.format(tmp_path)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Next: csrkern {NEXT[line].format(tmp_path)}"
    assert shlex.split(last)


@pytest.mark.usefixtures("words")
def test_json_has_no_next(folder, capsys):
    for line in ("search index codes.safetensors", "eval rows.npy --labels y.npy --k 2", "doctor"):
        assert exit_code(f"{line} --json") == 0
        for record in capsys.readouterr().out.splitlines():
            json.loads(record)
