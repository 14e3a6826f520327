"""The figures of `csrkern demo`, kept with machine, versions and commit.

    python -m benchmarks.demo

runs the full demo in a folder of its own and writes benchmarks/results/<machine>/demo.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import provenance
from csrkern.storage import write_atomically
from csrtrain import demo

RESULTS = Path(__file__).parent / "results"


def main(root: Path = RESULTS, *, quick: bool = False) -> Path:
    """Runs the demo and returns the file written."""
    machine = provenance.machine()
    with tempfile.TemporaryDirectory() as folder:
        demo.run(Path(folder) / "demo", quick=quick)
        result = json.loads((Path(folder) / "demo" / demo.RESULTS).read_text())
    record = {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": provenance.commit(),
        "machine": machine,
        "versions": provenance.versions(),
        "demo": result,
    }
    path = root / machine["name"] / "demo.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


if __name__ == "__main__":
    sys.stdout.write(f"saved: {main()}\n")
