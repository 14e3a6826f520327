"""Score against the bytes of the whole system, and queries a second, of ours and of every peer.

python compare.py --data FOLDER --seeds 0

Bytes are all that is stored to search and grows with the documents: lists, ids, codes, what
re-scoring reads, bounds, directory, links of a graph, norms. What all documents share is listed
beside them. Systems are in `our_systems.py` and `peer_systems.py`; quantizers without a search of
their own have their scores from quality.csv in the same folder, in the bytes of their codes alone.

compare.csv holds the settings that no other setting of the same method beats in bytes, score and
queries a second at once. A set that is complete is not measured again; trainings are kept in
`--kept`, so that a run may be stopped and started at will.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import output
import sets
import summary
import systems
import torch
from cases import Case, Search, unit
from our_systems import OURS, TAUGHT
from peer_systems import BEHIND

BUDGETS = (16, 32, 64, 128)
NEAR = 0.99  # of the dense score
RECALLS = (50, 60, 70, 80)
ALLOWED = 0.3
FASTER = 2.0
TIMED_SEED = "0"
ROUNDS = 3
BATCH, SINGLE = 1000, 20  # queries that are timed
SLACK = 1.2  # by how much a first time may mislead
SCORES_ONLY = (*summary.EQUAL_BYTES, "CSR, asymmetric, packed", "CSR, asymmetric, OMP, packed")
NOT_MEASURED = "not measured"


def measure(case: Case, family: str, note: Any) -> list[dict[str, Any]]:
    """The rows of a family: scores of all settings, times of those that no other beats."""
    task, near = case.data.task, case.data.near
    queries = unit(task.queries).numpy()
    rows: list[dict[str, Any]] = []
    searches = []
    for system in systems.FAMILIES[family][0](case):
        for setting, search in system.searches.items():
            spent, ids = _timed(search, queries)
            rows.append(
                {
                    "set": case.data.name,
                    "family": family,
                    "seed": case.seed,
                    "measure": "1-nn" if task.depth == 1 else "ndcg@10",
                    "method": system.method,
                    "setting": f"{system.setting} {setting}".strip(),
                    "bytes": round(system.n_bytes, 2),
                    "shared": system.shared,
                    "score": round(100 * next(iter(task.scores(ids).values())), 2),
                    "per_s": round(len(queries) / spent),
                    "per_s_single": "",
                    "recall": "" if near is None else round(100 * near.recall(ids, case.depth), 2),
                }
            )
            searches.append(search)
        note(rows)
    kept = [i for i, row in enumerate(rows) if not any(_beats(r, row, SLACK) for r in rows)]
    step = max(1, len(queries) // BATCH)
    batch = queries[::step][:BATCH]
    times: dict[int, tuple[list[float], list[float]]] = {i: ([], []) for i in kept}
    for _ in range(ROUNDS):
        for i, (together, alone) in times.items():
            together.append(len(batch) / _timed(searches[i], batch)[0])
            spent = sum(_timed(searches[i], query[None])[0] for query in batch[:SINGLE])
            alone.append(len(batch[:SINGLE]) / spent)
    for i, (together, alone) in times.items():
        rows[i]["per_s"] = round(statistics.median(together))
        rows[i]["per_s_single"] = round(statistics.median(alone))
    timed = [rows[i] for i in kept]
    return [row for row in timed if not any(_beats(other, row) for other in timed)]


def _timed(search: Search, queries: Any) -> tuple[float, Any]:
    """(seconds of the processor in all threads, ids): other processes do not count."""
    began = time.process_time()
    ids = search(queries)
    return max(time.process_time() - began, 1e-9), ids


def _beats(one: Mapping[str, Any], other: Mapping[str, Any], slack: float = 1.0) -> bool:
    """Whether a setting of the same method is as good in everything, and better in something."""
    if one["method"] != other["method"]:
        return False
    ours = -one["bytes"], one["score"], one.get("recall") or 0, one["per_s"] / slack
    theirs = -other["bytes"], other["score"], other.get("recall") or 0, other["per_s"]
    return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


class Row(NamedTuple):
    """A setting: medians over the seeds, times of one seed where it was searched with that."""

    method: str
    setting: str
    n_bytes: float
    shared: int
    score: float
    per_s: float | None
    per_s_single: float | None
    recall: float | None = None


WHO: dict[str, Callable[[str], bool]] = {
    "ours": lambda method: method in OURS,
    "ours, without labels or pairs": lambda method: method in OURS and method != TAUGHT,
    "peers": lambda method: method not in OURS and not method.endswith(BEHIND),
    "peers, and peers behind our projection": lambda method: method not in OURS,
}


class Table:
    """All rows by set, and the score of dense vectors."""

    def __init__(
        self, rows: Sequence[Mapping[str, str]], quality: Sequence[Mapping[str, str]]
    ) -> None:
        self.measure = {row["set"]: row["measure"] for row in rows}
        self.families = {
            name: {row["family"] for row in rows if row["set"] == name} for name in self.measure
        }
        found: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
        for row in rows:
            found.setdefault((row["set"], row["method"], row["setting"]), []).append(row)
        self.rows: dict[str, list[Row]] = {name: [] for name in self.measure}
        for (name, method, setting), same in found.items():
            n_bytes, shared, score = (
                statistics.median(float(row[column]) for row in same)
                for column in ("bytes", "shared", "score")
            )
            # Later seeds were timed on other days, and perhaps on another machine.
            timed = next((row for row in same if row["seed"] == TIMED_SEED), None)
            times = (
                (None, None)
                if timed is None
                else (
                    float(timed["per_s"]),
                    float(timed["per_s_single"]),
                )
            )
            found_near = [float(row["recall"]) for row in same if row.get("recall")]
            recall = statistics.median(found_near) if found_near else None
            self.rows[name].append(
                Row(method, setting, n_bytes, int(shared), score, *times, recall=recall)
            )
        scores = summary.Scores(quality)
        for (name, method, active), score in scores.median.items():
            if name in self.rows and method in SCORES_ONLY:
                n_bytes = scores.bytes[name, method, active]
                self.rows[name].append(Row(method, "scores only", n_bytes, 0, score, None, None))
        self.dense = {
            name: max(row.score for row in own if row.method == "FAISS dense, float32")
            for name, own in self.rows.items()
            if any(row.method == "FAISS dense, float32" for row in own)
        }

    @property
    def sets(self) -> list[str]:
        """All of them, those judged by labels first."""
        return sorted(self.measure, key=lambda name: (self.measure[name] != "1-nn", name))

    def best(self, name: str, who: str, budget: float) -> Row | None:
        """The best score in at most so many bytes."""
        return max(self._within(name, who, budget), key=lambda row: row.score, default=None)

    def fastest(self, name: str, who: str, budget: float) -> Row | None:
        """The most queries a second at `NEAR` of the dense score in at most so many bytes."""
        near = [
            row
            for row in self._within(name, who, budget)
            if row.per_s is not None and row.score >= NEAR * self.dense.get(name, math.inf)
        ]
        return max(near, key=lambda row: row.per_s or 0.0, default=None)

    def _within(self, name: str, who: str, budget: float) -> list[Row]:
        return [
            row
            for row in self.rows[name]
            if WHO[who](row.method)
            and row.n_bytes <= budget
            and not row.method.startswith("CSR, asymmetric")
        ]


def score_verdicts(table: Table, mine: str, theirs: str) -> Iterator[str]:
    """Whether our best is ahead of every peer's, at every number of bytes."""
    lines = ["| set | bytes | ours | best peer | ahead by |", "|---|--:|---|---|--:|"]
    margins = []
    for name in table.sets:
        for budget in BUDGETS:
            our, other = (table.best(name, who, budget) for who in (mine, theirs))
            if our is None or other is None:
                margin = NOT_MEASURED
            else:
                margins.append(round(our.score - other.score, 2))
                margin = f"{margins[-1]:+.2f}"
            lines.append(f"| {name} | {budget} | {_said(our)} | {_said(other)} | {margin} |")
    ahead, far = sum(m > 0 for m in margins), sum(m < -ALLOWED for m in margins)
    yield (
        f"The best of {mine} in at most so many bytes is ahead of the best of {theirs} on {ahead} "
        f"of {len(margins)} points, and more than {ALLOWED} behind on {far}."
    )
    yield "\n".join(lines)


def speed_verdicts(table: Table, mine: str, theirs: str) -> Iterator[str]:
    """Our queries a second beside the best peer's, at `NEAR` of the dense score."""
    lines = [
        "| set | bytes | ours, queries a second | best peer | times as fast |",
        "|---|--:|---|---|--:|",
    ]
    ratios = []
    for name in table.sets:
        for budget in (*BUDGETS, math.inf):
            our, other = (table.fastest(name, who, budget) for who in (mine, theirs))
            limit = "any" if budget == math.inf else f"{budget:g}"
            ratio = ""
            if our is not None and other is not None:
                ratios.append((our.per_s or 0.0) / (other.per_s or 1.0))
                ratio = f"{ratios[-1]:.2f}"
            elif our is None and other is None:
                ratio = "none is near"
            lines.append(f"| {name} | {limit} | {_rate(our)} | {_rate(other)} | {ratio} |")
    fast = sum(ratio >= FASTER for ratio in ratios)
    yield (
        f"At {NEAR:.0%} of the dense score, the fastest of {mine} answers at least {FASTER:g} "
        f"times as many queries a second as the fastest of {theirs} with no more bytes on {fast} "
        f"of {len(ratios)} points where both are as good."
    )
    yield "\n".join(lines)


def tables(table: Table) -> Iterator[str]:
    """For each set the best score of each method at every number of bytes, with its speed."""
    methods = dict.fromkeys(
        [*OURS, *(row.method for own in table.rows.values() for row in own), *SCORES_ONLY]
    )
    for name in table.sets:
        dense = table.dense.get(name)
        head = f"{name}, {table.measure[name]}" + (f", dense {dense:.2f}" if dense else "")
        lines = [
            f"| {head}; at most bytes | {' | '.join(map(str, BUDGETS))} | at 99%: bytes | "
            "queries a second, in one batch / one at a time |",
            "|---" * (len(BUDGETS) + 3) + "|",
        ]
        for method in methods:
            own = [row for row in table.rows[name] if row.method == method]
            cells = []
            for budget in BUDGETS:
                scores = [row.score for row in own if row.n_bytes <= budget]
                cells.append(f"{max(scores):.2f}" if scores else "–" if own else NOT_MEASURED)
            near = [row for row in own if dense and row.score >= NEAR * dense]
            least = min(near, key=lambda row: row.n_bytes, default=None)
            quick = max((row for row in near if row.per_s), key=_speed, default=None)
            cells.append("–" if least is None else f"{least.n_bytes:.1f}")
            cells.append(
                "–"
                if quick is None
                else f"{quick.per_s:,.0f} / {quick.per_s_single:,.0f} in {quick.n_bytes:.1f} bytes"
            )
            lines.append(f"| {method} | {' | '.join(cells)} |")
        yield "\n".join(lines)
        if any(row.recall for row in table.rows[name]):
            yield _recalls(name, table.rows[name])


def _recalls(name: str, rows: Sequence[Row]) -> str:
    """The best recall of the nearest rows, and the most queries a second at some of it."""
    heads = [*(f"{budget} bytes" for budget in BUDGETS), *(f"at {r:g}%" for r in RECALLS)]
    lines = [
        f"| {name}, recall of the ten nearest in %, at most so many bytes; queries a second at a "
        f"recall | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for method in dict.fromkeys(row.method for row in rows if row.recall):
        own = [row for row in rows if row.method == method]
        cells = []
        for budget in BUDGETS:
            best = max((row.recall or 0.0 for row in own if row.n_bytes <= budget), default=0.0)
            cells.append(f"{best:.1f}" if best else "–")
        for least in RECALLS:
            near = [row for row in own if row.per_s and (row.recall or 0.0) >= least]
            quick = max(near, key=_speed, default=None)
            cells.append("–" if quick is None else f"{quick.per_s:,.0f} in {quick.n_bytes:.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(row: Row) -> float:
    return row.per_s or 0.0


def _said(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    return f"{row.score:.2f} ({row.method}, {row.setting}, {row.n_bytes:.1f} bytes)"


def _rate(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row.per_s:,.0f} ({row.method}, {row.setting}, {row.n_bytes:.1f} bytes)"


def write(folder: Path) -> None:
    """compare.md and the charts, from compare.csv and quality.csv."""
    rows = [row for row in output.read_rows(folder / "compare.csv") if row["per_s_single"]]
    if not rows:
        return
    table = Table(rows, output.read_rows(folder / "quality.csv"))
    parts = []
    for title, mine, theirs in VERDICTS:
        parts += [f"## {title}: score", *score_verdicts(table, mine, theirs)]
        parts += [f"## {title}: speed", *speed_verdicts(table, mine, theirs)]
    left_out = [f"- {said}" for said in _absent(table)]
    if left_out:
        parts += ["## Not measured", "\n".join(left_out)]
    (folder / "compare.md").write_text(
        "\n\n".join([*parts, "## Best of each method", *tables(table)]) + "\n"
    )
    print("\n".join(part for part in parts if not part.startswith("|")))
    points = [
        {"set": name, "system": row.method, "bytes": row.n_bytes, "score": row.score}
        | {"per_s": row.per_s}
        for name in table.sets
        for row in table.rows[name]
        if row.method in DRAWN
    ]
    drawn = [
        point
        for point in points
        if point["bytes"] <= 2 * BUDGETS[-1]
        and not any(
            (p["set"], p["system"]) == (point["set"], point["system"])
            and p["bytes"] <= point["bytes"]
            and p["score"] > point["score"]
            for p in points
        )
    ]
    if drawn:
        chart = output.Chart(x="bytes", y="score", by="system", panel="set", log_x=True)
        output.draw(folder / "compare_bytes.png", drawn, chart)
    fast = [
        point
        for point in points
        if point["per_s"]
        and not any(
            (p["set"], p["system"]) == (point["set"], point["system"])
            and (p["per_s"] or 0) >= point["per_s"]
            and p["score"] > point["score"]
            for p in points
        )
    ]
    if fast:
        chart = output.Chart(x="score", y="per_s", by="system", panel="set", log_y=True)
        output.draw(folder / "compare_speed.png", fast, chart)


VERDICTS = (
    ("Ours against every peer as it comes", "ours", "peers"),
    ("Without labels or pairs", "ours, without labels or pairs", "peers"),
    ("Peers behind our projection", "ours", "peers, and peers behind our projection"),
)
DRAWN = (
    *OURS,
    *("FAISS PQ", "FAISS PQ fast scan", "FAISS OPQ", "FAISS RQ", "FAISS PRQ", "RQ", "LSQ", "OPQ"),
    *(
        "FAISS RaBitQ fast scan",
        "RaBitQ-2",
        "RaBitQ-4",
        "TurboQuant-2",
        "FAISS PCA + SQ8",
        "FAISS IVF-PQ fast scan",
    ),
    *("FAISS IVF-RQ", "FAISS IVF-RaBitQ fast scan", "FAISS HNSW + SQ8", "usearch i8", "ScaNN"),
)


def _absent(table: Table) -> Iterator[str]:
    """Name what lacks rows for some sets: families of systems, and quantizers."""
    for family in systems.FAMILIES:
        lacking = [name for name in table.sets if family not in table.families[name]]
        if lacking:
            about = (systems.FAMILIES[family][0].__doc__ or "").splitlines()[0]
            yield f"{about.rstrip('.')} (`--families {family}`): {', '.join(lacking)}"
    for method in SCORES_ONLY:
        measured = {
            name for name, own in table.rows.items() if any(r.method == method for r in own)
        }
        lacking = [name for name in table.sets if name not in measured]
        if lacking:
            yield f"{method}: {', '.join(lacking)}"


def main() -> None:
    """Adds the sets that compare.csv lacks, then writes what follows from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    output.folder_options(parser, ())
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--families", default=",".join(systems.FAMILIES))
    parser.add_argument("--kept", type=Path, help="folder of trainings (default: OUTPUT/kept)")
    options = parser.parse_args()
    one_thread()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.csv"
    names = options.sets.split(",") if options.sets else sets.available(options.data)
    if options.quick and not options.sets:
        names = [sets.PACKAGED]
    absent = systems.missing()
    print(*absent.values(), sep="\n")
    for seed, family, name in itertools.product(
        map(int, options.seeds.split(",")), options.families.split(","), names
    ):
        rows = [row for row in output.read_rows(path) if row["per_s_single"]]
        key = name, family, str(seed)
        if family in absent or key in {(r["set"], r["family"], r["seed"]) for r in rows}:
            continue
        data = sets.load(options.data / f"{name}.npz")
        if data is None:
            continue
        began = time.perf_counter()
        case = Case(data, seed, options.kept or folder / "kept", options.quick)
        note = partial(_noted, path, rows)
        note(measure(case, family, note))
        print(f"{name} {family} {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    write(folder)


def _noted(path: Path, rows: Sequence[Mapping[str, Any]], more: Sequence[Any]) -> None:
    output.write_rows(path, [*rows, *more])


def one_thread() -> None:
    """Pin every library to one thread, and the process to one processor where that can be."""
    torch.set_num_threads(1)
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(1)


if __name__ == "__main__":
    main()
