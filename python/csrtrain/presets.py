"""Settings by name: ours, and those that the paper and its code train with."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The released code; the paper's table has lr=4e-5 and its text gamma=1.
    "imagenet": {
        "lr": 4e-4,
        "epochs": 10,
        "batch_size": 4096,
        "k_aux": 512,
        "beta": 1 / 32,
        "gamma": 0.1,
    },
    "text": {
        "lr": 4e-5,
        "epochs": 10,
        "batch_size": 128,
        "k_aux": 1024,
        "beta": 0.1,
        "gamma": 1.0,
    },
    # The paper names batches of 64 to 1024, and k_aux of 512 to 1024.
    "clip": {
        "lr": 4e-4,
        "epochs": 5,
        "batch_size": 1024,
        "k_aux": 512,
        "beta": 1 / 32,
        "gamma": 1.0,
        "contrast": "clip",
    },
    # The follow-up's two changes, k-annealing and label contrast, on the paper's text settings.
    "csrv2": {
        "lr": 4e-5,
        "epochs": 10,
        "batch_size": 128,
        "k_aux": 1024,
        "beta": 0.1,
        "gamma": 1.0,
        "contrast": "label",
        "anneal": True,
    },
}

# Better than the published settings on text embeddings, without labels: ten times as many latents
# as dimensions, all sizes trained at once, a rate that falls to 0, and weak directions weighed by
# whether neighbours agree in them (docs/training.md).
RECOMMENDED: dict[str, Any] = {
    "hidden_dim": 4096,
    "k": 32,
    "prefixes": (4, 8, 16),
    "unit_scale": True,
    "whitening": "auto",
    "lr": 2e-3,
    "decay": 0.3,
    "batch_size": 512,
}

# As published: mean squared error as it is, tied weights, a constant learning rate.
_COMMON = {"relative_recon": False, "temperature": 0.2, "tied": True, "decay": 0.0}


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a preset.

    Raises:
        ValueError: if there is none of that name.
    """
    if name == "recommended":
        return RECOMMENDED
    if name not in PRESETS:
        names = ", ".join(("recommended", *PRESETS))
        raise ValueError(f"preset: expected one of {names}, got {name!r}")
    return {**_COMMON, **PRESETS[name]}
