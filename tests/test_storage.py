"""Files written beside their place and renamed into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csrkern.storage import cache_folder, check_file, check_folder, tune_mode, write_atomically


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_killed_process_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, lambda *_: os._exit(9))
    child = os.fork()
    if child == 0:
        write_atomically(path, b"new" * 1000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == b"old"


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *a, s=step, r=real: (order.append(s), r(*a))[1])
    write_atomically(str(tmp_path / "file"), b"new")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_places_are_tried_without_a_trace(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"old")
    folder.mkdir()
    (tmp_path / "link").symlink_to("new")
    before = file.stat().st_mtime_ns
    for free in ("file", "link", "x" * 255, "/dev/null", "/dev/full"):
        check_file(tmp_path / free)
    for free in ("folder", "link", "new/one/in/another"):
        check_folder(tmp_path / free)
    for wrong in ("folder", "x" * 256, "file/inside", "nowhere/new", "/proc/new"):
        with pytest.raises(OSError, match=wrong):
            check_file(tmp_path / wrong)
    for wrong in ("file", "x" * 256, "file/inside", "/proc/new", "/dev/null"):
        with pytest.raises(OSError, match=wrong):
            check_folder(tmp_path / wrong)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"]
    assert file.stat().st_mtime_ns == before
    assert file.read_bytes() == b"old"


def test_how_choices_are_taken_is_one_of_three_ways(monkeypatch):
    monkeypatch.setenv("CSRKERN_TUNE", "")
    assert tune_mode() == "cached"
    monkeypatch.setenv("CSRKERN_TUNE", "OFF")
    with pytest.raises(ValueError, match="CSRKERN_TUNE: expected one of cached, off, measure"):
        tune_mode()


def test_the_cache_is_that_of_the_user(monkeypatch):
    for name in ("CSRKERN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/one")
    assert cache_folder() == Path("/home/one/.cache/csrkern")
    with monkeypatch.context() as container:  # its user has no name
        container.setattr(os.path, "expanduser", lambda path: path)
        assert not cache_folder().parent.is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/csrkern")
    monkeypatch.setenv("CSRKERN_CACHE", "here")
    assert cache_folder() == Path("here")
