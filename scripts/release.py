"""Builds the sdist and this Python's wheel into a folder, and checks all that a release promises.

python scripts/release.py dist   # `make release` installs what it needs

The wheel is built from the unpacked sdist, so that a file the sdist lacks is noticed here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2_000_000  # of a wheel, packed, without the demo's data
DATA = "csrkern/data/"
EXECUTABLE = 1  # PF_X
LICENSES = {"LICENSE", "NOTICE-wordnet.txt"}


def run(*command: str | Path) -> None:
    """Say what runs, and run it in the root folder."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def version() -> str:
    """Return the version, which the changelog must have with nothing unreleased above it."""
    stated = re.search(r'__version__ = "(.+)"', (ROOT / "csrkern/_version.py").read_text())
    assert stated is not None
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = dict(re.findall(r"^## \[(.+?)\].*?\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    newest = next((name for name in sections if name != "Unreleased"), None)
    if newest != stated[1]:
        sys.exit(f"CHANGELOG.md: expected {stated[1]} of csrkern/_version.py, got {newest}")
    if sections.get("Unreleased", "").strip():
        sys.exit(f"CHANGELOG.md: expected nothing unreleased above {stated[1]}; move it there")
    return stated[1]


def build(folder: Path) -> tuple[Path, Path]:
    """Return the sdist, and the wheel that is built from it alone."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = Path(unpacked).iterdir()
        built = Path(unpacked) / "wheel"
        pip = sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"
        run(*pip, "--wheel-dir", built, source)
        auditwheel = sys.executable, "-m", "auditwheel", "repair"
        run(*auditwheel, "--wheel-dir", folder, *built.glob("*.whl"))
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def faults(sdist: Path, wheel: Path) -> Iterator[str]:
    """Yield a sentence for everything that a release may not have."""
    with tarfile.open(sdist) as archive:
        if not any(name.endswith("/LICENSE") for name in archive.getnames()):
            yield f"{sdist.name} has no LICENSE"
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        names = {Path(entry.filename).name for entry in entries if "/licenses/" in entry.filename}
        if lacking := LICENSES - names:
            yield f"{wheel.name} lacks {', '.join(sorted(lacking))}"
        code = sum(e.compress_size for e in entries if not e.filename.startswith(DATA))
        print(f"{wheel.name}: {code / 1e6:.2f} MB without {DATA}")
        if code > MOST_BYTES:
            yield f"{wheel.name}: expected at most {MOST_BYTES:,} bytes without data, got {code:,}"
        for entry in entries:
            if entry.filename.endswith(".so"):
                with archive.open(entry) as stream:
                    yield from native_faults(entry.filename, ELFFile(stream))


def native_faults(name: str, module: ELFFile) -> Iterator[str]:
    """Yield what a module may not have: an executable stack, or places to load others from."""
    stacks = [s for s in module.iter_segments() if s["p_type"] == "PT_GNU_STACK"]
    if not stacks or any(stack["p_flags"] & EXECUTABLE for stack in stacks):
        yield f"{name} asks for an executable stack"
    dynamic = module.get_section_by_name(".dynamic")
    for tag in dynamic.iter_tags():
        if tag.entry.d_tag in {"DT_RPATH", "DT_RUNPATH", "DT_TEXTREL"}:
            yield f"{name} has {tag.entry.d_tag}"


def try_installed(wheel: Path, bill: Path) -> None:
    """Try the wheel with all that it depends on, and write what that is as a CycloneDX bill."""
    with tempfile.TemporaryDirectory() as environment:
        run(sys.executable, "-m", "venv", environment)
        python = Path(environment) / "bin/python"
        run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", wheel)
        run(python.with_name("csrkern"), "doctor")
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools")
        cyclonedx = sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"
        run(*cyclonedx, "--pyproject", "pyproject.toml", "--output-file", bill, python)


def main() -> None:
    """Build, check and try a release; exit with a sentence if anything is wrong."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder}: expected an empty folder; an older release is there")
    name = f"csrkern {version()}"
    sdist, wheel = build(folder)
    if found := list(faults(sdist, wheel)):
        sys.exit("\n".join(found))
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    contents = Path(sys.executable).with_name("check-wheel-contents")
    # The notice of the data lies beside the data and among the licenses.
    run(contents, "--toplevel", "csrkern,csrtrain", "--ignore", "W002", wheel)
    run(sys.executable, ROOT / "scripts/try_wheel.py", folder)
    bill = folder / f"{sdist.name.removesuffix('.tar.gz')}.cdx.json"
    try_installed(wheel, bill)
    print(f"{name} is ready: {sdist.name}, {wheel.name}, {bill.name}")


if __name__ == "__main__":
    main()
