"""The tutorial: its cells run from a new kernel, and the page of the site is made of it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
SECONDS = 900  # it takes 20 on a quiet machine


@pytest.fixture
def page_of(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "site"))
    import notebook

    yield notebook.page_of
    sys.modules.pop("notebook", None)


def test_its_cells_run_in_a_new_kernel(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    held = nbformat.read(TUTORIAL, as_version=4)
    shown = {cell.id: kinds(cell) for cell in held.cells if cell.cell_type == "code"}
    client.NotebookClient(
        held, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    run = {cell.id: kinds(cell) for cell in held.cells if cell.cell_type == "code"}
    assert run == shown  # text and pictures where the committed one has them
    assert ["image/png", "text/plain"] in run.values()
    assert not list(tmp_path.iterdir())


def kinds(cell) -> list[str]:
    """Return what a cell shows: types, not what depends on the machine."""
    return sorted(
        kind for output in cell.outputs for kind in output.get("data", {output.get("name"): ""})
    )


def test_the_page_has_all_that_the_notebook_shows(page_of):
    markdown, pictures = page_of(TUTORIAL)
    for cell in json.loads(TUTORIAL.read_text())["cells"]:
        assert "".join(cell["source"]) in markdown
    assert len(re.findall("^```text$", markdown, re.MULTILINE)) >= 4
    assert list(pictures) == re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", markdown):
        assert (TUTORIAL.parent / link).is_file()


def test_a_notebook_that_was_not_run_whole_is_refused(page_of, tmp_path):
    held = json.loads(TUTORIAL.read_text())
    last = [cell for cell in held["cells"] if cell["cell_type"] == "code"][-1]
    for count in (None, 99):
        last["execution_count"] = count
        Path(tmp_path / "tutorial.ipynb").write_text(json.dumps(held))
        with pytest.raises(ValueError, match="run all cells in order"):
            page_of(tmp_path / "tutorial.ipynb")
