"""The documentation does what it says: blocks run, links lead somewhere, every name is there."""

from __future__ import annotations

import re
import subprocess

import pytest
from docs_blocks import ELSEWHERE, ROOT, RUN, SHOWN, Block, blocks, pages, run_page

import csrkern
import csrtrain
import csrtrain.scale

BLOCKS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in pages()}
ALL = [block for page in BLOCKS.values() for block in page]


@pytest.mark.parametrize("page", [p for p in BLOCKS if any(b.language in RUN for b in BLOCKS[p])])
def test_a_page_runs_as_typed(page, tmp_path):
    run_page(page, BLOCKS[page], tmp_path)


def test_blocks_are_found():
    assert len(BLOCKS["README.md"]) >= 3
    assert len(ALL) > 40
    for page in BLOCKS:
        assert len(re.findall("^```", (ROOT / page).read_text(), re.MULTILINE)) % 2 == 0


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.id)
def test_a_block_is_either_run_or_marked(block):
    assert block.language in (*RUN, *SHOWN), "name the language: python, bash, or text"
    if block.needs is None:
        return
    assert block.code.startswith("# "), "say in a comment at the top what it needs"
    if block.language == "python":
        compile(block.code, block.page, "exec")
    else:
        subprocess.run(["bash", "-n", "-c", block.code], check=True)


@pytest.mark.parametrize("page", sorted(BLOCKS))
def test_commands_stand_in_fences(page):
    """An indented block has no language and would not be run."""
    text = _without_code((ROOT / page).read_text())
    assert not re.search(r"^(?: {4}|\t)(?:csrkern|pip|python|make|torchrun|pytest) ", text, re.M)


@pytest.mark.parametrize("block", [b for b in ALL if b.needs in ELSEWHERE], ids=lambda b: b.id)
def test_what_is_not_run_is_there(block: Block):
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for target in re.findall(r"^(?:\w+=\S+ )*make (\w+)", block.code, re.MULTILINE):
        assert target in targets
    for names in re.findall(r"pip install .*\[([a-z,]+)\]", block.code):
        assert set(names.split(",")) <= set(extras)
    for path in re.findall(r"(?:^|[ (])((?:benchmarks|scripts|examples)/[\w./]+)", block.code):
        assert (ROOT / path).is_file()
    for module in re.findall(r"python -m (benchmarks[.\w]+)", block.code):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


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
    modules = {f"csrkern.{name}" for name in ("integrations", "nn", "reference", "roofline")}
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
