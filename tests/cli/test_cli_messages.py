"""What the commands say where something is wrong, whatever the streams are."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import (  # noqa: F401
    Words,
    error_of,
    exit_code,
    inside_the_folder,
    make_untrained,
    strict,
    words,
)

from csrkern import InvertedIndex
from csrkern.nn import SparseAutoencoder
from csrtrain import scale
from csrtrain.cli import eval as cli_eval
from csrtrain.demo import run as demo
from csrtrain.training import loop as trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    make_untrained(folder)
    np.savez(
        folder / "labels.npz",
        floats=np.array([1, np.nan] * 20),
        unlike=np.arange(40),
        qrels=np.array([[0, 39], [1, 40]]),
        negative=np.array([[0, -1]]),
        queries=np.array([[40, 0]]),
    )
    np.save(folder / "none.npy", np.array([None, "a"] * 20, object))
    torch.save(folder, folder / "pickled.pt")
    (folder / "lines.txt").write_text("".join(f"línea {i} 日\n" for i in range(40)), "utf-8")
    return folder


BAD = {
    "encode model rows.npy -o new --threads 20000": "--threads",
    "encode model rows.npy -o new --threads -1": "--threads",
    "ray serve index --threads 20000": "--threads",
    "eval rows.npy --labels y.npy --holdout nan": "--holdout: expected a share between 0 and 1",
    "eval rows.npy --labels y.npy --quantizers PQ,rq": "--quantizers: expected some of PQ, OPQ, RQ",
    "eval rows.npy --labels y.npy --holdout inf": "--holdout: expected a share between 0 and 1",
    "eval rows.npy --labels y.npy --holdout=-0.5": "--holdout: expected a share between 0 and 1",
    "eval rows.npy --labels labels.npz:floats": "expected integer or string labels, got float64",
    "eval rows.npy --labels none.npy": "none.npy is not a readable .npy file",
    "eval rows.npy --test rows.npy --qrels labels.npz:qrels": "expected documents in 0..39, got 40",
    "eval rows.npy --test rows.npy --qrels labels.npz:negative": "documents in 0..39, got -1",
    "eval rows.npy --test rows.npy --qrels labels.npz:queries": "queries in 0..39, got 40",
    "eval rows.npy --labels y.npy --model model --k 65": "k: expected 1 <= k <= h = 64, got 65",
    "train rows.npy -o new --lr nan": "lr: expected a finite number, got nan",
    "train rows.npy -o new --epochs inf": "epochs: expected a finite number, got inf",
    f"train rows.npy -o new --seed {2**70}": "seed: expected 0 <= seed <= 4294967295",
    f"train rows.npy -o new --hidden-dim {2**70}": "--hidden-dim",
    "search index codes.safetensors --probes 4": "--probes: index has lists",
    f"search index codes.safetensors --top-k {2**70}": "top_k: expected 1 <= top_k <= ",
    "ray search http://127.0.0.1:1 codes.safetensors --deadline nan": "--deadline",
    "ray encode model rows.npy -o new --gpus nan": "--gpus",
    "ray build codes -o new --largest inf": "--largest: expected a finite number",
    "ray build codes -o new --storage [1]": "--storage: expected a JSON object, got '[1]'",
    "serve missing": "no index at missing",
    "serve index --payloads missing": "missing: No such file or directory",
    "serve index --filter-by color": "--filter-by: expected --payloads with it",
    "serve index --api-key-file missing": "missing: No such file or directory",
    "serve index --api-key-file lines.txt": "lines.txt: expected a key of ASCII",
    "serve index --timeout nan": "--timeout",
    "serve index --host 192.0.2.1": "192.0.2.1:8000: Cannot assign requested address; choose "
    "another --host or --port",
    "index lines.txt -o new": "lines.txt: expected a file of codes, got a file of lines; csrkern "
    "embed makes codes or embeddings of texts",
    "encode model pickled.pt -o new": "pickled.pt is not a readable weights-only PyTorch file: "
    "it is damaged, or holds more than tensors; save a plain tensor with torch.save(tensor, path)",
    "embed rows.npy": "rows.npy: expected a file of lines, got a file of embeddings",
}


@pytest.mark.parametrize("line", BAD)
@pytest.mark.usefixtures("words")
def test_bad_input_is_named(folder, capsys, line):
    assert exit_code(line) == 2
    assert BAD[line] in error_of(capsys)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("no [file].npy", "no [file].npy"),
        ("two  spaces.npy", "two  spaces.npy"),
        ("a\x1b[31mred\x9b.npy", "a\\x1b[31mred\\x9b.npy"),
        ("b\udcff.npy", "b\\xff.npy"),
    ],
)
def test_a_name_in_an_error_is_shown_as_it_is(folder, capsys, name, shown):
    assert exit_code("train", name, "-o", "new") == 2
    assert error_of(capsys) == f"no file at {shown}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_no_bug(folder, capsys, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(InvertedIndex, "load", load)
    assert exit_code("search index codes.safetensors") == 2
    assert error_of(capsys).startswith("not enough memory")


# ---- streams --------------------------------------------------------------------------


def test_closed_streams_are_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for line in ("embed", "embed -", "search index -", "index - -o new"):
        assert exit_code(line) == 2
        assert error_of(capsys) == "standard input is closed; expected lines there"
    assert exit_code("search index codes.safetensors --show 0") == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdout", None)
    for line in ("doctor", "encode model rows.npy -o new"):
        assert exit_code(line) == 2
        assert capsys.readouterr().err == "csrkern: standard output is closed\n"
    assert not Path("new").exists()


def test_streams_that_a_shell_closes(folder):
    command = f"{sys.executable} -m csrtrain"
    for line, code, out, err in (
        ("embed - <&-", 2, "", "csrkern: standard input is closed; expected lines there\n"),
        ("--help >&-", 2, "", "csrkern: standard output is closed\n"),
        ("embed missing.txt 2>&-", 2, "", ""),
        ("embed missing.txt 2>/dev/full", 2, "", ""),
        ("--help >/dev/full", 2, "", "csrkern: No space left on device\n"),
        ("--help <&- 2>&- | head -c 0", 0, "", ""),
    ):
        found = subprocess.run(
            ["bash", "-c", f"{command} {line}"], capture_output=True, text=True, cwd=folder
        )
        assert (found.returncode, found.stdout, found.stderr) == (code, out, err), line


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_standard_output_of_any_encoding(folder, monkeypatch, encoding):
    """JSON is JSON in every encoding; text has escapes for what an encoding lacks."""
    for line in ("embed lines.txt", "search index codes.safetensors --json --texts lines.txt"):
        out = put_out(monkeypatch, line, encoding)
        for row, record in enumerate(map(strict, out.decode("utf-8").splitlines())):
            assert (record if "text" in record else record["hits"][0])["text"] == f"línea {row} 日"
    shown = put_out(monkeypatch, "search index codes.safetensors --texts lines.txt", encoding)
    accent = {"ascii": "\\xed", "latin-1": "í", "utf-8": "í"}[encoding]
    kanji = "日" if encoding == "utf-8" else "\\u65e5"
    assert f"l{accent}nea 0 {kanji}" in shown.decode(encoding)
    assert put_out(monkeypatch, "eval rows.npy --labels y.npy --k 2", encoding).decode(encoding)


def put_out(monkeypatch, line: str, encoding: str) -> bytes:
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        patch.setattr(sys, "stdout", stream)
        assert exit_code(line) == 0
        return raw.getvalue()


# ---- interruption ---------------------------------------------------------------------


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("train rows.npy -o {} --steps 2", (trainer, "scalar_log")),
        ("embed lines.txt -o {}.npy", (Words, "embed")),
        ("embed lines.txt", (Words, "embed")),
        ("encode model rows.npy -o {}", (SparseAutoencoder, "encode")),
        ("index codes.safetensors -o {}", (InvertedIndex, "build")),
        ("search index codes.safetensors -o {}", (InvertedIndex, "search")),
        ("search index words --model model --text-model any", (Words, "embed")),
        ("serve index", (InvertedIndex, "load")),
        ("eval rows.npy --labels y.npy -o {}", (cli_eval, "_results")),
        ("demo -o {}", (demo, "load_demo")),
        ("doctor", (torch, "get_num_threads")),
        ("warmup -d 8 --hidden-dim 8 -k 2", (torch.cuda, "is_available")),
        ("ray build codes -o {}", (scale, "build_shards")),
    ],
)
def test_ctrl_c_in_every_command(folder, tmp_path, capsys, monkeypatch, line, place):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, interrupt)
    assert exit_code(line.format(tmp_path / "new")) == 130
    assert error_of(capsys) == "interrupted"
    assert os.listdir(tmp_path) == []
