"""Builds all that is published into a folder, and checks what a release promises.

python scripts/release.py dist   # `make release` installs what it needs

That is the sdist and this Python's wheel of csrkern, and those of csrkern-demo-data. The wheel is
built from the unpacked sdist, so that a file the sdist lacks is noticed here.
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
EXECUTABLE = 1  # PF_X
LICENSE = {"csrkern": "LICENSE", "csrkern_demo_data": "NOTICE-wordnet.txt"}


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
    """Return the sdist and the wheel of csrkern, which is built from the sdist alone."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("csrkern-*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = Path(unpacked).iterdir()
        built = Path(unpacked) / "wheel"
        pip = sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"
        run(*pip, "--wheel-dir", built, source)
        auditwheel = sys.executable, "-m", "auditwheel", "repair"
        run(*auditwheel, "--wheel-dir", folder, *built.glob("*.whl"))
    (wheel,) = folder.glob("csrkern-*.whl")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT / "demo-data")
    return sdist, wheel


def faults(folder: Path) -> Iterator[str]:
    """Yield a sentence for everything that a release may not have."""
    for sdist in folder.glob("*.tar.gz"):
        license = LICENSE[sdist.name.split("-")[0]]
        with tarfile.open(sdist) as archive:
            if not any(name.endswith(f"/{license}") for name in archive.getnames()):
                yield f"{sdist.name} has no {license}"
    for wheel in folder.glob("*.whl"):
        license = LICENSE[wheel.name.split("-")[0]]
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if not any("/licenses/" in name and name.endswith(license) for name in names):
                yield f"{wheel.name} has no {license} among its licenses"
            for name in names:
                if name.endswith(".so"):
                    with archive.open(name) as stream:
                        yield from native_faults(name, ELFFile(stream))


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
    """Try the wheel and its demo as a user installs them, and write a CycloneDX bill of the wheel.

    The bill lists what csrkern depends on, the demo is installed after it.
    """
    with tempfile.TemporaryDirectory() as environment:
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        python = Path(environment) / "bin/python"
        command = python.with_name("csrkern")
        pip = sys.executable, "-m", "pip", "--python", python, "install", "--quiet"
        run(*pip, "-c", "constraints.txt", wheel)
        run(command, "doctor")
        cyclonedx = sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"
        run(*cyclonedx, "--pyproject", "pyproject.toml", "--output-file", bill, python)
        demo = "--find-links", wheel.parent, f"{wheel}[demo]", "csrkern-demo-data"
        run(*pip, "-c", "constraints.txt", *demo)
        run(command, "demo", "--quick", "--output", Path(environment) / "demo")


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
    if found := list(faults(folder)):
        sys.exit("\n".join(found))
    built = sorted(folder.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    contents = Path(sys.executable).with_name("check-wheel-contents")
    run(contents, "--toplevel", "csrkern,csrtrain", wheel)
    run(sys.executable, ROOT / "scripts/try_wheel.py", folder)
    bill = folder / f"{sdist.name.removesuffix('.tar.gz')}.cdx.json"
    try_installed(wheel, bill)
    names = ", ".join(file.name for file in [*built, bill])
    print(f"{name} is ready: {names}")


if __name__ == "__main__":
    main()
