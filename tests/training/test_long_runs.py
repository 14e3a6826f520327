"""Runs that are killed, evaluated, stopped early, logged, or read from large files."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from csrtrain import TrainConfig, train
from csrtrain.training import batches
from csrtrain.training.checkpoint import FILE_NAME

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrainConfig(hidden_dim=64, k=4, batch_size=64, steps=30, dead_threshold=3)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((10, 16))
    return (3 + centers[np.arange(500) % 10] + 0.3 * rng.standard_normal((500, 16))).astype("f4")


def quiet(*args, **kwargs):
    return train(*args, progress=False, **kwargs)


def same(a, b) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


KILLED = """
import sys, time, numpy as np, torch
from csrtrain import TrainConfig, train
torch.set_num_threads(1)
config = TrainConfig(hidden_dim=64, k=4, batch_size=64, steps=30, dead_threshold=3, whitening=0.5)
def slowly(report):
    if report.step > 10: time.sleep(60)
train(sys.argv[1], config=config, checkpoint_dir=sys.argv[2], checkpoint_every=5, progress=False,
      on_step=slowly)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_outright_resumes_to_the_same_model_bit_for_bit(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    kept = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "x.npy"), str(kept)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        for _ in range(1200):
            if (kept / FILE_NAME).exists() and torch.load(kept / FILE_NAME)["step"] == 10:
                break
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    config = dataclasses.replace(CONFIG, whitening=0.5)
    steps = []
    resumed = quiet(x, config=config, checkpoint_dir=kept, resume=True, on_step=steps.append)
    assert steps[0].step == 11
    assert same(resumed, quiet(x, config=config))


LARGE = """
import resource, sys, torch
from csrkern.embeddings import dataset
from csrtrain import TrainConfig, train
torch.set_num_threads(1)
dataset._PIECE_BYTES >>= 3  # pieces of 4 MB
config = TrainConfig(hidden_dim=64, k=4, batch_size=64, steps=5)
train(torch.randn(200, 512), config=config, progress=False)
(held,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData:"))
limit = 1024 * int(held) + (96 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
train(sys.argv[1], config=config, progress=False)
print("trained")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits as Linux counts them")
def test_a_file_larger_than_the_memory_that_may_be_taken(tmp_path):
    """200 MB of float16 in a process that may take 96 MB; all but its first rows are a hole."""
    shape = (200_000, 512)
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, shape)
    file[:1000] = np.random.default_rng(0).standard_normal((1000, 512))
    del file
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "x.npy")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "trained\n", done.stderr[-2000:]


def best_at(*good_steps: int):
    """An evaluation that gives the models of these steps rising scores, and others 0."""
    calls: list[int] = []

    def evaluate(model) -> float:
        assert not model.training
        assert model.input_dim == 16
        calls.append(2 * (len(calls) + 1))
        return 1.0 + good_steps.index(calls[-1]) if calls[-1] in good_steps else 0.0

    return evaluate, calls


@pytest.mark.parametrize("changes", [{}, {"input_subspace": 8}])
def test_the_best_model_is_kept_and_patience_ends_the_run(x, changes):
    config = dataclasses.replace(CONFIG, **changes)
    evaluate, calls = best_at(2, 8)
    reports = []
    model = quiet(
        x, config=config, evaluate=evaluate, evaluate_every=2, patience=3, on_step=reports.append
    )
    assert calls == [2, 4, 6, 8, 10, 12, 14]
    assert reports[-1].step == 14
    assert [r.score for r in reports if r.score is not None] == [1.0, 0, 0, 2.0, 0, 0, 0]
    eight = quiet(x, config=config, evaluate=best_at(8)[0], evaluate_every=2, patience=8)
    assert same(model, eight)


class Stopped(Exception):
    pass


def stop_at(step):
    def on_step(report):
        if report.step == step:
            raise Stopped

    return on_step


def test_evaluation_survives_interruption(x, tmp_path):
    def score(model) -> float:
        rebuilt = model(torch.from_numpy(x))[0].detach()
        return -float((rebuilt - torch.from_numpy(x)).square().mean())

    options = {"evaluate": score, "evaluate_every": 3, "patience": 2}
    expected = quiet(x, config=CONFIG, **options)
    for stop in (9, 17):
        with pytest.raises(Stopped):
            quiet(
                x,
                config=CONFIG,
                **options,
                checkpoint_dir=tmp_path,
                checkpoint_every=4,
                resume=True,
                on_step=stop_at(stop),
            )
    resumed = quiet(x, config=CONFIG, **options, checkpoint_dir=tmp_path, resume=True)
    assert same(expected, resumed)


def test_evaluations_that_do_not_fit(x):
    with pytest.raises(ValueError, match="evaluate: expected a finite score after step 3"):
        quiet(x, config=CONFIG, evaluate=lambda model: math.nan, evaluate_every=3)
    with pytest.raises(ValueError, match="patience: expected an evaluate function"):
        quiet(x, config=CONFIG, patience=3)


def test_scalars_are_logged_for_tensorboard(x, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet(x, config=CONFIG, log_dir=tmp_path, evaluate=lambda model: 0.5, evaluate_every=10)
    log = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "recon", "dead", "lr", "rows_per_second", "score"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("loss")] == list(range(1, 31))
    assert [event.step for event in log.Scalars("score")] == [10, 20, 30]


def test_a_missing_tensorboard_is_named(x, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'csrkern\[tensorboard\]'"):
        quiet(x, config=CONFIG, log_dir=tmp_path)


def test_batches_are_read_ahead_by_another_thread_in_order():
    threads, read = set(), []

    def slow(step):
        threads.add(threading.current_thread().name)
        read.append(step)
        return step

    taken = []
    for step in batches.read_ahead(slow, 3, 9):
        taken.append(step)
        time.sleep(0.05)
        if step < 7:
            assert len(read) > len(taken)
    assert taken == read == [3, 4, 5, 6, 7, 8]
    assert all(name.startswith("csrtrain-reader") for name in threads)


def test_an_error_while_reading_ahead_reaches_the_run():
    def broken(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    reader = batches.read_ahead(broken, 0, 5)
    assert [next(reader), next(reader)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(reader)


@pytest.mark.parametrize("changes", [{"contrast": "self"}, {"contrast": "label"}])
def test_bfloat16_autocast_trains_close_to_float32(x, changes):
    y = np.arange(500) % 10
    config = dataclasses.replace(CONFIG, **changes, steps=60, lr=3e-3)
    final = {}
    for autocast in (False, True):
        reports = []
        model = quiet(x, y, dataclasses.replace(config, autocast=autocast), on_step=reports.append)
        assert model.encoder.weight.dtype == torch.float32
        final[autocast] = reports[-1].losses["recon"]
    assert final[True] == pytest.approx(final[False], rel=0.15)
