"""From a caption to the others of its image (Table 2, with captions on both sides).

The paper trains one adapter over CLIP's images and texts with their pairs; here one adapter
over captions, with pairs of captions of one image, and without.
"""

from __future__ import annotations

import output
import recipes
import sets
import torch

from csrtrain import train
from csrtrain.evaluation.comparison import compare_codes
from csrtrain.evaluation.metrics import search
from csrtrain.pca import PCA
from csrtrain.training.matryoshka import train_matryoshka

MEASURES = ("hit@1", "hit@5", "hit@10")


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """Recall@1, 5 and 10 of every method at equal active dimensions."""
    d = data.train.shape[1]
    ks = tuple(k for k in ((16, 64) if quick else recipes.KS) if k <= d)
    steps = 100 if quick else 400
    task = data.task
    rows = []

    def note(method: str, active: int, scores: dict[str, float]) -> None:
        for name in MEASURES:
            row = {"measure": name.replace("hit", "Recall"), "method": method, "active": active}
            rows.append({**row, "score": round(100 * scores[name], 2)})

    def dense(method: str, *sides: torch.Tensor) -> None:
        note(method, sides[0].shape[1], task.scores(search(*sides, task.depth)))

    dense("dense", task.database, task.queries)
    pca, adapter = PCA(data.train), train_matryoshka(data.train, ks, steps=steps)
    for k in ks:
        dense("PCA", pca.project(task.database, k), pca.project(task.queries, k))
        dense("Matryoshka-Adaptor", adapter(task.database)[:, :k], adapter(task.queries)[:, :k])
    config = recipes.recommended(max(ks), steps=steps)
    models = {"CSR": train(data.train, config=config, progress=False)}
    if data.asked is not None:
        config = recipes.recommended(max(ks), steps=steps, contrast="clip")
        models["CSR with pairs"] = train(
            data.asked, config=config, partners=data.partners, pairs=data.pairs, progress=False
        )
    for name, model in models.items():
        for result in compare_codes(task, model, ks, name, asymmetric=False):
            note(result.method, result.active, result.scores)
    first = {
        (row["method"], row["active"]): row["score"] for row in rows if row["measure"] == "Recall@1"
    }
    ahead = {
        name: all(
            max(first[name, k], first[f"{name}, roots", k]) > first["Matryoshka-Adaptor", k]
            for k in ks
        )
        for name in models
    }
    listed = "; ".join(
        f"k = {k}: "
        + ", ".join(f"{first[name, k]} {name}" for name in (*models, "Matryoshka-Adaptor", "PCA"))
        for k in ks
    )
    verdicts = " and ".join(f"{output.held(yes)} for {name}" for name, yes in ahead.items())
    return rows, (
        "The paper's claim is that codes are ahead of Matryoshka at equal active dimensions. "
        f"Recall@1 on {data.name}, {listed}; dense {first['dense', d]}. "
        f"The claim {verdicts}."
    )


if __name__ == "__main__":
    output.run(
        measure,
        output.Chart(x="active", y="score", by="method", panel="measure", log_x=True),
        ("coco_captions",),
    )
