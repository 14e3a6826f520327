"""Dead latents over training, by loss (Figure 6: the full loss leaves the fewest)."""

from __future__ import annotations

import output
import sets

from csrtrain import StepReport, TrainConfig, train

LOSSES = {
    "L(k) and L(4k)": {"beta": 0.0, "contrast": None},
    "with auxiliary loss": {"contrast": None},
    "with contrast": {"beta": 0.0},
    "full loss": {},
}


def main() -> None:
    """Trains one model for each loss and notes the share of dead latents as it goes."""
    asked = output.options(__doc__, "wordnet45")
    data = sets.load(asked.data / f"{asked.set}.npz")
    steps = 150 if asked.quick else 600
    rows = []
    final = {}
    for name, changes in LOSSES.items():
        reports: list[StepReport] = []
        config = TrainConfig(k=32, steps=steps, **changes)  # type: ignore[arg-type]
        train(data.train, config=config, progress=False, on_step=reports.append)
        for report in reports[:: max(1, steps // 50)] + reports[-1:]:
            dead = round(100 * report.losses["dead"], 2)
            rows.append({"loss": name, "step": report.step, "dead_percent": dead})
        final[name] = rows[-1]["dead_percent"]
    listed = ", ".join(f"{name} {dead}%" for name, dead in final.items())
    others = [dead for name, dead in final.items() if name != "full loss"]
    held = final["full loss"] < min(others)
    output.write(
        asked.output,
        f"dead_latents_{asked.set}",
        rows,
        f"Dead latents after {steps} steps on {asked.set}: {listed}. The paper's claim, that the "
        f"full loss leaves the fewest, {'held' if held else 'did not hold'} here.",
        x="step",
        y="dead_percent",
        by="loss",
    )


if __name__ == "__main__":
    main()
