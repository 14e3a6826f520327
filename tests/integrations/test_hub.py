"""Models and indexes on a stand-in of the Hugging Face Hub."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub_stand_in import StandIn

from csrkern import InvertedIndex, hub
from csrkern.nn import SparseAutoencoder

pytest.importorskip("huggingface_hub")

START = """
import numpy as np, torch
from csrkern import InvertedIndex, SparseCodes
from csrkern.nn import SparseAutoencoder
torch.manual_seed(0)
model = SparseAutoencoder(12, 40, 4)
codes = model.encode(torch.randn(300, 12))
index = InvertedIndex.build(codes, dtype="uint8")
"""
PUSH = """
url = model.push_to_hub("org/model", private=True, results="| k | score |\\n|---|---|\\n| 4 | 1 |")
assert "/org/model/commit/" in url, url
index.push_to_hub("org/index", message="first")
index.add(codes)
index.push_to_hub("org/index", message="second")
"""
PULL = """
again = SparseAutoencoder.from_pretrained("org/model")
assert again.fingerprint == model.fingerprint
index.add(codes)
there = InvertedIndex.from_pretrained("org/index", verify=True)
for one, other in zip(there.search(codes), index.search(codes), strict=True):
    np.testing.assert_array_equal(one, other)
"""


@pytest.fixture
def stand_in():
    hub = StandIn()
    yield hub
    hub.close()


def run(stand_in, tmp_path, code, **environment):
    """Run code that the stand-in, known when huggingface_hub is imported, serves."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            **{"HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
            **{"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            **environment,
        },
        capture_output=True,
        text=True,
    )


def test_models_and_indexes_come_back(stand_in, tmp_path):
    done = run(stand_in, tmp_path, START + PUSH)
    assert done.returncode == 0, done.stderr
    assert stand_in.private == {"org/model": True, "org/index": False}
    assert "Bearer hf_secret" in stand_in.tokens
    files = stand_in.commits["org/model"][-1]
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: csrkern\ntags:\n- sparse-autoencoder\n")
    assert 'from_pretrained("org/model")' in card
    assert card.endswith("## Measured\n\n| k | score |\n|---|---|\n| 4 | 1 |\n")
    # What the first index held and the second does not is gone.
    first, second = stand_in.commits["org/index"][-2:]
    assert "index.json" in first
    assert not [name for name in first if name.endswith(".bin") and name in second]
    done = run(stand_in, tmp_path, START + PULL)
    assert done.returncode == 0, done.stderr
    offline = run(stand_in, tmp_path, START + PULL, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_an_index_leaves_and_fetches_no_other_files(stand_in, tmp_path):
    """A repository may hold a model in pytorch_model.bin beside it."""
    code = """
import os, huggingface_hub
huggingface_hub.HfApi().create_repo("org/both")
huggingface_hub.HfApi().upload_file(
    repo_id="org/both", path_in_repo="pytorch_model.bin", path_or_fileobj=b"weights"
)
index.push_to_hub("org/both")
from csrkern import hub
names = os.listdir(hub.pull("org/both", hub.INDEX_FILES))
assert "index.json" in names and "pytorch_model.bin" not in names, names
"""
    done = run(stand_in, tmp_path, START + code)
    assert done.returncode == 0, done.stderr
    assert stand_in.commits["org/both"][-1]["pytorch_model.bin"] == b"weights"


def test_a_hub_that_cannot_be_reached_is_an_oserror(stand_in, tmp_path):
    code = """
for ask in SparseAutoencoder.from_pretrained, InvertedIndex.from_pretrained, model.push_to_hub:
    try:
        ask("org/model")
    except OSError as error:
        print(error)
"""
    done = run(stand_in, tmp_path, START + code, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 3


def test_a_revision_is_what_it_was(stand_in, tmp_path):
    assert run(stand_in, tmp_path, START + PUSH).returncode == 0
    sha = stand_in.sha("org/index", -2)
    code = f'assert len(InvertedIndex.from_pretrained("org/index", revision="{sha}")) == 300'
    done = run(stand_in, tmp_path, START + code)
    assert done.returncode == 0, done.stderr


def test_what_is_not_there(stand_in, tmp_path):
    expected = {
        'SparseAutoencoder.from_pretrained("org/none")': "FileNotFoundError: org/none: there is",
        'InvertedIndex.from_pretrained("org/model", revision="v9")': (
            "FileNotFoundError: org/model: there is no such folder here, and no such repository "
            "at v9"
        ),
        'InvertedIndex.from_pretrained("org/model")': "the repository has no index.json",
    }
    assert run(stand_in, tmp_path, START + 'model.push_to_hub("org/model")').returncode == 0
    tries = "".join(
        f"try:\n    {code}\nexcept Exception as error:\n"
        "    print(f'{type(error).__name__}: {error}'.replace('\\n', ' '))\n"
        for code in expected
    )
    done = run(stand_in, tmp_path, START + tries)
    assert done.returncode == 0, done.stderr
    for said, message in zip(done.stdout.splitlines(), expected.values(), strict=True):
        assert message in said


def test_folders_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SparseAutoencoder(6, 12, 2)
    model.save_pretrained("org/model")
    assert not hub.is_repository("org/model")
    assert SparseAutoencoder.from_pretrained("org/model").fingerprint == model.fingerprint
    InvertedIndex.build(([[1.0]], [[0]]), dim=3).save("org/index")
    assert len(InvertedIndex.from_pretrained("org/index")) == 1
    names = "model", "a/b/c", "/org/model", "./model", "", tmp_path / "a", "org/..", "a..b/c"
    for name in (*names, "org/.x", "org/a--b", "org/a.", "org/a\n", "org/m\u00f6", "o/" + "x" * 95):
        assert not hub.is_repository(name)


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "", "org/"])
def test_names_of_repositories(repo_id):
    with pytest.raises(ValueError, match="repo_id: expected 'org/name'"):
        SparseAutoencoder(6, 12, 2).push_to_hub(repo_id)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        SparseAutoencoder(6, 12, 2).push_to_hub("org/model")
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        SparseAutoencoder.from_pretrained("org/model")


COMMANDS = """
from csrtrain.cli.app import main
np.save("rows.npy", np.ones((300, 12), np.float32))
for line in (
    "encode org/model rows.npy -o codes.safetensors",
    "index codes.safetensors --model org/model -o index",
    "search org/index codes.safetensors --top-k 2",
    "search index rows.npy --model org/model --top-k 2",
):
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, line
"""


def test_commands_take_names_of_repositories(stand_in, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    code = f"import os; os.chdir({str(folder)!r}){START}{PUSH}{COMMANDS}"
    done = run(stand_in, tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert (folder / "index" / "adapter" / "model.safetensors").is_file()
