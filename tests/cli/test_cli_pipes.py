"""The command line among others: JSON, pipes, completion, progress, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import (  # noqa: F401
    clusters,
    exit_code,
    inside_the_folder,
    json_lines,
    run_in,
    type_in,
)

from csrkern import InvertedIndex, SparseCodes
from csrkern.integrations.rows import rows_of
from csrtrain.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipes")
    rows, labels = clusters(300, seed=1)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "y.npy", labels)
    lines = (
        "train rows.npy -o model --k 4 --hidden-dim 64 --steps 30 --batch-size 100",
        "encode model rows.npy -o codes.safetensors --dtype float32",
        "index codes.safetensors -o index --dtype float32",
    )
    run_in(folder, lines)
    return folder


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (
            "train rows.npy -o {} --k 2 --hidden-dim 8 --steps 2",
            {"output": "{}", "input_dim": 24, "hidden_dim": 8, "k": 2},
        ),
        ("encode model rows.npy -o {}", {"output": "{}", "codes": 300, "k": 4, "dim": 64}),
        ("index codes.safetensors -o {}", {"output": "{}", "codes": 300, "dim": 64}),
        ("eval rows.npy --labels y.npy --k 2 -o {}", {"queries": 60, "rows": 240}),
        ("doctor", {"PyTorch": __import__("torch").__version__}),
    ],
)
def test_json_is_all_that_is_printed(folder, tmp_path, capsys, line, facts):
    path = str(tmp_path / "out")
    assert exit_code(line.format(path) + " --json") == 0
    (record,) = json_lines(capsys)
    assert record.items() >= {n: path if v == "{}" else v for n, v in facts.items()}.items()
    if line.startswith("eval"):
        dense = next(r for r in record["results"] if r["method"] == "dense")
        assert dense["scores"]["1-nn"] > 0.9


def test_search_prints_a_json_line_a_query(folder, capsys):
    (folder / "lines.txt").write_text("".join(f"línea {i}\n" for i in range(300)), "utf-8")
    line = "search index codes.safetensors --top-k 3 --texts lines.txt --show 1 --json"
    assert exit_code(line) == 0
    records = json_lines(capsys)
    codes = SparseCodes.load("codes.safetensors")
    scores, ids = InvertedIndex.load("index").search(codes, top_k=3)
    assert len(records) == 300
    for query, record in enumerate(records):
        assert record["query"] == query
        hits = record["hits"]
        assert [hit["id"] for hit in hits] == ids[query].tolist()
        assert np.array_equal(np.float32([hit["score"] for hit in hits]), scores[query])
        assert hits[0]["text"] == f"línea {ids[query, 0]}"


def lines_of(codes: SparseCodes) -> str:
    return "".join(
        json.dumps({"name": i, "indices": a.tolist(), "values": b.tolist(), "dim": codes.dim})
        + "\n"
        for i, (a, b) in enumerate(rows_of(codes))
    )


def test_codes_in_json_lines_through_pipes(folder, tmp_path, capsys, monkeypatch):
    codes = SparseCodes.load("codes.safetensors")
    type_in(monkeypatch, lines_of(codes))
    piped = str(tmp_path / "index")
    assert exit_code(f"index - -o {piped} --dtype float32 --json") == 0
    assert json_lines(capsys)[0]["codes"] == 300
    found, wanted = (InvertedIndex.load(name).search(codes) for name in (piped, "index"))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    type_in(monkeypatch, lines_of(codes[:2]))
    assert exit_code(f"search {piped} - --top-k 1 --json") == 0
    assert [(r["query"], r["name"], r["hits"][0]["id"]) for r in json_lines(capsys)] == [
        (0, 0, 0),
        (1, 1, 1),
    ]
    (tmp_path / "asks.jsonl").write_text(lines_of(codes[5:6]))
    assert exit_code(f"search {piped} {tmp_path}/asks.jsonl --top-k 1") == 0
    assert "1 queries" in capsys.readouterr().out


def test_embeddings_in_json_lines_by_the_adapter_that_the_index_remembers(
    folder, capsys, monkeypatch
):
    rows = np.load("rows.npy")
    type_in(monkeypatch, "".join(json.dumps({"embedding": row.tolist()}) + "\n" for row in rows))
    assert exit_code("search index - --json --top-k 2") == 0
    records = json_lines(capsys)
    assert "embedding" not in records[0]
    assert exit_code("search index rows.npy --json --top-k 2") == 0
    assert json_lines(capsys) == records


def test_an_index_remembers_the_models(folder, tmp_path):
    full, n = str(folder / "model"), 300
    codes, index = tmp_path / "codes.safetensors", tmp_path / "index"
    inside = str(index / "adapter")
    assert Recipe.of_codes(folder / "codes.safetensors") == Recipe(None, full)
    assert exit_code(f"index codes.safetensors -o {index}") == 0
    assert Recipe.of_index(index) == Recipe(None, inside, codes=n)
    assert exit_code(f"encode model rows.npy -o {codes} --text-model some/model") == 0
    assert exit_code(f"index {codes} -o {index} --force") == 0
    assert Recipe.of_index(index) == Recipe("some/model", inside, codes=n)
    assert exit_code(f"index {codes} -o {index} --force --text-model other --model model") == 0
    assert Recipe.of_index(index) == Recipe("other", inside, codes=n)
    SparseCodes.load(codes).save(codes)  # notes nothing
    assert exit_code(f"index {codes} -o {index} --force") == 0
    assert Recipe.of_index(index) == Recipe(codes=n)
    assert InvertedIndex.load(index, verify=True).dim == 64


BAD_LINES = {
    "": "expected at least one query",
    '{"text": "a"}\nb\n': "standard input: line 2: expected a JSON object, got 'b'",
    '{"words": "a"}\n': "expected a text under 'text' in every line, got one with words",
    '{"indices": [1]}\n': "expected a list under 'values'",
    '{"indices": [64], "values": [1.0]}\n': "latents in 0..63, got 64",
    '{"indices": [1], "values": [1.0], "dim": 9}\n': "expected codes over 64 latents, got 9",
    '{"embedding": [1.0, 2.0]}\n': "takes embeddings of 24 dimensions, got 2",
    "words\n": "no text model is known: name it by --text-model",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_bad_lines_are_explained(folder, capsys, monkeypatch, text):
    type_in(monkeypatch, text)
    assert exit_code("search index -") == 2
    err = capsys.readouterr().err
    assert BAD_LINES[text] in err
    assert err.count("\n") == 1


def test_words_need_a_text_model_and_damaged_recipes_are_named(folder, tmp_path, capsys):
    assert exit_code("search", "index", "a few words") == 2
    assert "--text-model" in capsys.readouterr().err
    assert exit_code("search", "index", "missing.txt") == 2
    assert "missing.txt: No such file" in capsys.readouterr().err
    assert exit_code(f"index codes.safetensors -o {tmp_path}/index") == 0
    for text in ("{", "[]", "[" * 100_000, '{"text_model": 5}', '{"other": "a"}'):
        (tmp_path / "index" / "text.json").write_text(text)
        capsys.readouterr()
        assert exit_code(f"search {tmp_path}/index codes.safetensors") == 2
        assert "text.json is damaged" in capsys.readouterr().err


# ---- completion and progress ----------------------------------------------------------


def run_fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"_CSRKERN_COMPLETE": "complete_bash", "COMP_WORDS": "csrkern e", "COMP_CWORD": "1"},
        {"_CSRKERN_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "csrkern e"},
    ],
    ids=["bash", "zsh"],
)
def test_shells_complete_commands(asked):
    found = run_fresh("from csrtrain.cli import app as cli; cli.main()", **asked)
    assert all(name in found.stdout for name in ("embed", "encode", "eval"))
    assert "index" not in found.stdout


def test_completion_can_be_installed(capsys):
    assert exit_code("--help") == 0
    assert "--install-completion" in capsys.readouterr().out


def shown_on_terminal(code: str) -> tuple[str, str]:
    """What a process writes to standard error, a terminal, and to standard output, a pipe."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return seen.decode(), out


WORK = """
import time
from csrtrain import progress

progress.SHOWN_AFTER = 0.2
for what, seconds in ("long work", 0.1), ("short work", 0):
    with progress.working(what, 4) as advance:
        for _ in range(4):
            time.sleep(seconds)
            advance(1)
        print("x" * 200)
"""


def test_progress_is_for_terminals_and_for_what_takes_long():
    shown, out = shown_on_terminal(WORK)
    assert "long work" in shown
    assert "short work" not in shown
    piped = run_fresh(WORK)
    assert piped.stderr == ""
    assert out == piped.stdout == 2 * ("x" * 200 + "\n")


# ---- Ctrl-C ---------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[None]:
    """SIGINT interrupts, also in the background, which shells shield from it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "line",
    [
        "train rows.npy -o {}/new --k 2 --hidden-dim 8 --steps 2",
        "encode model rows.npy -o {}/new.safetensors",
        "index codes.safetensors -o {}/new",
    ],
)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.usefixtures("listening")
def test_ctrl_c_while_writing_leaves_nothing_half_written(
    folder, tmp_path, capsys, monkeypatch, line, replace
):
    """A real SIGINT at every file that a command flushes to disk."""
    line = line.format(tmp_path)
    if replace:
        assert exit_code(line) == 0
        line += " --force"
    before = everything(tmp_path)
    flush = os.fsync
    left = [0]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for count in range(1, 30):
        left[0] = count
        code = exit_code(line)
        if left[0] > 0:  # all of them have been interrupted
            assert code == 0
            break
        assert code == 130
        assert "interrupted" in capsys.readouterr().err
        if replace:
            assert whole(tmp_path)
        else:
            assert everything(tmp_path) == before
            assert not list(tmp_path.iterdir())
    assert count > 1
    assert whole(tmp_path)


def whole(folder: Path) -> bool:
    """The one thing in the folder, and nothing beside it, can be read."""
    (made,) = folder.iterdir()
    if (made / "index.json").exists():
        InvertedIndex.load(made, verify=True)
        named = (made / "index.json").read_text()
        return all(p.name in named for p in made.glob("*.bin")) and not list(made.glob(".*"))
    if made.is_dir():
        from csrkern.nn import SparseAutoencoder

        SparseAutoencoder.from_pretrained(made)
        return sorted(p.name for p in made.iterdir()) == ["config.json", "model.safetensors"]
    return len(SparseCodes.load(made)) == 300


def test_ctrl_c_while_training_ends_in_one_line(folder, tmp_path):
    """From outside, as a terminal sends it, to a process that is at work."""
    code = (
        "import contextlib\n"
        "from csrtrain.cli import app as cli\n"
        "from csrtrain.training import loop as trainer\n"
        "@contextlib.contextmanager\n"
        "def bar(*_):\n"
        "    yield lambda *_: print('step', flush=True)\n"
        "trainer.progress_bar = bar\n"
        f"cli.main('train rows.npy -o {tmp_path}/new --steps 1000000 --json'.split())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "csrkern: interrupted\n"
    assert not list(tmp_path.iterdir())
