"""Tell how fast the server answers, from serve.json of benchmarks.serve.load."""

from __future__ import annotations

import json

from results import RESULTS, digits, table_of

UNMEASURED = "*Not measured yet: `python -m benchmarks.serve.load --save`.*"


def serving() -> str:
    """Return a table for each machine."""
    files = sorted(RESULTS.glob("*/serve.json"))
    return "\n\n".join(_of_machine(json.loads(file.read_text())) for file in files) or UNMEASURED


def _of_machine(held: dict) -> str:
    machine = held["machine"]
    head = ["queries are", "queries a request", "workers", "connections", "requests/s"]
    table = [[*head, "queries/s", "p50, ms", "p99, ms", "server's processor time, ms a request"]]
    names = ("requests_per_second", "queries_per_second", "p50_ms", "p99_ms", "server_ms")
    for row in held["table"]:
        form = f"{row['form']}; {row['loads']} reloads" if row["reload"] else row["form"]
        cells = [form, *(str(row[name]) for name in ("batch", "workers", "connections"))]
        table.append([*cells, *(digits(row[name]) for name in names)])
    failed = sum(row["failed"] for row in held["table"])
    text = (
        f"{held['codes']:,} definitions, codes of k = {held['k']} over {held['dim']:,} latents, "
        f"with payloads; {machine['cpu']} (family-model-stepping "
        f"{machine['family_model_stepping']}), {machine['cores']} cores for server and wrk "
        f"together, Python {held['versions']['python']}; {failed} requests failed. Reloads are "
        "those of all workers together, while the index was written again every "
        f"{held['rewritten_every']:g} s. A search alone takes {held['search_us']:.0f} µs. "
        f"The machine's load was {held['load_before']:.1f} before."
    )
    return f"{text}\n\n{table_of(table, left=(0,))}"
