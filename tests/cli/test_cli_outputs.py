"""Where the commands write: proven before the work, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from command_line import (  # noqa: F401
    error_of,
    exit_code,
    inside_the_folder,
    json_lines,
    make_untrained,
    words,
)
from safetensors.numpy import load as load_safetensors

from csrkern import InvertedIndex, PackedCodes, SparseCodes, storage
from csrkern.nn import SparseAutoencoder
from csrtrain.cli import shared

# Each command that writes a file, and the file's ending; each that writes a folder.
FILES = {
    "encode model rows.npy": ".safetensors",
    "embed lines.txt": ".npy",
    "embed lines.txt --model model": ".safetensors",
    "embed --model model lines.txt": ".jsonl",
    "search index codes.safetensors": ".npz",
    "eval rows.npy --labels y.npy --k 2": ".csv",
    "eval rows.npy --k 2 --labels y.npy": ".html",
}
FOLDERS = [
    "train rows.npy --k 2 --hidden-dim 8 --steps 2",
    "index codes.safetensors",
    "index codes.safetensors --model model",
]


def option(suffix: str) -> str:
    return "--report" if suffix == ".html" else "-o"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    make_untrained(folder)
    (folder / "lines.txt").write_text("one\ntwo\n")
    return folder


@pytest.fixture
def idle(monkeypatch) -> None:
    """Any reading of what a command works on fails: the answer must come before."""
    from csrkern.embeddings import dataset
    from csrtrain.cli import embed as cli_embed

    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(dataset, "read_source", work)
    monkeypatch.setattr(SparseCodes, "load", work)
    monkeypatch.setattr(SparseAutoencoder, "from_pretrained", work)
    monkeypatch.setattr(InvertedIndex, "load", work)
    monkeypatch.setattr(cli_embed, "read_records", work)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- before the work ------------------------------------------------------------------


@pytest.mark.usefixtures("idle", "words")
@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_what_cannot_be_written_is_refused_before_the_work(folder, tmp_path, capsys, line):
    suffix = FILES.get(line, "")
    file, taken = tmp_path / f"file{suffix}", tmp_path / f"folder{suffix}"
    file.write_text("kept")
    taken.mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    wrong = {
        f"/proc/new{suffix}": f"/proc/new{suffix}: No such file",
        f"{tmp_path}/no/new{suffix}": f"{tmp_path}/no is not a folder; create it first",
        f"{file}/new{suffix}": f"{file} is not a folder; create it first",
        f"{tmp_path}/loop{suffix}": "Too many levels of symbolic links",
        f"{tmp_path}/{'x' * 250}{suffix or '.y'}": "File name too long"
        if suffix != ".npy" and len(suffix or ".y") > 5
        else None,
        f"{tmp_path}/{'x' * 256}{suffix}": "File name too long",
        f"b\udcff{suffix}": "--output: expected a name in UTF-8, as safetensors does, got b\\xff",
        "-": "expected a path, got -; /dev/stdout is the standard output",
        str(file if suffix else taken): "exists; choose another --output or add --force",
        str(taken if suffix else file): "expected a f",
    }
    before = contents(tmp_path)
    for path, message in wrong.items():
        if message is None:
            continue
        for force in ([], ["--force"]) if "exists" not in message else ([],):
            assert exit_code(*line.split(), option(suffix), path, *force) == 2
            assert message in error_of(capsys), path
    assert contents(tmp_path) == before
    assert file.read_text() == "kept"


@pytest.mark.usefixtures("idle", "words")
@pytest.mark.parametrize(
    ("line", "wrong"),
    [(line, wrong) for line in FILES if not line.startswith("embed") for wrong in (".npy", ".txt")],
)
def test_a_name_of_another_kind_of_file_is_refused_before_the_work(folder, capsys, line, wrong):
    suffix = FILES[line]
    assert exit_code(*line.split(), option(suffix), f"new{wrong}") == 2
    message = error_of(capsys)
    assert f"new{wrong}: expected a name that ends in {suffix}" in message
    assert message.endswith(f"such as new{suffix}")
    assert not Path(f"new{wrong}").exists()


@pytest.mark.parametrize("option", ["--checkpoints", "--log-dir"])
def test_other_folders_of_train_are_proven_too(folder, tmp_path, capsys, idle, option):
    line = ["train", "rows.npy", "-o", str(tmp_path / "new"), option]
    for place, message in (("lines.txt", "lines.txt: expected a folder"), ("/proc/a/b", "/proc/a")):
        assert exit_code(*line, place) == 2
        assert message in error_of(capsys)


def test_eval_does_not_write_two_outputs_into_one_file(folder, capsys, idle):
    assert exit_code("eval rows.npy --labels y.npy -o one --report ./one") == 2
    assert "--output and --report: expected two files" in error_of(capsys)


@pytest.mark.parametrize("line", ["encode model rows.npy", "build codes"])
def test_ray_proves_its_folder_before_the_work(folder, capsys, monkeypatch, line):
    from csrtrain import scale

    for name in ("encode_corpus", "build_shards"):
        monkeypatch.setattr(scale, name, lambda *_, **__: pytest.fail("the work has begun"))
    for place in ("lines.txt", "lines.txt/new", "/proc/new"):
        assert exit_code(f"ray {line} -o {place}") == 2
        assert error_of(capsys).startswith(f"{place}: ")


def test_demo_proves_its_folder_before_the_work(folder, capsys, monkeypatch):
    from csrtrain.demo import run as demo

    monkeypatch.setattr(demo, "load_demo", lambda: pytest.fail("the work has begun"))
    for place in ("/proc/new", "lines.txt/new"):
        assert exit_code(f"demo -o {place}") == 2
        assert error_of(capsys).startswith(f"{place}: ")


# ---- names ----------------------------------------------------------------------------


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_names_of_255_bytes_are_written(folder, tmp_path, line):
    suffix = FILES.get(line, "")
    for name in ("x" * (255 - len(suffix)), "ß" * ((255 - len(suffix)) // 2)):
        path = tmp_path / f"{name}{suffix}"
        assert exit_code(*line.split(), option(suffix), str(path)) == 0
        assert contents(tmp_path)[0] == path.name
        assert len(os.listdir(tmp_path)) == 1
        path.rename(tmp_path.parent / f"done-{tmp_path.name}-{len(os.listdir(tmp_path.parent))}")


ODD_NAMES = ["a b[v2]{}", "a[bold]:smile:'\"{}", "-x{}", "-{}", "$(x)\t\x1b[31m{}", "é{}"]


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_printed_exactly_and_the_next_command_works_as_printed(
    folder, tmp_path, capsys, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    rows = name.format(".npy")
    Path(rows).write_bytes((folder / "rows.npy").read_bytes())
    if rows.startswith("-"):
        rows = f"./{rows}"
    model = name.format(" model") + "m"
    line = ["train", rows, f"--output={model}", "--steps=2", "--hidden-dim=16", "--k=2"]
    commands = []
    while line is not None:
        assert exit_code(*line) == 0, line
        out = capsys.readouterr().out
        assert not {"\x1b", "\t"} & set(out)
        wrote, _, after = out.partition("\nNext: csrkern ")
        commands.append(line[0])
        if line[0] != "search":
            made = (
                next(part.split("=", 1)[-1] for part in line if part.startswith("--output="))
                if (line[0] == "train")
                else line[line.index("-o") + 1]
            )
            shown = made.removeprefix("./")
            assert wrote.startswith(f"Wrote {shared.printable(shown)}: ")
        line = in_shell(after)
        if line[0] == "serve":  # which would not end
            break
    assert commands == ["train", "encode", "index", "search"]
    assert InvertedIndex.load(os.fsencode(line[1]))


def in_shell(printed: str) -> list[str]:
    """The words that bash makes of a printed line."""
    import subprocess

    code = f"printf '%s\\0' {printed.strip()}"
    out = subprocess.run(["bash", "-c", code], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in out.split(b"\0")[:-1]]


@pytest.mark.usefixtures("words")
def test_next_commands_of_embed_and_index_name_what_they_wrote(folder, tmp_path, capsys):
    made = tmp_path / "a b[v2].safetensors"
    assert exit_code("embed", "lines.txt", "--model", "model", "-o", str(made)) == 0
    first = capsys.readouterr().out.splitlines()
    assert first == [f"Wrote {made}: 2 texts.", f"Next: csrkern index '{made}' -o index"]
    assert exit_code("index", str(made), "-o", str(tmp_path / "my index")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"Next: csrkern search '{tmp_path}/my index' 'some words'"
    )
    assert exit_code("search", str(tmp_path / "my index"), "some words") == 0


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("plain.npy", "plain.npy"),
        ("a b[v2]", "'a b[v2]'"),
        ("-x", "./-x"),
        ("b\udcff'\n", "$'b\\xff\\x27\\x0a'"),
    ],
)
def test_words_are_quoted_for_a_shell(word, wanted):
    assert shared.quoted(word) == wanted
    if "$" not in wanted:
        assert shlex.split(wanted) == [word if word[0] != "-" else f"./{word}"]


# ---- links, devices and pipes ---------------------------------------------------------


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_links_are_written_through(folder, tmp_path, line):
    suffix = FILES.get(line, "")
    disk = tmp_path / "disk"
    disk.mkdir()
    link, target = tmp_path / f"link{suffix}", disk / f"target{suffix}"
    link.symlink_to(Path("disk", target.name))
    # What it leads to is not there yet; then it is, and is replaced.
    for more in ([], ["--force"]):
        assert exit_code(*line.split(), option(suffix), str(link), *more) == 0
        assert link.is_symlink()
        assert target.exists()
        assert target.is_dir() == (line in FOLDERS)
        assert os.listdir(disk) == [target.name]
    assert exit_code(*line.split(), option(suffix), str(link)) == 2


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("line", FILES)
def test_devices_and_pipes_are_written_straight_through(folder, tmp_path, capsys, line):
    suffix = FILES[line]
    null = f"null{suffix if line.startswith('embed') else ''}"
    (tmp_path / null).symlink_to("/dev/null")
    for more in ([], ["--force"]):
        assert exit_code(*line.split(), option(suffix), str(tmp_path / null), *more) == 0
        out = capsys.readouterr().out
        assert f"{tmp_path / null}" in out
        assert "Next: csrkern index" not in out
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / null).is_symlink()
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert exit_code(*line.split(), option(suffix), str(pipe)) == 0
    reader.join(10)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert exit_code(*line.split(), option(suffix), str(tmp_path / f"file{suffix}")) == 0
    file = (tmp_path / f"file{suffix}").read_bytes()
    if suffix == ".safetensors":  # which writes its notes in any order
        (piped,), file = map(load_safetensors, got), load_safetensors(file)
        assert all(np.array_equal(piped[name], file[name]) for name in file)
    else:
        assert got == [file]


def test_a_device_of_ones_own_stays_one(folder, tmp_path):
    nul = tmp_path / "nul"
    try:
        os.mknod(nul, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert exit_code(f"encode model rows.npy -o {nul} --force") == 0
    assert stat.S_ISCHR(os.stat(nul).st_mode)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("line", FILES)
def test_a_full_disk_is_one_line_that_names_the_output(folder, capsys, tmp_path, line):
    suffix = FILES[line]
    full = tmp_path / f"full{suffix}"
    full.symlink_to("/dev/full")
    assert exit_code(*line.split(), option(suffix), str(full), "--json") == 2
    err = capsys.readouterr().err
    assert err == f"csrkern: {full}: No space left on device\n"
    assert full.is_symlink()


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(
    folder, tmp_path, capsys, monkeypatch, line, there
):
    suffix = FILES.get(line, "")
    output = tmp_path / f"out{suffix}"
    line = [*line.split(), option(suffix), str(output)]
    if there:
        assert exit_code(*line) == 0
        line.append("--force")
    before = contents(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert exit_code(*line) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"csrkern: {output}")
    assert err.endswith(": No space left on device\n")
    if there and output.is_dir():
        assert all(path.read_bytes() == old for path, old in whole.items())
    else:
        assert contents(tmp_path) == before
        assert all(path.read_bytes() == old for path, old in whole.items())


def test_a_file_that_is_replaced_keeps_its_mode(folder, tmp_path):
    path = tmp_path / "codes.safetensors"
    assert exit_code(f"encode model rows.npy -o {path}") == 0
    path.chmod(0o600)
    assert exit_code(f"encode model rows.npy -o {path} --force") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def run(line: str, folder: Path, **options) -> tuple[int, bytes, bytes]:
    """A line of bash, in which $csrkern is the command."""
    import subprocess
    import sys

    options["env"] = os.environ | {"csrkern": f"{sys.executable} -m csrtrain"}
    found = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, **options)
    return found.returncode, found.stdout, found.stderr


def test_standard_output_by_its_name_holds_the_output_alone(folder, tmp_path):
    code, out, err = run("$csrkern encode model rows.npy -o /dev/stdout | cat", folder)
    assert (code, err.decode().split(":")[0]) == (0, "Wrote /dev/stdout")
    assert load_safetensors(out)["values"].shape == (40, 4)
    line = f"$csrkern search index codes.safetensors --json -o /dev/stdout >>{tmp_path}/hits"
    (tmp_path / "hits").write_bytes(b"before")
    code, out, err = run(line, folder)
    assert (code, out) == (0, b"")
    assert len([json.loads(hit) for hit in err.splitlines()]) == 40
    raw = (tmp_path / "hits").read_bytes()
    assert raw.startswith(b"before")
    (tmp_path / "hits").write_bytes(raw[len(b"before") :])
    assert np.load(tmp_path / "hits")["ids"].shape == (40, 10)


# ---- the library's own ----------------------------------------------------------------


def test_savers_of_the_library_write_through_links_and_name_what_they_cannot_write(
    folder, tmp_path
):
    codes = SparseCodes.load("codes.safetensors")
    for save in (codes.save, PackedCodes.pack(codes).save):
        (tmp_path / "link").symlink_to("target")
        save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        save("/dev/null")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            save("/dev/full")
        with pytest.raises(IsADirectoryError, match=str(tmp_path)):
            save(tmp_path)
        (tmp_path / "link").unlink()
    with pytest.raises(FileNotFoundError, match="nowhere/file"):
        storage.write_atomically("nowhere/file", b"")
