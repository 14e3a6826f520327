"""Fine codes beside the lists: score against the bytes of the whole index.

The default recipe, uint8 values; a shortlist by codes of 32 latents, put in order by fine codes.
"""

from __future__ import annotations

import numpy as np
import output
import recipes
import sets
from quality import STEPS

from csrkern import InvertedIndex, Refine
from csrtrain import train, train_quantizer
from csrtrain.evaluation.metrics import search

KS = (2, 4, 8, 16)
FINE_BYTES = (8, 16)
SHORTLISTS = (100, 200, 500)
MOST_BYTES = 64


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """Scores of every number of latents and of fine bytes, at every length of the shortlist."""
    fitted = data.train if data.alike is None else data.alike
    database, queries = data.task.database.numpy(), data.task.queries.numpy()
    depth = data.task.depth
    model = train(
        data.train, config=recipes.recommended(32, steps=100 if quick else STEPS), progress=False
    )
    codes, asked = model.encode(database), model.encode(queries)

    def score(ids: np.ndarray) -> float:
        return round(100 * next(iter(data.task.scores(ids).values())), 2)

    dense = score(search(data.task.database, data.task.queries, depth))
    rows = []
    for size in FINE_BYTES[:1] if quick else FINE_BYTES:
        fine = train_quantizer(fitted, size, progress=False).encode(database)
        for k in KS:
            index = InvertedIndex.build(codes.truncate(k), dtype="uint8", fine=fine)
            alone = score(index.search(asked, depth)[1])
            split = index.stats()["bytes_of"]
            for shortlist in SHORTLISTS:
                _, ids = index.search(asked, depth, rerank=Refine(queries, shortlist))
                rows.append(
                    {
                        "line": f"{k} latents",
                        "shortlist": shortlist,
                        "fine_bytes": size,
                        "bytes": 3 * k + size,
                        "directory_bytes": round(split["directory"] / len(index), 1),
                        "score": score(ids),
                        "codes_alone": alone,
                    }
                )
    near = [row["bytes"] for row in rows if row["score"] >= 0.99 * dense]
    least = min(near, default=None)
    finding = (
        f"The claim is that lists and fine codes keep 99% of what dense vectors score, {dense:.1f} "
        f"in {2 * database.shape[1]:,} bytes, in at most {MOST_BYTES} bytes a document. On "
        f"{data.name} it {output.held(least is not None and least <= MOST_BYTES)}: "
        + (f"{least} bytes suffice." if least else "no setting here keeps as much.")
    )
    return rows, finding


if __name__ == "__main__":
    output.run(measure, output.Chart(x="bytes", y="score", by="line", panel="shortlist"))
