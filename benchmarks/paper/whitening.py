"""Choose whitening by held-out rows, and compare the choice with the scores of the task.

Models are trained without a tenth of the rows (at most 1,000), and judged by the share of those
rows' 10 dense neighbors that codes find, as `csrtrain.tune` does without labels.
"""

from __future__ import annotations

import output
import recipes
import sets
import torch
from quality import STEPS

from csrtrain import train
from csrtrain.evaluation.metrics import search

KS = (4, 8, 16, 32)
WHITENINGS = (-0.6, -0.3, 0.0, 0.3)
DEPTH, HELD = 10, 1000
MARGIN = 0.3  # points that a choice may cost


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """The share of dense neighbors kept and the task's score, codes with codes."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    n_held = min(HELD, len(order) // 10)
    held, kept = data.train[order[:n_held]], data.train[order[n_held:]]
    neighbors = search(kept, held, DEPTH)
    rows = []
    for whitening in WHITENINGS:
        config = recipes.recommended(32, whitening=whitening, steps=100 if quick else STEPS)
        model = train(kept, config=config, progress=False)
        for k in KS:
            near = model.encode(kept.numpy(), k), model.encode(held.numpy(), k)
            found = search(*near, DEPTH)
            asked = [
                model.encode(side.numpy(), k) for side in (data.task.database, data.task.queries)
            ]
            ids = search(*asked, data.task.depth)
            rows.append(
                {
                    "whitening": whitening,
                    "active": k,
                    "kept": round(100 * (found[:, :, None] == neighbors[:, None]).any(2).mean(), 2),
                    "score": round(100 * next(iter(data.task.scores(ids).values())), 2),
                }
            )
    return rows, finding(data.name, rows)


def finding(name: str, rows: output.Rows) -> str:
    """Return whether the choice by held-out rows cost anything."""
    best = max(WHITENINGS, key=lambda w: sum(r["kept"] for r in rows if r["whitening"] == w))
    score = {(row["whitening"], row["active"]): row["score"] for row in rows}
    cost = max(score[0.0, k] - score[best, k] for k in KS)
    return (
        f"The claim is that the whitening which keeps most dense neighbors of held-out rows, over "
        f"all k, is at no k more than {MARGIN} points behind none. On {name} it keeps most at "
        f"{best:g}, and the claim {output.held(cost <= MARGIN)}."
    )


if __name__ == "__main__":
    output.run(measure, output.Chart(x="active", y="kept", by="whitening", log_x=True))
