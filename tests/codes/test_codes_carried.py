"""SparseCodes through pickles, files of PyTorch and data loaders."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import csrkern
from csrkern import SparseCodes

pytestmark = pytest.mark.usefixtures("one_thread")

N = 6


def some_codes() -> SparseCodes:
    return csrkern.encode(torch.randn(N, 8), torch.randn(40, 8), k=3)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_codes_pickle(protocol):
    given = some_codes()
    given.fingerprint = "0" * 16
    found = pickle.loads(pickle.dumps(given, protocol))
    assert found.equal(given)
    assert (found.dim, found.fingerprint) == (given.dim, given.fingerprint)


def test_codes_are_saved_by_torch_and_loaded_by_default(tmp_path):
    given = some_codes()
    torch.save({"codes": given, "step": 3}, tmp_path / "codes.pt")
    found = torch.load(tmp_path / "codes.pt")
    assert found["codes"].equal(given)
    deep = copy.deepcopy(given)
    assert deep.equal(given)
    assert deep.values.data_ptr() != given.values.data_ptr()


@pytest.mark.parametrize("workers", [0, 1])
def test_codes_collate(workers):
    given = some_codes()
    assert default_collate([given[0], given[1:3]]).equal(given[:3])
    batches = DataLoader(given, batch_size=4, num_workers=workers)  # type: ignore[arg-type]
    found = list(batches)
    assert [len(part) for part in found] == [4, 2]
    assert SparseCodes.cat(found).equal(given)
    pairs = [(given[i], i) for i in range(N)]
    codes_part, numbers = default_collate(pairs)
    assert codes_part.equal(given)
    assert numbers.tolist() == list(range(N))
