"""Accuracy against the number of latents h at fixed k (Figure 5: best at h = 4d, then falling)."""

from __future__ import annotations

import output
import sets

from csrtrain import TrainConfig, train
from csrtrain.comparison import compare_codes

K = 16


def main() -> None:
    """Trains one model for each h."""
    asked = output.options(__doc__, "wordnet45")
    data = sets.load(asked.data / f"{asked.set}.npz")
    d = data.train.shape[1]
    ratios = (1, 4, 16) if asked.quick else (0.5, 1, 2, 4, 8, 16, 32)
    rows = []
    for recipe, preset in (("as published", {}), ("recommended", {"recommended": True})):
        for ratio in ratios:
            common = {"k": K, "hidden_dim": int(ratio * d), "steps": 100 if asked.quick else 400}
            if preset:
                config = TrainConfig.preset("recommended", **common, prefixes=(4, 8))
            else:
                config = TrainConfig(**common)
            model = train(data.train, config=config, progress=False)
            result = next(compare_codes(data.task, model, [K], asymmetric=False))
            score = next(iter(result.scores.values()))
            rows.append(
                {"recipe": recipe, "ratio": ratio, "hidden_dim": common["hidden_dim"],
                 "score": round(100 * score, 2)}
            )  # fmt: skip
    best = {
        name: max((row for row in rows if row["recipe"] == name), key=lambda row: row["score"])
        for name in dict.fromkeys(row["recipe"] for row in rows)
    }
    found = "; ".join(
        f"{name}: best at h = {row['ratio']:g}d with {row['score']}" for name, row in best.items()
    )
    held = best["as published"]["ratio"] == 4
    output.write(
        asked.output,
        f"hidden_dim_{asked.set}",
        rows,
        f"The paper finds a reverse U with its best at h = 4d. On {asked.set} at k = {K}, {found}. "
        + ("The claim held." if held else "The best was elsewhere here."),
        x="hidden_dim",
        y="score",
        by="recipe",
        log_x=True,
    )


if __name__ == "__main__":
    main()
