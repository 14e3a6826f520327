"""csrkern where Ray is not installed: everything else works, and csrtrain.scale says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HIDDEN = """
import sys
for name in ("ray", "fsspec", "s3fs"):
    sys.modules[name] = None  # as if it were not installed
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a Python without Ray."""
    code = HIDDEN + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_names_say_what_to_install(tmp_path: Path) -> None:
    done = run(f"""
        import csrtrain.scale as scale

        calls = [
            lambda: scale.encode_corpus("x", "model", {str(tmp_path / "codes")!r}),
            lambda: scale.build_shards("codes", {str(tmp_path / "index")!r}),
            lambda: scale.add_shard("index", {str(tmp_path / "index")!r}),
            lambda: scale.ShardedIndex.serve("index"),
            lambda: scale.ShardedIndex.connect(),
            lambda: scale.train_on_ray("x.npy", "model", workers=2),
        ]
        for call in calls:
            try:
                call()
            except ImportError as error:
                assert "pip install 'csrkern[ray]'" in str(error), error
            else:
                raise AssertionError(call)
    """)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_rest_does_not_look_for_ray() -> None:
    done = run("""
        import csrtrain, csrtrain.cli.app, csrtrain.demo.run, csrtrain.scale
        from csrtrain.scale import Answer, ShardedIndex
        print(sorted(name for name in sys.modules if name.split(".")[0] in ("ray", "fsspec")))
    """)
    assert done.stdout.strip() == "['fsspec', 'ray']", done.stderr  # as hidden, no parts of them


@pytest.mark.parametrize("command", [["build", "codes", "-o", "index"], ["serve", "index"]])
def test_commands_end_in_one_line(command: list[str], tmp_path: Path) -> None:
    code = HIDDEN + f"from csrtrain.cli.app import main; main({['ray', *command]!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'csrkern[ray]'" in done.stderr
