"""A notebook as a page: Markdown, and the pictures that its cells show."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def page_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Return Markdown, and pictures by the names that it shows them under.

    mkdocs has plugins for this, whose pages fetch scripts from elsewhere.

    Raises:
        ValueError: if a cell has not been run, or not in this order, or shows what is not known.
    """
    held = json.loads(notebook.read_text())
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    runs = 0
    for cell in held["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        runs += 1
        if cell["execution_count"] != runs:
            raise ValueError(f"{notebook}: run all cells in order, from a new kernel, and save")
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = _data_of(output)
            if "image/png" in data:
                name = f"images/{notebook.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![what the cell draws]({name})")
            elif "text/plain" in data:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
            else:
                raise ValueError(f"{notebook}: expected text or a picture, got {sorted(data)}")
    return "\n\n".join(parts) + "\n", pictures


def _data_of(output: dict[str, Any]) -> dict[str, Any]:
    """Return what an output shows, by its type; of standard output, text."""
    if output["output_type"] == "stream" and output["name"] == "stdout":
        return {"text/plain": output["text"]}
    return output.get("data", {})
