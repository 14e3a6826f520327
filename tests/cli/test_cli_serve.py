"""Messages of `csrkern serve` before it serves; tests/serve asks it."""

from __future__ import annotations

import importlib.util
import json

import pytest
from command_line import error_of, exit_code, inside_the_folder, make_untrained  # noqa: F401

from csrtrain.serve.settings import Settings

processes = pytest.importorskip("csrtrain.serve.processes")
pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    make_untrained(folder)
    (folder / "rows.jsonl").write_text('{"color": "red"}\n' * 40)
    return folder


@pytest.fixture
def run(monkeypatch) -> list[tuple]:
    """Return what the processes would be started with."""
    calls: list[tuple] = []
    monkeypatch.delenv("CSRKERN_API_KEY", raising=False)
    monkeypatch.setattr(processes, "run", lambda *arguments: calls.append(arguments))
    return calls


def test_the_server_is_told_what_the_options_say(folder, run, capsys):
    line = "serve index --model model --text-model words --payloads rows.jsonl --filter-by color"
    line += " --threads 2 --max-body 3 --max-queries 4 --max-top-k 5 --concurrency 6 --timeout 7"
    assert exit_code(f"{line} --workers 3 --port 0 --json") == 0
    settings, host, port, workers = run[0]
    assert (host, workers) == ("127.0.0.1", 3)
    expected = Settings(
        "index", "model", "words", "rows.jsonl", ("color",), 2, None, 3 << 20, 4, 5, 6, 7.0
    )
    assert settings == expected
    settings.hand_on()
    assert Settings.handed_on() == expected
    streams = capsys.readouterr()
    assert streams.err == ""
    assert json.loads(streams.out) == {
        "url": f"http://127.0.0.1:{port}",
        "documents": 40,
        "workers": 3,
        "key": False,
    }


def test_an_address_that_others_reach_without_a_key_is_warned_of(folder, run, capsys, monkeypatch):
    assert exit_code("serve index --host 0.0.0.0 --port 0") == 0
    streams = capsys.readouterr()
    assert "anyone who reaches 0.0.0.0 may ask; give --api-key-file" in streams.err
    assert "Serving 40 documents at http://0.0.0.0:" in streams.out
    assert "/docs says what can be asked" in streams.out
    monkeypatch.setenv("CSRKERN_API_KEY", "key")
    assert exit_code("serve index --host 0.0.0.0 --port 0") == 0
    assert capsys.readouterr().err == ""


def test_a_missing_package_is_named(folder, run, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert exit_code("serve index") == 2
    assert "pip install 'csrkern[serve]'" in error_of(capsys)
    assert not run
