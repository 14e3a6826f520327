"""More than one machine: the drill, the cost model and what it says of larger corpora."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from results import MACHINE, digits, table_of

from csrtrain.charts import COLORS, Series, line_chart


@cache
def _read(name: str) -> dict[str, Any] | None:
    path = MACHINE / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _unmeasured(module: str) -> str:
    return f"*Not measured yet: `python -m benchmarks.scale.{module}`.*"


def scale_drill() -> str:
    """Return what was killed, what was lost, how long it took to recover."""
    held = _read("scale")
    if held is None:
        return _unmeasured("drill")
    encode, build = held["encode"], held["build"]
    encode_wrong = encode["rows_lost_or_doubled"] + encode["wrong_pieces"] + encode["wrong_codes"]
    build_wrong = build["wrong_ids"] + build["wrong_scores"]
    table = [["while", "what", "longest pause or time until all was back, s", "lost or wrong"]]
    for work, facts, wrong in (
        ("encoding", encode, encode_wrong),
        ("building", build, build_wrong),
    ):
        for name, pause in facts["pause_s"].items():
            table.append([work, name, digits(pause), str(wrong)])
    head = ["searching", "searches", "failed", "incomplete", "wrong", "p50, ms", "p99, ms"]
    searches = [[*head, "longest, ms", "back or taken up, s"]]
    for name, facts in held["serve"].items():
        names = ("searches", "failed", "incomplete", "wrong", "p50_ms", "p99_ms", "longest_ms")
        after = facts.get("replicas_back_s", facts.get("taken_up_s", "–"))
        cells = [name, *(digits(facts[n]) for n in names), str(after)]
        searches.append(cells)
    text = (
        f"{held['codes']:,} codes in {build['shards']} shards, three nodes in one machine of "
        f"{held['machine']['cores']} cores; encoded in {digits(encode['seconds'])} s, built in "
        f"{digits(build['seconds'])} s, the kills included."
    )
    return "\n\n".join([text, table_of(table, left=(0, 1)), table_of(searches, left=(0,))])


def scale_model() -> str:
    """Prediction beside measurement."""
    held = _read("scale-model")
    if held is None:
        return _unmeasured("check")
    charts = [_chart(held["table"], m) for m in (1, held["batch"])]
    table = [["shards", "queries a request", "ms", "measured", "predicted", "off", "of it Ray"]]
    for row in held["table"]:
        what = "of a request" if row["what"] == "latency" else "between answers, 4 callers"
        cells = [str(row["shards"]), str(row["batch"]), what]
        cells += [digits(row[name]) for name in ("measured_ms", "predicted_ms")]
        table.append([*cells, f"{row['off']:+.0%}", digits(row["ray_ms"])])
    both = "\n".join(charts)
    return f'<div class="charts">\n{both}\n</div>\n\n{table_of(table, left=(2,))}'


def _chart(table: list[dict[str, Any]], m: int) -> str:
    rows = [row for row in table if (row["what"], row["batch"]) == ("period", m)]
    names = {"measured": "measured", "predicted": "predicted", "ray": "Ray alone"}
    shards = [row["shards"] for row in rows]
    series = [
        Series(text, color, shards, [row[f"{name}_ms"] for row in rows])
        for (name, text), color in zip(names.items(), COLORS, strict=False)
    ]
    title = f"Milliseconds between answers, requests of {m}"
    chart = line_chart(series, title=title, x="shards")
    return f"<figure>\n<figcaption><strong>{title}</strong></figcaption>\n{chart}\n</figure>"


def scale_sizes() -> str:
    """Return what a billion and a hundred billion codes need."""
    held = _read("scale-model")
    if held is None:
        return _unmeasured("check")
    units = {
        "index_bytes": ("index, GB", 1e-9),
        "groups_by_memory": ("machines that hold it once", 1),
        "groups_by_time": ("machines that search it in 50 ms", 1),
        "machines": ("machines, with a replica", 1),
        "search_s": ("search, ms", 1e3),
        "core_s_per_query": ("search, core-seconds a query", 1),
        "ray_core_s_per_query": ("Ray, core-seconds a query", 1),
        "queries_per_s": ("queries a second, all cores", 1),
        "bytes_per_query": ("network a query, KB", 1e-3),
        "build_core_hours": ("build, core-hours", 1),
        "load_s_per_machine": ("a new machine loads, s", 1),
    }
    sizes = held["sizes"]
    table = [["", *(f"{size['codes']:.0e} {size['kind']}" for size in sizes)]]
    for name, (title, unit) in units.items():
        table.append([title, *(digits(size[name] * unit) for size in sizes)])
    return table_of(table, left=(0,))


def scale_waves() -> str:
    """Return what a bar from other shards saves."""
    held = _read("scale-waves")
    if held is None:
        return _unmeasured("waves")
    ways = ("alone", "two waves", "one by one", "answer known")
    table = [["codes", "clustered", *(f"{way}, ms" for way in ways)]]
    for row in held["rows"]:
        cells = [f"{row['n']:,} {row['codes']}", "yes" if row["clustered"] else "no"]
        table.append(cells + [digits(row[way]["work_ms"]) for way in ways])
    return table_of(table, left=(0,))
