"""Builds ``csrkern._C`` and, where nvcc is, ``csrkern._cuda`` from ``csrc/`` with ninja.

CSRKERN_CUDA=0 builds without CUDA whatever is there, CSRKERN_CUDA=1 fails where nvcc is not.
Everything declarative is in pyproject.toml.
"""

from __future__ import annotations

import os
import shlex
import shutil
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
    "-fvisibility=hidden",
    "-fno-math-errno",
    # No silent fused multiply-add: every instruction set must give the same bits.
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
]
# Files named *_avx2.cpp and so on are compiled for that instruction set and reached only through
# the run-time choice in csrc/cpu/isa/kernels.cpp.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"],
    "_avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"),
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd"),
        "-mprefer-vector-width=512",
        # Its intrinsics pass "undefined" registers on purpose; gcc 12 warns of them.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
    "_neon": ["-march=armv8-a+crc"],
}
# Those of each processor family; elsewhere there are the portable kernels alone.
FAMILIES = {"x86_64": {"_avx2", "_avx512"}, "aarch64": {"_neon"}, "arm64": {"_neon"}}
# Machine code for these (each serves the later minor versions of its generation), and for what is
# newer than all of them an intermediate form that the driver compiles.
CUDA_TARGETS = {"80": "80", "90": "90a", "100": "100"}
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "--threads=4", "-cudart=static"),
    # Products are rounded before they are added, as on the CPU.
    "-fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra",
]
# Windows is built by clang++, not by cl: the sources use the builtins of gcc and clang.
CXX = os.environ.get("CXX", "clang++" if sys.platform == "win32" else "c++")
PLATFORM_FLAGS = [] if sys.platform == "win32" else ["-fPIC", "-pthread"]
LINK_FLAGS = {
    "win32": ["-shared", f"-L{Path(sys.base_prefix) / 'libs'}"],
    "darwin": ["-bundle", "-undefined", "dynamic_lookup"],
}.get(sys.platform, ["-shared", "-pthread", "-s"])
LIBRARIES = ["-ldl"] if sys.platform == "linux" else []
INCLUDES = [ROOT / "csrc/include"]
# Of what Python sees alone. Where pip isolates a build, pybind11 is in another folder each time,
# and what is compiled with its path is compiled again: 35 of the 75 s of processor time of all.
BINDING_INCLUDES = [pybind11.get_include(), sysconfig.get_path("include")]


def isa_of(source: str) -> str | None:
    return next((isa for isa in ISA_FLAGS if Path(source).stem.endswith(isa)), None)


def own_flags(source: str) -> list[str]:
    """The flags of one source besides those of all."""
    bound = source.startswith("csrc/bindings/") or source == "csrc/cuda/bind.cpp"
    return [
        *ISA_FLAGS.get(isa_of(source) or "", []),
        *(f"-I{Path(i).resolve()}" for i in BINDING_INCLUDES if bound),
    ]


def native_sources() -> list[str]:
    """Every C++ file of the CPU part, for all processor families, relative to the root."""
    found = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
    return [s for s in found if not s.startswith(("csrc/tests/", "csrc/cuda/"))]


def foreign_isas(compiler: str) -> set[str]:
    """The instruction sets that are not of the processor family that a compiler compiles for."""
    command = [*shlex.split(compiler), "-dumpmachine"]
    triple = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(ISA_FLAGS) - FAMILIES.get(triple.partition("-")[0], set())


def cuda_sources() -> list[str]:
    found = [p for p in ROOT.glob("csrc/cuda/*") if p.suffix in {".cpp", ".cu"}]
    return sorted(str(p.relative_to(ROOT)) for p in found)


def find_nvcc() -> str | None:
    """CUDA's compiler, unless CSRKERN_CUDA says that it is not wanted."""
    wanted = os.environ.get("CSRKERN_CUDA", "")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    named = os.environ.get("NVCC")
    nvcc = named or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None and wanted == "1":
        raise SystemExit("CSRKERN_CUDA=1, but no nvcc on PATH, in CUDA_HOME or named by NVCC")
    return nvcc


def cuda_targets(nvcc: str) -> list[str]:
    """-gencode options for those of CUDA_TARGETS that this nvcc knows."""
    command = [nvcc, "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    plain = [arch for arch in CUDA_TARGETS if f"compute_{arch}" in known]
    if not plain:
        raise SystemExit(f"{nvcc} compiles for none of {list(CUDA_TARGETS)}; try CSRKERN_CUDA=0")
    codes = [(CUDA_TARGETS[arch], f"sm_{CUDA_TARGETS[arch]}") for arch in plain]
    codes.append((plain[-1], f"compute_{plain[-1]}"))
    return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes]


class NinjaBuildExt(build_ext):
    """One ninja graph per extension: parallel, incremental, with header dependencies.

    Its folder is the same for a wheel and for editable installs, to which pip gives an empty one.
    """

    def build_extension(self, ext: Extension) -> None:
        build_dir = ROOT / "build" / f"ninja-{sysconfig.get_platform()}" / ext.name
        build_dir.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        rules = self.cuda_rules() if ext.name == "csrkern._cuda" else self.cpu_rules()
        ninja_file = build_dir / "build.ninja"
        ninja_file.write_text(self.ninja_graph(ext, rules, build_dir, target))
        command = [sys.executable, "-m", "ninja", "-f", str(ninja_file)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            without = "; CSRKERN_CUDA=0 builds without it" if ext.name == "csrkern._cuda" else ""
            raise SystemExit(f"{ext.name} could not be built{without}")

    @staticmethod
    def cpu_rules() -> list[str]:
        includes = [*INCLUDES, ROOT / "csrc/cpu"]
        flags = [*COMMON_FLAGS, *PLATFORM_FLAGS, *(f"-I{Path(i).resolve()}" for i in includes)]
        return [
            f"compiler = {CXX}",
            f"flags = {shlex.join(flags)} {os.environ.get('CXXFLAGS', '')}",
            f"link = {shlex.join(LINK_FLAGS)}",
            f"libraries = {shlex.join(LIBRARIES)}",
        ]

    @staticmethod
    def cuda_rules() -> list[str]:
        nvcc = find_nvcc()
        assert nvcc is not None
        flags = [*NVCC_FLAGS, *(f"-I{Path(i).resolve()}" for i in INCLUDES)]
        if cxx := os.environ.get("CXX"):
            flags.append(f"-ccbin={cxx}")
        return [
            f"compiler = {nvcc}",
            f"flags = {shlex.join(flags)} {shlex.join(cuda_targets(nvcc))}",
            "link = -shared -cudart=static --no-device-link -Xlinker=-s",
            "libraries =",
        ]

    @staticmethod
    def ninja_graph(ext: Extension, rules: list[str], build_dir: Path, target: Path) -> str:
        lines = [
            f"builddir = {escape(build_dir)}",
            *rules,
            "rule compile",
            "  command = $compiler -MMD -MF $out.d $flags $own -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CXX $in",
            "rule link",
            "  command = $compiler $link $in $libraries -o $out",
            "  description = LINK $out",
        ]
        objects = []
        foreign = foreign_isas(CXX)
        for source in (s for s in ext.sources if isa_of(s) not in foreign):
            obj = build_dir / (source.replace("/", "_") + ".o")
            lines.append(f"build {escape(obj)}: compile {escape((ROOT / source).resolve())}")
            lines.append(f"  own = {shlex.join(own_flags(source))}")
            objects.append(escape(obj))
        lines.append(f"build {escape(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


extensions = [Extension("csrkern._C", native_sources(), language="c++")]
if find_nvcc() is not None:
    extensions.append(Extension("csrkern._cuda", cuda_sources(), language="c++"))
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuildExt},
)
