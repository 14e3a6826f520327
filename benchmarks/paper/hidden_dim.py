"""Accuracy against the number of latents h at fixed k (Figure 5: best at h = 4d, then falling)."""

from __future__ import annotations

import output
import recipes
import sets

from csrtrain import train
from csrtrain.evaluation.comparison import compare_codes

K = 16


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """Trains one model for each h."""
    d = data.train.shape[1]
    rows = []
    for name, recipe in recipes.BOTH.items():
        for ratio in (1, 4, 16) if quick else (0.5, 1, 2, 4, 8, 16, 32):
            config = recipe(K, hidden_dim=int(ratio * d), steps=100 if quick else 400)
            model = train(data.train, config=config, progress=False)
            result = next(compare_codes(data.task, model, [K], asymmetric=False))
            score = round(100 * result.main, 2)
            row = {"recipe": name, "ratio": ratio, "hidden_dim": config.hidden_dim, "score": score}
            rows.append(row)
    best = [
        max((row for row in rows if row["recipe"] == name), key=lambda row: row["score"])
        for name in recipes.BOTH
    ]
    found = "; ".join(
        f"{row['recipe']}: best at h = {row['ratio']:g}d with {row['score']}" for row in best
    )
    return rows, (
        f"The paper finds a reverse U with its best at h = 4d. On {data.name} at k = {K}, {found}. "
        f"For the paper's loss the claim {output.held(best[0]['ratio'] == 4)}."
    )


if __name__ == "__main__":
    output.run(measure, output.Chart(x="hidden_dim", y="score", by="recipe", log_x=True))
