"""Wrapped models train as plain ones do: in DDP, by FSDP2 and with ZeRO, one rank and two."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csrkern.nn import SparseAutoencoder
from csrtrain import CSRLoss

STEPS, BATCH, D, H, K = 6, 24, 12, 64, 4
LOSSES: dict[str, dict[str, Any]] = {
    "self": {},
    "label": {"contrast": "label", "ks": (2,), "balance": 0.1},
    "clip": {"contrast": "clip"},
    "forward": {},
    "untied": {},
    "standardized": {},
}


def model_for(case: str) -> SparseAutoencoder:
    torch.manual_seed(0)
    options = {"untied": {"tied": False}, "standardized": {"standardize": True}}.get(case, {})
    return SparseAutoencoder(D, H, K, dead_threshold=1, **options)


def batches() -> Tensor:
    return torch.randn(STEPS, BATCH, D, generator=torch.Generator().manual_seed(1))


def train(
    case: str,
    model: nn.Module,
    share: Callable[[Tensor], Tensor] = lambda rows: rows,
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
) -> list[dict[str, float]]:
    """Trains on this process's share of each batch; returns the terms of the loss."""
    loss_of, terms = CSRLoss(**LOSSES[case], gather=True), []
    optimizer = make_optimizer(model.parameters(), lr=1e-2)
    for x in batches():
        given: dict[str, Tensor] = {}
        if case == "label":
            given["labels"] = share(torch.arange(BATCH) % 5)
        elif case == "clip":
            given["partners"] = share(x.flip(1) + 0.1)
        if case == "forward":
            found = {"loss": (model(share(x))[0] - share(x)).square().mean()}
        else:
            found = loss_of(model, share(x), **given)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        terms.append({name: float(term.detach()) for name, term in found.items()})
    return terms


WORKER = """
import os, sys
from functools import partial
from pathlib import Path
import torch, torch.distributed as dist
sys.path[:0] = [sys.argv[1]]
from test_wrappers import *
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world, folder = dist.get_rank(), dist.get_world_size(), Path(sys.argv[2])

def share(rows):
    return rows.chunk(world)[rank]

def keep(name, state, terms):
    if rank == 0:
        torch.save((state, terms), folder / name)

zero = partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.Adam)
for case in LOSSES:
    model = model_for(case)
    terms = train(case, DistributedDataParallel(model), share)
    keep(f"ddp {case}", model.state_dict(), terms)
    model = model_for(case)
    terms = train(case, DistributedDataParallel(model), share, zero)
    keep(f"zero {case}", model.state_dict(), terms)
    model = model_for(case)
    compiled = torch.compile(DistributedDataParallel(model), backend="eager")
    keep(f"compiled {case}", model.state_dict(), train(case, compiled, share))
    model = model_for(case)
    fully_shard(model)
    terms = train(case, model, share)
    options = StateDictOptions(full_state_dict=True)
    keep(f"fsdp {case}", get_model_state_dict(model, options=options), terms)

x = batches()[0]
plain = model_for("self")
model = model_for("self")
fully_shard(model)
refused = {}
for name in ("encode", "decode"):
    try:
        getattr(model, name)(plain.encode(x) if name == "decode" else x)
    except Exception as error:
        refused[name] = f"{type(error).__name__}: {error}"
register_fsdp_forward_method(model, "encode")
keep("fsdp encode", {"values": model.encode(x).values, "wanted": plain.encode(x).values}, refused)
dist.barrier()
os._exit(0)  # device meshes keep gloo's threads, which may abort in the interpreter's last moments
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def results(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = [str(folder / "worker.py"), str(Path(__file__).parent), str(folder)]
    done = subprocess.run(
        [*command, f"--nproc-per-node={request.param}", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]:
    """The weights and terms of plain models trained on whole batches."""
    trained = {}
    for case in LOSSES:
        model = model_for(case)
        terms = train(case, model)
        trained[case] = copy.deepcopy(model.state_dict()), terms
    return trained


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("wrapper", ["ddp", "zero", "compiled", "fsdp"])
def test_wrapped_models_train_as_plain_ones(results, alone, wrapper, case):
    state, terms = torch.load(results / f"{wrapper} {case}", weights_only=True)
    wanted_state, wanted = alone[case]
    assert state.keys() == wanted_state.keys()
    # Losses are those of a share of the batch, but for the contrast, which is of all of it.
    if case != "forward":
        assert [t["contrast"] for t in terms] == pytest.approx(
            [t["contrast"] for t in wanted], rel=1e-3
        )
        assert any(t["dead"] > 0 for t in terms)
    for name, tensor in wanted_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_methods_of_a_sharded_model_teach(results):
    codes, refused = torch.load(results / "fsdp encode", weights_only=True)
    assert torch.equal(codes["values"], codes["wanted"])
    for name, message in refused.items():
        assert message.startswith("TypeError: weight: expected a whole tensor, got a DTensor"), name
        assert "register_fsdp_forward_method(model, 'encode')" in message
    assert set(refused) == {"encode", "decode"}
