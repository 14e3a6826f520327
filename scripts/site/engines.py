"""Tables of search engines beside the index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from results import digits, rows, table_of


@dataclass(frozen=True)
class Engine:
    """One engine on one set of codes: queries a second, and what else was noted."""

    name: str
    rate: float
    figures: dict[str, str]

    @property
    def recall(self) -> float:
        """Of the ten best, 0 if not known."""
        return float(self.figures.get("recall", 0))


def engines(op: str, case: str, threads: str) -> list[Engine]:
    """Everyone who took part, the fastest first; ours are those without a peer's name."""
    these = [r for r in rows() if (r["op"], r["case"], r["threads"]) == (op, case, threads)]
    if not these:
        return []
    entries = [("csrkern", these[0]["ours_ms"], these[0]["ours_figures"])]
    entries += [(r["peer"], r["peer_ms"], r["peer_figures"]) for r in these if r["peer_ms"]]
    found = []
    for name, ms, figures in entries:
        known = dict(part.split("=", 1) for part in figures.split("; ") if "=" in part)
        found.append(Engine(name, float(these[0]["items"]) / float(ms) * 1e3, known))
    return sorted(found, key=lambda engine: -engine.rate)


def _cases(op: str, threads: str) -> list[str]:
    cases = {r["case"] for r in rows() if (r["op"], r["threads"]) == (op, threads)}
    return sorted(cases, key=lambda case: [int(n) for n in re.findall(r"\d+", case)])


def search() -> str:
    """Exact search on every kind of codes, one thread, beside the best of the others."""
    table = [
        ["codes", "k", "h", "queries/s", "bytes a code", "SINDI, exact", "×", "fastest other", "×"]
    ]
    for case in _cases("index search", "1"):
        n, h, k, kind = _of_case(case)
        all_of_them = engines("index search", case, "1")
        ours = next(engine for engine in all_of_them if engine.name == "csrkern")
        others = [e for e in all_of_them if not e.name.startswith("csrkern")]
        sindi = next((e for e in others if e.name == "SINDI float32"), None)
        best = next((e for e in others if e.recall >= 0.99), None)
        cells = [f"{n:,} {kind}", str(k), f"{h:,}", f"{ours.rate:,.0f}"]
        cells += [digits(ours.figures["bytes_per_code"])]
        cells += [f"{sindi.rate:,.0f}", digits(ours.rate / sindi.rate)] if sindi else ["–", "–"]
        if best:
            cells += [f"{best.name}, {best.rate:,.0f}, recall {best.figures['recall']}"]
            cells += [digits(ours.rate / best.rate)]
        table.append(cells + ["–"] * (len(table[0]) - len(cells)))
    return table_of(table, left=(0, 7))


def all_engines() -> str:
    """Everyone, on the codes of k = 32, one thread and two."""
    parts = []
    for threads in ("1", "2"):
        for case in _cases("index search", threads):
            n, h, k, kind = _of_case(case)
            if k != 32:
                continue
            title = f"**{n:,} {kind} codes**, h = {h:,}, {_threads(threads)}:"
            parts.append(f"{title}\n\n{_engine_table(engines('index search', case, threads))}")
    return "\n\n".join(parts)


def at_recall() -> str:
    """Return the fastest settings that find 99% and 95%, one thread."""
    parts = []
    for recall in ("0.99", "0.95"):
        op = f"index search, recall {recall}"
        for case in _cases(op, "1"):
            n, h, k, kind = _of_case(case)
            title = f"**At least {recall}: {n:,} {kind} codes**, k = {k}, h = {h:,}:"
            parts.append(f"{title}\n\n{_engine_table(engines(op, case, '1'))}")
    return "\n\n".join(parts)


def _engine_table(found: Sequence[Engine]) -> str:
    ours = next(engine for engine in found if engine.name == "csrkern")
    table = [["engine", "queries/s", "of ours", "recall@10", "bytes a code", "build, s"]]
    for engine in found:
        sizes = [engine.figures.get(name) for name in ("bytes_per_code", "build_s")]
        table.append(
            [
                f"**{engine.name}**" if engine is ours else engine.name,
                f"{engine.rate:,.0f}",
                f"{engine.rate / ours.rate:.2f}",
                engine.figures.get("recall", "–"),
                *(digits(size) if size else "–" for size in sizes),
            ]
        )
    return table_of(table, left=(0,))


def _of_case(case: str) -> tuple[int, int, int, str]:
    """Return n, h, k and kind, from "N=100000 h=8192 k=32 skewed, 500 queries"."""
    n, h, k, kind = re.fullmatch(r"N=(\d+) h=(\d+) k=(\d+) (\w+), \d+ queries", case).groups()
    return int(n), int(h), int(k), {"given": "sentences"}.get(kind, kind)


def _threads(threads: str) -> str:
    return "one thread" if threads == "1" else f"{threads} threads"
