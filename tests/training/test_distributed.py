"""Two gloo processes do what one does with the joint batch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from csrtrain import TrainConfig, train
from csrtrain.training.checkpoint import FILE_NAME

CONFIG = TrainConfig(
    hidden_dim=256, k=4, ks=(2,), batch_size=60, steps=12, dead_threshold=1, balance=0.1
)
VARIANTS = {
    "self": CONFIG,
    "subspace": dataclasses.replace(CONFIG, input_subspace=12),
    "label": dataclasses.replace(CONFIG, contrast="label", whitening=0.5),
    "clip": dataclasses.replace(CONFIG, contrast="clip"),
}

WORKER = """
import dataclasses, sys, weakref
from pathlib import Path
import numpy as np, torch
import torch.distributed as dist
sys.path[:0] = [str(Path(sys.argv[1]))]
from test_distributed import VARIANTS, data, run
torch.set_num_threads(1)
dist.init_process_group("gloo")
folder = Path(sys.argv[2])
for name, config in VARIANTS.items():
    reports = []
    model = run(name, config, on_step=reports.append)
    if dist.get_rank() == 0:
        torch.save((model.state_dict(), [r.losses for r in reports]), folder / name)
class Killed(Exception): pass
def stop(report):
    if report.step == 7: raise Killed
try:
    run("self", CONFIG := VARIANTS["self"], checkpoint_dir=folder / "kept", checkpoint_every=2,
        on_step=stop)
except Killed:
    pass
dist.barrier()
group = weakref.ref(dist.group.WORLD)
dist.destroy_process_group()
assert group() is None, "something keeps the process group: its threads outlive the interpreter"
"""


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 16)).astype(np.float32)
    return x, np.arange(240) % 5, x[:, ::-1] + 0.1 * rng.standard_normal(x.shape).astype(np.float32)


def run(name: str, config: TrainConfig, **options):
    x, y, partners = data()
    if config.contrast == "clip":
        options["partners"] = np.ascontiguousarray(partners)
    labels = y if config.contrast == "label" else None
    return train(x, labels, config, progress=False, device="cpu", **options)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(folder / "worker.py"), str(Path(__file__).parent), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_equal_one_with_the_joint_batch(results, name):
    """Losses to rounding: gathered negatives, positives of their own rank only (published bug
    3), dead latents counted together; then the weights that follow from 12 such steps."""
    state, losses = torch.load(results / name, weights_only=True)
    reports = []
    model = run(name, VARIANTS[name], on_step=reports.append)
    assert len(losses) == len(reports) == 12
    for ours, theirs in zip(losses, (report.losses for report in reports), strict=True):
        for term, value in theirs.items():
            assert ours[term] == pytest.approx(value, rel=2e-4, abs=1e-6), term
    assert any(report.losses["dead"] > 0 for report in reports)
    for weight, value in model.state_dict().items():
        torch.testing.assert_close(state[weight], value, rtol=2e-3, atol=2e-4, msg=weight)


def test_a_checkpoint_of_two_processes_resumes_on_one(results):
    assert torch.load(results / "kept" / FILE_NAME, weights_only=True)["step"] == 6
    steps = []
    resumed = run(
        "self", CONFIG, checkpoint_dir=results / "kept", resume=True, on_step=steps.append
    )
    assert steps[0].step == 7
    whole = run("self", CONFIG)
    for weight, value in whole.state_dict().items():
        torch.testing.assert_close(
            resumed.state_dict()[weight], value, rtol=2e-3, atol=2e-4, msg=weight
        )
