"""SparseCodes.save and .load: what is in the file, and what a bad file says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from adversarial import adversarial_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_codes import make, random_codes

from csrkern import SparseCodes, reference
from csrkern.index.rows import code_chunks

HEADER = {"format": "csrkern-codes", "version": 1, "dim": 3}
TENSORS = {"values": np.ones((1, 1), np.float32), "indices": np.zeros((1, 1), np.uint16)}


def saved(codes: SparseCodes, path: Path, **options) -> SparseCodes:
    codes.save(path, **options)
    return SparseCodes.load(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("h", "k"), [(1, 1), (30, 30), (300, 7), (70_000, 5)])
def test_round_trips(h, k, dtype, tmp_path):
    for name, pre in adversarial_rows(h, k).items():
        codes = reference.topk_relu(pre.to(getattr(torch, dtype)), k)
        wide = codes.to(torch.float32)
        if not bool(wide.values.isfinite().all()):
            with pytest.raises(ValueError, match=r"values: expected finite entries, got .* in row"):
                wide.save(tmp_path / "codes", dtype=dtype)
            continue
        back = saved(wide, tmp_path / "codes", dtype=dtype)
        assert back.dtype == getattr(torch, dtype)
        assert (back.dim, back.k) == (h, k)
        assert back.equal(codes), name


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_codes_round_trip(data, tmp_path):
    n, h = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 12))
    k = data.draw(st.integers(1, h))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    element = st.one_of(finite, st.sampled_from([0.0, 1.0, 1.0 + 1e-6, 1e-9]))
    rows = st.lists(st.lists(element, min_size=h, max_size=h), min_size=n, max_size=n)
    pre = torch.tensor(data.draw(rows), dtype=torch.float32).reshape(n, h)
    codes = reference.topk_relu(pre, k)
    assert saved(codes, tmp_path / "codes").equal(codes)
    if not bool(codes.values.to(torch.float16).isinf().any()):
        narrow = saved(codes, tmp_path / "codes", dtype="float16")
        dense = codes.to_dense()
        rounded = torch.where(dense > 0, dense.half().clamp(min=2**-24), 0)
        assert narrow.equal(SparseCodes.from_dense(rounded, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_takes_every_dtype_device_and_stride(dtype, tmp_path):
    codes = random_codes(8, dtype=dtype)
    codes.values.requires_grad_()
    for part in (codes, codes.truncate(2), codes[::3], codes[:0]):
        back = saved(part, tmp_path / "codes")
        assert back.dtype == torch.float32
        assert back.equal(part.to(torch.float32))


def test_stores_two_or_four_bytes_an_entry(tmp_path):
    path = tmp_path / "codes"
    for dim, index in [(65_536, np.uint16), (65_537, np.int32)]:
        for dtype in ("float32", "float16"):
            codes = make([[1.5]], [[dim - 1]], dim=dim)
            assert saved(codes, path, dtype=dtype).indices.item() == dim - 1
            stored = load_file(path)
            assert {name: part.dtype for name, part in stored.items()} == {
                "indices": index,
                "values": np.dtype(dtype),
            }
    codes = SparseCodes.from_dense(torch.rand(1000, 500), 32)
    codes.save(path, dtype="float16")
    assert path.stat().st_size < 1000 * 128 + 500


def test_slots_that_rounding_makes_equal_are_put_back_in_order(tmp_path):
    """And none of them is lost: what is too small becomes the least positive value."""
    codes = make([[1.0 + 1e-6, 1.0, 1e-9], [1e-9, 1e-10, 0.0]], [[5, 2, 7], [3, 1, 0]])
    back = saved(codes, tmp_path / "codes", dtype="float16")
    assert back.values.tolist() == [[1.0, 1.0, 2**-24], [2**-24, 2**-24, 0.0]]
    assert back.indices.tolist() == [[2, 5, 7], [1, 3, 0]]


@pytest.mark.parametrize(
    "codes",
    [
        make([[1 + 1e-12, 1.0]], [[5, 2]], dtype=torch.float64),
        make([[1.0, 1e-60]], [[5, 2]], dtype=torch.float64),
        make([[1 + 1e-6, 1.0]], [[5, 2]]).to(torch.float16),
    ],
    ids=["float64 tie", "float64 underflow", "rounded earlier"],
)
def test_a_saved_file_can_be_read_whatever_the_dtype(codes, tmp_path):
    saved(codes, tmp_path / "codes")


def test_overflow_is_an_error_and_writes_nothing(tmp_path):
    path = tmp_path / "codes"
    largest = make([[65504.0, 1.0]], [[1, 2]])
    assert saved(largest, path, dtype="float16").values[0, 0] == 65504.0
    codes = make([[7e4, 1.0]], [[1, 2]])
    with pytest.raises(
        ValueError, match=r"values: 7e\+04 does not fit in float16; save as float32"
    ):
        codes.save(path, dtype="float16")
    assert SparseCodes.load(path).values[0, 0] == 65504.0
    assert saved(codes, path).equal(codes)
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float16', got 'int8'"):
        codes.save(path, dtype="int8")


def test_overflow_of_float32_says_so(tmp_path):
    codes = make([[1e300]], [[0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="does not fit in float32"):
        codes.save(tmp_path / "codes")


def test_loaded_codes_are_writable_and_outlive_the_file(tmp_path):
    path, codes = tmp_path / "codes", random_codes()
    back = saved(codes, path)
    path.unlink()
    back.values.mul_(2)
    assert torch.equal(back.values, codes.values * 2)


BROKEN = {
    "negative": (make([[1.0, 0.5], [1.0, -2.0]], [[3, 4], [3, 4]]), "values not negative"),
    "unsorted": (make([[1.0, 0.5], [1.0, 2.0]], [[3, 4], [3, 4]]), "values non-increasing"),
    "ties": (make([[1.0, 0.5], [1.0, 1.0]], [[3, 4], [4, 3]]), "equal values by lower index"),
    "twice": (make([[1.0, 0.5], [2.0, 1.0]], [[3, 4], [3, 3]]), "distinct latents"),
    "too large": (make([[1.0, 0.5], [2.0, 1.0]], [[3, 4], [3, 10]]), "indices in 0..dim-1"),
    "wraps in uint16": (make([[1.0], [2.0]], [[3], [65_539]]), "indices in 0..dim-1"),
    "below 0": (make([[1.0, 0.5], [2.0, 1.0]], [[3, 4], [3, -1]]), "indices in 0..dim-1"),
    "padding": (make([[1.0, 0.5], [2.0, 0.0]], [[3, 4], [3, 4]]), "padded slots with index 0"),
    "NaN": (make([[1.0, 0.5], [float("nan"), 0.5]], [[3, 4], [3, 4]]), "finite entries, got nan"),
    "inf": (make([[1.0, 0.5], [float("inf"), 0.5]], [[3, 4], [3, 4]]), "finite entries, got inf"),
}


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", BROKEN)
def test_what_load_would_refuse_is_not_written(kind, dtype, stored, tmp_path):
    broken, message = BROKEN[kind]
    codes = SparseCodes(broken.values.to(dtype), broken.indices, broken.dim)
    with pytest.raises(ValueError, match=f"{message}.* in row 1"):
        codes.save(tmp_path / "codes", dtype=stored)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_files_of_others_hold_finite_values(value, tmp_path):
    tensors = {**TENSORS, "values": np.full((1, 1), value, np.float32)}
    forge(tmp_path / "codes", HEADER, tensors)
    with pytest.raises(ValueError, match=r"codes is damaged: values: expected finite entries"):
        SparseCodes.load(tmp_path / "codes")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.float16),
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_no_conversion_loses_a_latent(source, target):
    least = torch.finfo(source).smallest_normal
    numbers = [1.0, 2**-24, max(1e-9, least), least, 0.0]
    values = torch.tensor([sorted(numbers, reverse=True)], dtype=source)
    codes = SparseCodes(values, torch.tensor([[9, 6, 7, 8, 0]], dtype=torch.int32), 10)
    narrow = codes.to(target).validate()
    assert narrow.active.tolist() == codes.active.tolist()
    smallest = torch.finfo(target).smallest_normal * torch.finfo(target).eps
    assert float(narrow.values[narrow.active].min()) >= smallest


# ---- in pieces ------------------------------------------------------------------------


def pieces(path: Path, rows: int = 2) -> list:
    return list(code_chunks(path, None, rows))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pieces_are_the_whole(dtype, tmp_path):
    path = tmp_path / "codes"
    for codes in (random_codes(8), random_codes(8)[:0]):
        whole = saved(codes, path, dtype=dtype)
        for rows in (1, 3, 8, 100):
            parts = pieces(path, rows)
            assert {part.dim for part in parts} == {codes.dim}
            assert all(part.n <= rows for part in parts)
            for name, stored in zip(("values", "indices"), whole.numpy(), strict=True):
                together = np.concatenate([getattr(part, name) for part in parts])
                assert np.array_equal(together, stored)


def test_pieces_need_no_torch(tmp_path):
    random_codes().save(tmp_path / "codes")
    script = f"""
import sys
from csrkern.index.rows import code_chunks
assert list(code_chunks({str(tmp_path / "codes")!r}, None, 2))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- bad files ------------------------------------------------------------------------


@pytest.fixture(params=[SparseCodes.load, pieces], ids=["whole", "in pieces"])
def read(request):
    """Both readers of the file."""
    return request.param


def test_missing_file(read, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no code file at {path}"):
            read(path)


def test_every_truncation_is_an_error(read, tmp_path):
    path = tmp_path / "codes"
    random_codes().save(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path} is damaged: "):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=f"{path} is damaged: "):
        read(path)


@pytest.mark.parametrize("content", [b"hello, world, this is text", b"\0" * 64, b"PK\3\4" * 20])
def test_foreign_files(content, read, tmp_path):
    path = tmp_path / "codes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged: "):
        read(path)


def forge(path: Path, header: object, tensors: dict | None = None) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(TENSORS if tensors is None else tensors, path, metadata={"csrkern": text})


def test_other_safetensors_files(read, tmp_path):
    path = tmp_path / "codes"
    forge(path, HEADER)
    assert SparseCodes.load(path).dim == 3
    for metadata in (None, {"format": "pt"}, {"csrkern": '{"format": "csrkern-index"}'}):
        save_file(TENSORS, path, metadata=metadata)
        with pytest.raises(ValueError, match=f"{path} is not a csrkern code file"):
            read(path)
    forge(path, {**HEADER, "version": 2})
    with pytest.raises(ValueError, match="has format version 2; this release reads version 1"):
        read(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"values": TENSORS["values"]}, "is damaged: .* indices"),
        ({**TENSORS, "values": np.ones((2, 1), np.float32)}, "one shape"),
        ({**TENSORS, "indices": np.full((1, 1), 3, np.uint16)}, "indices in 0..dim-1 is broken"),
        ({**TENSORS, "values": -TENSORS["values"]}, "values not negative is broken in row 0"),
        (
            {"values": np.ones((1, 4), np.float32), "indices": np.zeros((1, 4), np.uint16)},
            "dim: expected at least k = 4",
        ),
    ],
)
def test_files_that_hold_something_else(tensors, message, tmp_path):
    forge(tmp_path / "codes", HEADER, tensors)
    with pytest.raises(ValueError, match=message):
        SparseCodes.load(tmp_path / "codes")


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ("{", TENSORS),
        ("[" * 100_000, TENSORS),
        ([], TENSORS),
        ({"format": "csrkern-codes", "version": 1}, TENSORS),
        ({**HEADER, "dim": "3"}, TENSORS),
        (HEADER, {**TENSORS, "values": np.ones((1, 1), np.int32)}),
        (HEADER, {**TENSORS, "indices": np.full((1, 1), 2**32, np.int64)}),
    ],
    ids=["not JSON", "nested", "a list", "no dim", "dim is text", "integer values", "wide indices"],
)
def test_forged_headers_are_named(header, tensors, read, tmp_path):
    path = tmp_path / "codes"
    forge(path, header, tensors)
    with pytest.raises(ValueError, match=str(path)):
        read(path)


# ---- crash safety ---------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(step, tmp_path, monkeypatch):
    path, codes = tmp_path / "codes", random_codes()
    codes.save(path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(KeyboardInterrupt):
        random_codes(3).save(path)
    assert SparseCodes.load(path).equal(codes)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        random_codes().save(tmp_path / "nowhere" / "codes")


def test_threads_may_save_to_one_path(tmp_path, monkeypatch):
    meet, real, errors = threading.Barrier(2, timeout=30), os.replace, []

    def replace(*arguments):
        meet.wait()  # both have written, neither has renamed
        real(*arguments)

    def save():
        try:
            random_codes().save(tmp_path / "codes")
        except OSError as error:
            errors.append(error)

    monkeypatch.setattr(os, "replace", replace)
    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
