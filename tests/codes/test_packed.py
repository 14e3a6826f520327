"""PackedCodes against its specification, `reference.pack`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import csrkern
from csrkern import PackedCodes, SparseCodes, packed_bytes, packed_k, reference


def random_codes(n: int, k: int, dim: int, seed: int = 0, scale: float = 1.0) -> SparseCodes:
    """Rows of every number of active latents from 0 to k, of very different norms."""
    random = np.random.default_rng(seed)
    dense = np.zeros((n, dim), np.float32)
    for i, row in enumerate(dense):
        active = random.choice(dim, i % (k + 1), replace=False)
        row[active] = random.random(len(active)) ** 3 * scale * 2.0 ** -(i % 20) + 1e-12
    return SparseCodes.from_dense(torch.from_numpy(dense), k)


@given(
    k=st.integers(1, 20),
    more=st.sampled_from([0, 1, 7, 100, 4000]),
    value_bits=st.integers(1, 8),
    scale=st.sampled_from([1.0, 1e-6, 3e4]),
)
def test_rows_are_the_specified_bytes(k: int, more: int, value_bits: int, scale: float) -> None:
    codes = random_codes(40, k, k + more, k, scale)
    packed = PackedCodes.pack(codes, value_bits)
    expected = reference.pack(*codes.numpy(), codes.dim, value_bits, packed.largest)
    assert [row.tobytes() for row in packed.rows] == expected
    assert packed.row_bytes == packed_bytes(k, codes.dim, value_bits)
    back = packed.unpack().validate()
    strongest = codes.values[:, :1].clamp(min=packed.largest * 2.0**-32)  # the least scale
    half_level = strongest * 2 ** (1 / 8) / (2**value_bits - 1) / 2
    dense, found = codes.to_dense(), back.to_dense()
    assert torch.equal(dense > 0, found > 0)
    error = (dense - found).abs()
    weak = (dense > 0) & (dense < half_level)  # raised to level 1
    assert bool((error <= torch.where(weak, 2 * half_level, half_level) * 1.00001).all())
    again = PackedCodes.pack(back, value_bits)
    again = PackedCodes(again.rows, k, codes.dim, value_bits, again.largest).unpack()
    assert torch.equal(again.indices.sort(1).values, back.indices.sort(1).values)


def test_how_many_latents_fit() -> None:
    assert packed_bytes(32, 4096, 7) == 65
    assert [packed_k(size, 4096) for size in (16, 32, 64, 128)] == [8, 18, 40, 88]
    assert all(packed_bytes(packed_k(b, 4096), 4096) <= b for b in range(4, 300))
    assert all(packed_bytes(packed_k(b, 4096) + 1, 4096) > b for b in range(4, 300))
    assert packed_k(10**6, 50) == 50


def test_rows_are_chosen_and_threads_change_nothing() -> None:
    codes = random_codes(5000, 8, 300)
    packed = PackedCodes.pack(codes)
    rows = [4999, 3, -1, 3]
    assert torch.equal(packed[rows].unpack().values, packed.unpack().values[rows])
    assert torch.equal(packed[10:20:3].unpack().indices, packed.unpack().indices[10:20:3])
    mask = np.arange(5000) % 7 == 0
    assert len(packed[mask]) == mask.sum()
    assert packed.nbytes == 5000 * packed.row_bytes
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        assert np.array_equal(PackedCodes.pack(codes).rows, packed.rows)
        assert torch.equal(packed.unpack().values, PackedCodes.pack(codes).unpack().values)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(packed[3].unpack().values, packed.unpack()[3].values)


def test_nothing_and_no_rows() -> None:
    zeros = SparseCodes(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int32), 9)
    assert int(PackedCodes.pack(zeros).unpack().active.sum()) == 0
    assert len(PackedCodes.pack(zeros[:0]).unpack()) == 0
    half = random_codes(9, 4, 30).to(dtype=torch.float16)
    assert PackedCodes.pack(half, 8).unpack().indices.shape == half.indices.shape


def test_no_weak_latent_is_lost() -> None:
    values = torch.tensor([[1.0, 1e-30, 1e-60]], dtype=torch.float64)
    codes = SparseCodes(values, torch.tensor([[5, 2, 7]], dtype=torch.int32), 9)
    assert sorted(PackedCodes.pack(codes).unpack().indices[0].tolist()) == [2, 5, 7]


def test_forged_sizes() -> None:
    packed = PackedCodes.pack(random_codes(50, 8, 300))
    form = packed.k, packed.dim, packed.value_bits, packed.largest
    for name, wrong in (
        ("rows", packed.rows[:, :-1]),
        ("rows", packed.rows.ravel()),
        ("rows", packed.rows.astype(np.int64)),
        ("rows", None),
        ("k", 9),
        ("k", -1),
        ("k", 2**40),
        ("dim", 7),
        ("dim", 2**40),
        ("value_bits", 9),
        ("largest", float("nan")),
        ("largest", "1"),
    ):
        forged = PackedCodes(packed.rows, *form)
        setattr(forged, name, wrong)
        for use in (PackedCodes.unpack, lambda codes: codes.save("/nowhere/codes")):
            with pytest.raises((TypeError, ValueError)):
                use(forged)
    wide = np.zeros((50, 2 * packed.row_bytes), np.uint8)[:, ::2]
    wide[:] = packed.rows
    assert PackedCodes(wide, *form).unpack().equal(packed.unpack())


def test_damaged_rows_are_named() -> None:
    packed = PackedCodes.pack(random_codes(3000, 8, 300))
    for field in (0xFF, 0x00):
        rows = packed.rows.copy()
        rows[[1700, 2900], 1:] = field
        forged = PackedCodes(rows, packed.k, packed.dim, packed.value_bits, packed.largest)
        with pytest.raises(ValueError, match=r"row 1700 .* damaged"):
            forged.unpack()


def test_files_come_back_or_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_tensors

    packed = PackedCodes.pack(random_codes(50, 8, 300), 5)
    path = tmp_path / "codes.packed"
    packed.save(path)
    back = PackedCodes.load(path)
    assert np.array_equal(back.rows, packed.rows)
    assert torch.equal(back.unpack().values, packed.unpack().values)
    with pytest.raises(FileNotFoundError, match="no file of packed codes"):
        PackedCodes.load(tmp_path / "none")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        PackedCodes.load(tmp_path / "cut")
    packed.unpack().save(tmp_path / "codes")
    with pytest.raises(ValueError, match="not a csrkern file of packed codes"):
        PackedCodes.load(tmp_path / "codes")
    header = {"format": "csrkern-packed-codes", "version": 1, "k": 8, "dim": 300, "value_bits": 5}
    for change in (
        {"version": 2},
        {"k": 9},
        {"k": None},
        {"dim": 7},
        {"dim": 2**40},
        {"value_bits": 4},
        {"largest": float("inf")},
        {"largest": "1"},
    ):
        text = json.dumps({**header, "largest": packed.largest, **change})
        save_file({"rows": packed.rows}, tmp_path / "forged", metadata={"csrkern": text})
        with pytest.raises(ValueError, match=r"forged (is damaged|has format version 2)"):
            PackedCodes.load(tmp_path / "forged")
    text = json.dumps({**header, "largest": packed.largest})
    bfloat16 = {"rows": torch.from_numpy(packed.rows).bfloat16()}
    save_tensors(bfloat16, tmp_path / "forged", metadata={"csrkern": text})
    with pytest.raises(ValueError, match=r"forged is damaged: rows: expected U8, got BF16"):
        PackedCodes.load(tmp_path / "forged")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    packed = PackedCodes.pack(random_codes(50, 8, 300))
    expected = packed.unpack()
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert packed.unpack().equal(expected)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize(
    ("value", "latent", "rule"),
    [
        (0.1, 300, "indices in 0..dim-1"),
        (0.1, -1, "indices in 0..dim-1"),
        (0.1, 2**31 - 1, "indices in 0..dim-1"),
        (0.1, 5, "distinct latents"),
        (-0.1, 6, "values not negative"),
    ],
)
def test_what_is_no_code_is_refused(value: float, latent: int, rule: str) -> None:
    values, indices = torch.zeros(2000, 3), torch.zeros(2000, 3, dtype=torch.int32)
    values[:, 0], indices[:, 0] = 1.0, 5
    values[1500, 1], indices[1500, 1] = value, latent
    with pytest.raises(ValueError, match=f"{rule} is broken in row 1500"):
        PackedCodes.pack(SparseCodes(values, indices, 300))


def test_what_does_not_fit_is_refused() -> None:
    codes = random_codes(5, 4, 30)
    with pytest.raises(ValueError, match="value_bits"):
        PackedCodes.pack(codes, 0)
    with pytest.raises(ValueError, match="value_bits"):
        PackedCodes.pack(codes, 9)
    with pytest.raises(ValueError, match="row_bytes"):
        packed_k(1, 4096)
    for wrong in (float("nan"), float("inf"), 2.0**101):
        values = codes.values.clone()
        values[4, 0] = wrong
        with pytest.raises(ValueError, match=r"at most 2\^100, got .* in row 4"):
            PackedCodes.pack(SparseCodes(values, codes.indices, 30))
    rows = PackedCodes.pack(codes).rows
    with pytest.raises(TypeError, match="uint8"):
        PackedCodes(rows.astype(int), 4, 30, 4, 1.0)
    with pytest.raises(ValueError, match=r"expected \[n, "):
        PackedCodes(rows[:, 1:], 4, 30, 4, 1.0)
    assert csrkern.PackedCodes is PackedCodes
