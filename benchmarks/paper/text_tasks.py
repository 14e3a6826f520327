"""Classification, clustering and retrieval at equal active dimensions (Table 1)."""

from __future__ import annotations

import dataclasses

import output
import recipes
import sets

from csrtrain import train
from csrtrain.evaluation.baselines import largest_entries
from csrtrain.evaluation.comparison import Task, compare_codes
from csrtrain.evaluation.metrics import Vectors, search
from csrtrain.pca import PCA
from csrtrain.training.matryoshka import train_matryoshka

TASKS = {"linear": "classification", "v-measure": "clustering", "ndcg@10": "retrieval"}


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """Scores every method on the tasks that the set has, all trained without labels."""
    ks = (16,) if quick else (8, 32)
    steps = 100 if quick else 400
    task = dataclasses.replace(data.task, probes=True)
    rows = []

    def note(method: str, active: int, scores: dict[str, float]) -> None:
        for measure, name in TASKS.items():
            if measure in scores:
                row = {"task": name, "method": method, "active": active}
                rows.append({**row, "score": round(100 * scores[measure], 2)})

    d = data.train.shape[1]
    note("dense", d, _scores(task, task.database, task.queries))
    fitted = PCA(data.train if data.alike is None else data.alike)
    adapter = train_matryoshka(data.train, ks, steps=steps)
    for k in ks:
        for method, cut in (
            ("PCA", lambda x, k=k: fitted.project(x, k)),
            ("top-k, untrained", lambda x, k=k: largest_entries(x, k)),
            ("Matryoshka-Adaptor", lambda x, k=k: adapter(x)[:, :k]),
        ):
            note(method, k, _scores(task, cut(task.database), cut(task.queries)))
    for name, recipe in recipes.BOTH.items():
        model = train(data.train, config=recipe(max(ks), steps=steps), progress=False)
        for result in compare_codes(task, model, ks, name, asymmetric=False):
            note(result.method, result.active, result.scores)
    return rows, f"On {data.name}: " + " ".join(
        _verdict(rows, name, ks) for name in TASKS.values() if _of(rows, name)
    )


def _scores(task: Task, database: Vectors, queries: Vectors) -> dict[str, float]:
    return {
        **task.scores(search(database, queries, task.depth)),
        **task.probe(database, queries),
    }


def _of(rows: output.Rows, task: str, k: int | None = None) -> list:
    return [row for row in rows if row["task"] == task and k in (None, row["active"])]


def _verdict(rows: output.Rows, task: str, ks: tuple[int, ...]) -> str:
    """The paper's claim on one task: codes are ahead at equal active dimensions."""
    parts, ahead = [], True
    for k in ks:
        codes, others = (
            max(
                (row for row in _of(rows, task, k) if row["method"].startswith("CSR") == ours),
                key=lambda row: row["score"],
            )
            for ours in (True, False)
        )
        ahead &= codes["score"] > others["score"]
        parts.append(
            f"k = {k}: {codes['score']} ({codes['method']}) against {others['score']} "
            f"({others['method']})"
        )
    (dense,) = (row["score"] for row in _of(rows, task) if row["method"] == "dense")
    listed = "; ".join(parts)
    return f"{task}, {listed}; dense {dense}: the claim {output.held(ahead)}."


if __name__ == "__main__":
    output.run(
        measure,
        output.Chart(x="active", y="score", by="method", panel="task", log_x=True),
        ("wordnet45", "banking77", "medquad"),
    )
