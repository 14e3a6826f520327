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
    head = ["queries are", "queries a request", "connections", "requests/s", "queries/s"]
    table = [[*head, "p50, ms", "p99, ms", "server's processor time, ms a request"]]
    names = ("requests_per_second", "queries_per_second", "p50_ms", "p99_ms", "server_ms")
    for row in held["table"]:
        cells = [row["form"], str(row["batch"]), str(row["connections"])]
        table.append([*cells, *(digits(row[name]) for name in names)])
    failed = sum(row["failed"] for row in held["table"])
    text = (
        f"{held['codes']:,} definitions, codes of k = {held['k']} over {held['dim']:,} latents, "
        f"with payloads; {machine['cpu']}, {machine['cores']} core for server and wrk together, "
        f"{held['workers']} worker, Python {held['versions']['python']}; {failed} requests failed. "
        f"A search alone takes {held['search_us']:.0f} µs. Meanwhile the load of the system was "
        f"{held['load']:.1f} on {held['system_cores']} cores: rates and latencies are those of a "
        "busy machine, the processor time is the server's own."
    )
    return f"{text}\n\n{table_of(table, left=(0,))}"
