"""The documentation does what it says: blocks run, links lead somewhere, every name is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import ROOT, Block, blocks, namespace, pages, why_not

import csrkern
import csrtrain
import csrtrain.scale

BLOCKS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in pages()}


class Run:
    """A page being run: its names, its folder, and how many blocks have been passed."""

    def __init__(self, page: str, folder: Path) -> None:
        self.folder = folder
        self.page = page
        self.names: dict[str, Any] | None = None
        self.done = 0

    def up_to(self, block: Block) -> None:
        """Runs what comes before a block and can run here, and the block."""
        if self.names is None:
            self.names = {"__name__": "docs", **namespace(self.page)}
        of_page = BLOCKS[self.page]
        end = of_page.index(block) + 1
        for one in of_page[self.done : end]:
            self.done += 1
            if why_not(one.needs) is None:
                lines = "\n" * (one.line - 1)  # so that a traceback names the line of the page
                exec(compile(lines + one.code, ROOT / one.page, "exec"), self.names)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {page: Run(page, tmp_path_factory.mktemp("page")) for page in BLOCKS}


@pytest.mark.parametrize("block", [b for page in BLOCKS.values() for b in page], ids=lambda b: b.id)
def test_block(block: Block, runs: dict[str, Run], monkeypatch, restored, one_thread):
    if reason := why_not(block.needs):
        pytest.skip(reason)
    run = runs[block.page]
    monkeypatch.chdir(run.folder)
    run.up_to(block)


def test_blocks_are_found():
    assert len(BLOCKS["README.md"]) >= 4
    assert sum(map(len, BLOCKS.values())) > 25


@pytest.mark.parametrize("page", sorted(BLOCKS))
def test_every_python_fence_is_read(page):
    """A fence that is not understood would not be run either."""
    assert (ROOT / page).read_text().count("```python") == len(BLOCKS[page])


MARKDOWN = sorted(
    p.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/**/*.md")
    for p in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", MARKDOWN)
def test_links_lead_to_files_and_headings(page):
    text = _without_code((ROOT / page).read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: there is no {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _without_code(target.read_text()), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{page}: {link}"


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip()
    return re.sub(r"[-\s]+", "-", kept)


def test_every_public_name_is_in_the_reference():
    text = "".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    modules = {"csrkern.integrations", "csrkern.nn", "csrkern.reference"}
    for module in (csrkern, csrtrain, csrtrain.scale):
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            if full in modules:
                assert any(known.startswith(full) for known in documented), full
            elif name != "__version__":
                assert full in documented


def test_every_document_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in menu
