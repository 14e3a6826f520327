"""Import rules, checked against the imports of both packages."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"csrkern": ROOT / "csrkern", "csrtrain": ROOT / "python/csrtrain"}


def module_files() -> dict[str, Path]:
    """The modules of both packages by name."""
    found = {}
    for name, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = (name, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = module_files()


def imports(module: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of our packages, in functions too; none for type checkers."""

    def walk(node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports are not used"
            yield from ((str(node.module), alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    for origin, name in walk(ast.parse(MODULES[module].read_text())):
        if origin.split(".")[0] in PACKAGES:
            yield (f"{origin}.{name}", "") if f"{origin}.{name}" in MODULES else (origin, name)


def test_csrkern_never_imports_csrtrain():
    wrong = [
        (module, origin)
        for module in MODULES
        if module.split(".")[0] == "csrkern"
        for origin, _ in imports(module)
        if origin.split(".")[0] == "csrtrain"
    ]
    assert not wrong


def test_csrtrain_imports_only_public_names_of_csrkern():
    wrong = [
        (module, origin, name)
        for module in MODULES
        if module.split(".")[0] == "csrtrain"
        for origin, name in imports(module)
        if origin.split(".")[0] == "csrkern"
        and any(part.startswith("_") for part in (*origin.split("."), name))
        and name != "__version__"
    ]
    assert not wrong


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of modules, or nothing."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := visit(other, [*way, module]):
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def test_no_modules_import_each_other_in_a_circle():
    graph = {m: {origin for origin, _ in imports(m)} - {m} for m in MODULES}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle(graph)


@pytest.mark.parametrize(
    "code",
    [
        "import csrkern",
        "import csrkern; csrkern.InvertedIndex",
        "from csrkern.index.inverted import InvertedIndex",
        "import csrkern.codes, csrkern.index, csrkern.integrations, csrkern.documents.store",
    ],
)
def test_index_needs_no_pytorch(code):
    program = f"{code}\nimport sys\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["csrkern", "csrtrain", "csrtrain.scale"])
def test_completion_offers_what_is_public(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
