"""Dead latents over training, by loss (Figure 6: the full loss leaves the fewest)."""

from __future__ import annotations

import output
import recipes
import sets

from csrtrain import StepReport, train

LOSSES = {
    "L(k) and L(4k)": {"beta": 0.0, "contrast": None},
    "with auxiliary loss": {"contrast": None},
    "with contrast": {"beta": 0.0},
    "full loss": {},
}


def measure(data: sets.Set, quick: bool) -> tuple[output.Rows, str]:
    """Trains one model for each loss and notes the share of dead latents as it goes."""
    steps = 150 if quick else 600
    rows = []
    final = {}
    for name, changes in LOSSES.items():
        reports: list[StepReport] = []
        config = recipes.paper_loss(32, steps=steps, **changes)
        train(data.train, config=config, progress=False, on_step=reports.append)
        for report in reports[:: max(1, steps // 50)] + reports[-1:]:
            dead = round(100 * report.losses["dead"], 2)
            rows.append({"loss": name, "step": report.step, "dead_percent": dead})
        final[name] = rows[-1]["dead_percent"]
    listed = ", ".join(f"{name} {dead}%" for name, dead in final.items())
    others = [dead for name, dead in final.items() if name != "full loss"]
    return rows, (
        f"Dead latents after {steps} steps on {data.name}: {listed}. The paper's claim, that the "
        f"full loss leaves the fewest, {output.held(final['full loss'] < min(others))} here."
    )


if __name__ == "__main__":
    output.run(measure, output.Chart(x="step", y="dead_percent", by="loss"))
