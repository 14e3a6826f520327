"""Choices are kept, bucketed and pinned, and no configuration changes a bit of any result."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import csrkern.ops.gather
import csrkern.ops.transpose  # noqa: F401  (registers the operators)
from csrkern import SparseCodes

ops = torch.ops.csrkern
MAIN = "from csrtrain.cli.app import main; main()"
CONFIGS = [{"BLOCK": 1}, {"BLOCK": 2}, {"BLOCK": 3}]


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    from csrkern.kernels import tuning

    monkeypatch.setenv("CSRKERN_CACHE", str(tmp_path))
    monkeypatch.delenv("CSRKERN_TUNE", raising=False)
    tuning.known_choices.cache_clear()
    yield tuning
    tuning.known_choices.cache_clear()


def stopwatch(tuning, monkeypatch, fastest):
    """Replaces time: the configuration `fastest` is quickest. Returns what was timed."""
    timed = []

    def seconds(run):
        config = run.args[0]
        timed.append(config)
        return 0.0 if config == fastest else 1.0

    monkeypatch.setattr(tuning, "seconds", seconds)
    return timed


def test_measured_once_and_kept_for_the_next_process(tuning, monkeypatch):
    timed = stopwatch(tuning, monkeypatch, CONFIGS[2])
    ran = []
    with tuning.tuning_mode("measure"):
        tuning.launch("op", (100, "float32"), CONFIGS, ran.append)
        tuning.launch("op", (65, "float32"), CONFIGS, ran.append)  # in the same bucket
    assert timed == CONFIGS
    assert ran == [CONFIGS[2]] * 2
    tuning.known_choices.cache_clear()  # as another process would begin
    assert tuning.choose("op", (128, "float32"), CONFIGS, ran.append) == CONFIGS[2]
    assert tuning.choose("op", (129, "float32"), CONFIGS, ran.append) == CONFIGS[0]
    assert tuning.choose("op", (128, "bfloat16"), CONFIGS, ran.append) == CONFIGS[0]
    assert timed == CONFIGS


def test_pinned_by_the_environment(tuning, monkeypatch):
    timed = stopwatch(tuning, monkeypatch, CONFIGS[1])
    with tuning.tuning_mode("measure"):
        tuning.choose("op", (1,), CONFIGS, id)
    assert tuning.choose("op", (1,), CONFIGS, id) == CONFIGS[1]
    monkeypatch.setenv("CSRKERN_TUNE", "off")
    assert tuning.choose("op", (1,), CONFIGS, id) == CONFIGS[0]
    assert len(timed) == 3
    monkeypatch.setenv("CSRKERN_TUNE", "sometimes")
    with pytest.raises(ValueError, match="CSRKERN_TUNE: expected one of cached, off, measure"):
        tuning.choose("op", (1,), CONFIGS, id)


def test_a_choice_no_longer_offered_is_measured_again(tuning, monkeypatch):
    stopwatch(tuning, monkeypatch, CONFIGS[1])
    with tuning.tuning_mode("measure"):
        tuning.choose("op", (1,), CONFIGS, id)
        assert tuning.choose("op", (1,), CONFIGS[::2], id) == CONFIGS[0]


def test_files_of_two_processes_are_joined_and_damage_is_no_error(tuning, monkeypatch):
    stopwatch(tuning, monkeypatch, CONFIGS[1])
    with tuning.tuning_mode("measure"):
        tuning.choose("a", (1,), CONFIGS, id)
        path = tuning.choices_path()
        path.write_text(json.dumps({**json.loads(path.read_text()), "c 1": CONFIGS[2]}))
        tuning.choose("b", (1,), CONFIGS, id)
        assert set(json.loads(path.read_text())) == {"a 1", "b 1", "c 1"}
        path.write_text("{broken")
        tuning.known_choices.cache_clear()
        assert tuning.choose("a", (1,), CONFIGS, id) == CONFIGS[1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_is_for_one_source(tuning, monkeypatch):
    import triton

    assert triton.__version__ in tuning.choices_path().name
    before = tuning.choices_path()
    monkeypatch.setattr(tuning, "source_hash", lambda: "another")
    assert tuning.choices_path() != before


def test_time_is_measured(tuning):
    assert 0 < tuning.seconds(lambda: torch.randn(100).sum()) < 5


def every_config(tuning, monkeypatch, run):
    """Results of `run` with each configuration that a kernel offers, in turn."""
    results, count = [], 1
    while len(results) < count:

        def pick(kernel, sizes, configs, _):
            nonlocal count
            count = max(count, len(configs))
            return configs[min(len(results), len(configs) - 1)]

        monkeypatch.setattr(tuning, "choose", pick)
        results.append(run())
    assert count > 1
    return results


def some_work(name, device):
    """A call of the kernel `name` on inputs that all its parts have work for."""
    from csrkern.kernels import gather, info_nce, similarity, topk_relu, transpose
    from csrkern.kernels.encode import verified as encode_verified

    dense = torch.rand(150, 30) * (torch.rand(150, 30) < 0.4)
    dense[:, 7] = 2.0  # a latent that every row uses: more than one piece
    codes = SparseCodes.from_dense(dense, 9)
    values, indices = codes.values.to(device), codes.indices.to(device)
    starts, rows, _, sorted_values = (
        t.to(device) for t in ops.transpose(codes.values, codes.indices, 30)
    )
    table, x = torch.randn(30, 600).to(device), torch.randn(150, 600).to(device)
    few = SparseCodes.from_dense(dense[:, :10], 4)
    scattered = few.values.to(device)
    starts_few, rows_few, slots_few, _ = ops.transpose(few.values, few.indices, 10)
    lists = starts_few.to(device), rows_few.to(device), slots_few.to(device), 10
    calls = {
        "topk_relu": lambda: topk_relu.topk_relu(torch.randn(2, 9000).to(device), 33, None),
        "transpose": lambda: transpose.transpose(values, indices, 30),
        "gather_sum": lambda: gather.gather_sum(values[:9], indices[:9], table, None, [4, 9]),
        "gather_dot": lambda: gather.gather_dot(values[:9], indices[:9], table, x[None, :9], [9]),
        "scatter_sum": lambda: gather.scatter_sum(
            *lists, [x[:, :130]] * 2, [scattered] * 2, [0, 1], [4, 3]
        ),
        "similarity": lambda: similarity.similarity(
            (values[:5], indices[:5]), (values, indices), (starts, rows, sorted_values)
        ),
        "info_nce": lambda: info_nce.info_nce(
            values[:9], indices[:9], (starts, rows, sorted_values), 150, False, 0.2, *[None] * 3
        ),
        "info_nce backward": lambda: info_nce.info_nce_backward(
            *torch.rand(3, 9).to(device).unbind(),
            values[:9],
            indices[:9],
            (starts, rows, sorted_values),
            150,
            False,
            False,
            0.2,
            *[None] * 3,
        ),
        "encode verified": lambda: encode_verified.encode(x[:3, :40], x[:, :40], None, None, 5),
    }
    return calls[name]


NAMES = ["topk_relu", "transpose", "gather_sum", "gather_dot", "scatter_sum", "similarity"]
NAMES += ["info_nce", "info_nce backward", "encode verified"]


@pytest.mark.parametrize("name", NAMES)
def test_no_configuration_changes_a_bit(tuning, monkeypatch, device, name):
    def run():
        torch.manual_seed(1)
        out = some_work(name, device)()
        return [t.cpu() for t in (out if isinstance(out, tuple) else (out,))]

    first, *others = every_config(tuning, monkeypatch, run)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b)


def test_batch_sizes_are_not_compiled_in():
    script = (
        "import triton, pkgutil, importlib\n"
        "from triton.runtime.jit import JITFunction\n"
        "from csrkern import kernels\n"
        "from csrkern.kernels._common import BATCH_SIZES\n"
        "seen = 0\n"
        "for info in pkgutil.iter_modules(kernels.__path__):\n"
        "    module = importlib.import_module(f'csrkern.kernels.{info.name}')\n"
        "    for name, found in vars(module).items():\n"
        "        if isinstance(found, JITFunction) and name.endswith('_kernel'):\n"
        "            for p in found.params:\n"
        "                seen += p.name in BATCH_SIZES\n"
        "                assert p.do_not_specialize == (p.name in BATCH_SIZES), (name, p.name)\n"
        "assert seen > 9, seen\n"
    )
    environment = {"TRITON_INTERPRET": "0", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_warmup_command_measures_every_kernel_that_has_a_choice(tmp_path):
    environment = dict(os.environ)
    environment |= {"CSRKERN_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-c", MAIN, "warmup", "-d", "40", "--hidden-dim", "64"]
    command += ["-k", "3", "--batch-size", "2", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.iterdir()
    *kernels, choices = map(json.loads, run.stdout.splitlines())
    assert choices == {"choices": str(file)}
    assert all(line["kernel"] and line["seconds"] > 0 for line in kernels)
    measured = {key.rsplit(" ", key.count(" "))[0] for key in json.loads(file.read_text())}
    # Below 2,048 latents topk_relu has one configuration.
    wanted = {"encode", "transpose", "gather_sum", "gather_dot", "scatter_sum"}
    assert measured >= wanted | {"similarity", "info_nce"}


def test_warmup_needs_a_device():
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = ":".join(sys.path)
    command = [sys.executable, "-c", MAIN, "warmup", "-d", "8", "--hidden-dim", "9"]
    run = subprocess.run([*command, "-k", "3"], capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "PyTorch sees no CUDA device" in run.stderr


def test_choices_belong_to_the_source_of_every_kernel(tuning, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "tuning.py"))
    (tmp_path / "encode").mkdir()
    hashes = []
    for source in ("a", "b"):
        (tmp_path / "encode" / "propose.py").write_text(source)
        hashes.append(tuning.source_hash.__wrapped__())
    assert hashes[0] != hashes[1]
