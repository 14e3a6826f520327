"""The figures of `csrkern demo`, kept with machine, versions and commit.

    python -m benchmarks.demo

runs the full demo in a folder of its own and writes benchmarks/results/<machine>/demo.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import provenance
from csrtrain.demo import run as demo


def main(root: Path = provenance.RESULTS, *, quick: bool = False) -> Path:
    """Runs the demo and returns the file written."""
    with tempfile.TemporaryDirectory() as folder:
        demo.run(Path(folder) / "demo", quick=quick)
        result = json.loads((Path(folder) / "demo" / demo.RESULTS).read_text())
    return provenance.save("demo.json", root, demo=result)


if __name__ == "__main__":
    sys.stdout.write(f"saved: {main()}\n")
