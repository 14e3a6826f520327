"""Builds ``csrkern._C`` from ``csrc/`` with ninja; everything declarative is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    # No silent fused multiply-add: every instruction set must give the same bits.
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
]
# Files named *_avx2.cpp and *_avx512.cpp are compiled for that instruction set and
# reached only through the run-time choice in csrc/cpu/dispatch.cpp.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"],
    "_avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"),
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd"),
        "-mprefer-vector-width=512",
        # Its intrinsics pass "undefined" registers on purpose; gcc 12 warns of them.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
}
IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}


def isa_of(source: str) -> str | None:
    return next((isa for isa in ISA_FLAGS if Path(source).stem.endswith(isa)), None)


def native_sources() -> list[str]:
    """Every C++ file under csrc/ that this processor family can run, relative to the root."""
    found = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
    found = [s for s in found if not s.startswith("csrc/tests/")]
    return found if IS_X86 else [s for s in found if isa_of(s) is None]


class NinjaBuildExt(build_ext):
    """One ninja graph per extension: parallel, incremental, with header dependencies."""

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        ninja_file = build_dir / "build.ninja"
        ninja_file.write_text(self.ninja_graph(ext, build_dir, target))
        command = [sys.executable, "-m", "ninja", "-f", str(ninja_file)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        subprocess.run(command, check=True)

    @staticmethod
    def ninja_graph(ext: Extension, build_dir: Path, target: Path) -> str:
        compiler = os.environ.get("CXX", "c++")
        includes = [
            ROOT / "csrc/include",
            ROOT / "csrc/cpu",
            pybind11.get_include(),
            sysconfig.get_path("include"),
        ]
        flags = [*COMMON_FLAGS, *(f"-I{Path(i).resolve()}" for i in includes)]
        if IS_X86:
            flags.append("-DCSRKERN_X86=1")
        lines = [
            f"builddir = {escape(build_dir)}",
            "rule cxx",
            "  command = $cxx -MMD -MF $out.d $flags $isa -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CXX $in",
            "rule link",
            "  command = $cxx -shared -pthread -s $in -ldl -o $out",
            "  description = LINK $out",
            f"cxx = {compiler}",
            f"flags = {shlex.join(flags)} {os.environ.get('CXXFLAGS', '')}",
        ]
        objects = []
        for source in ext.sources:
            obj = build_dir / (source.replace("/", "_") + ".o")
            lines.append(f"build {escape(obj)}: cxx {escape((ROOT / source).resolve())}")
            lines.append(f"  isa = {shlex.join(ISA_FLAGS.get(isa_of(source) or '', []))}")
            objects.append(escape(obj))
        lines.append(f"build {escape(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("csrkern._C", native_sources(), language="c++")],
    cmdclass={"build_ext": NinjaBuildExt},
)
