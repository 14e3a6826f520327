"""csrkern.roofline: the arithmetic, by hand, and the ceilings, by what must hold of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from csrkern import roofline
from csrkern.roofline import Cost, Machine

MB = 1 << 20


@pytest.fixture
def machine() -> Machine:
    """10 GB/s to read, 5 to fill, 8 to copy; ten times that at 1 MB; 100 and 400 Gflop/s."""

    def table(rate: float) -> dict[int, dict[int, float]]:
        return {1: {MB: 10 * rate, 4 * MB: rate}, 4: {MB: 40 * rate, 4 * MB: 4 * rate}}

    gemm = {1: {"float32": 1e11, "bfloat16": 4e11}, 4: {"float32": 4e11, "bfloat16": 16e11}}
    return Machine(table(10e9), table(5e9), table(8e9), gemm)


def test_topk_relu_reads_each_row_once_and_writes_codes() -> None:
    cost = roofline.topk_relu(10, 100, 4, itemsize=2)
    assert (cost.read, cost.written, cost.flops) == (10 * 100 * 2, 10 * 4 * (2 + 4), 1000)


def test_encode_is_the_gemm_without_its_output() -> None:
    encode, gemm = roofline.encode(8, 16, 32, 4), roofline.gemm(8, 16, 32)
    assert encode.flops == gemm.flops == 2 * 8 * 16 * 32
    assert encode.read == gemm.read + 4 * (32 + 16)  # the two biases
    assert encode.written == roofline.codes_bytes(8, 4, 4) < gemm.written == 4 * 8 * 32


def test_decode_reads_no_more_rows_than_there_are() -> None:
    few, many = roofline.decode(2, 16, 1000, 4), roofline.decode(1000, 16, 1000, 4)
    assert few.read == roofline.codes_bytes(2, 4, 4) + 4 * 8 * 16
    assert many.read == roofline.codes_bytes(1000, 4, 4) + 4 * 1000 * 16
    assert many.flops == 2 * 1000 * 4 * 16
    assert roofline.decode_backward(1000, 16, 1000, 4).flops == 2 * many.flops


def test_encode_backward_touches_selected_latents_only() -> None:
    cost = roofline.encode_backward(10, 16, 1000, 4)
    assert cost.flops == 2 * roofline.decode(10, 16, 1000, 4).flops
    assert cost.written == 4 * (10 * 16 + 1000 * 16 + 1000 + 16)


def test_prefix_errors_square_a_residual_a_slot() -> None:
    n, d, h, k = 10, 16, 1000, 4
    forward, decode = roofline.prefix_errors(n, d, h, k), roofline.decode(n, d, h, k)
    assert (forward.flops, forward.written) == (2 * decode.flops, 4 * k)
    assert forward.read == decode.read + 4 * n * d  # x
    back = roofline.prefix_errors_backward(n, d, h, k)
    assert (back.flops, back.written) == (4 * decode.flops, 4 * (n * k + h * d))


def test_sparse_products_counts_the_products_of_two_dense_matrices() -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.rand(n, 20) < 0.3 for n in (7, 9))
    products = roofline.sparse_products(a.sum(0).tolist(), b.sum(0).tolist())
    assert products == int((a.long() @ b.long().T).sum())
    with pytest.raises(ValueError, match="shorter"):
        roofline.sparse_products([1, 2], [1])


def test_similarity_and_info_nce() -> None:
    cost = roofline.similarity(5, 7, 3, pairs=11)
    assert (cost.written, cost.flops) == (5 * 7 * 4, 22)
    assert roofline.info_nce(5, 7, 3, 11, backward=True).flops == 3 * cost.flops
    assert roofline.info_nce(5, 7, 3, 11).written < cost.written


def test_train_step_is_one_gemm_and_sparse_terms() -> None:
    n, d, h, k, k_aux = 64, 16, 256, 4, 8
    cost = roofline.train_step(n, d, h, k, k_aux)
    # decodes at k, 4k and aux, twice that backward, and the encoder's share of dW
    sparse = 3 * (k + 4 * k + k_aux) + (4 * k + k_aux)
    assert cost.flops == 2 * n * d * (h + sparse)
    with_contrast = roofline.train_step(n, d, h, k, k_aux, pairs=1000)
    assert with_contrast.flops - cost.flops == 3 * 2 * 1000
    assert cost.written == 4 * 4 * (h * d + h + d)


def test_search_scans_postings() -> None:
    cost = roofline.search(1e6, n_queries=10, top_k=5)
    assert (cost.read, cost.written, cost.flops) == (4e6, 10 * 5 * 12, 2e6)


def test_costs_add_up() -> None:
    total = Cost(1, 2, 3, "bfloat16") + Cost(10, 20, 30, "bfloat16")
    assert total == Cost(11, 22, 33, "bfloat16")
    assert (Cost(read=1) + Cost(flops=2, dtype="bfloat16")).dtype == "bfloat16"
    with pytest.raises(ValueError, match="no common ceiling"):
        Cost(flops=1) + Cost(flops=1, dtype="bfloat16")


def test_floor_is_the_larger_of_memory_and_compute(machine: Machine) -> None:
    compute = Cost(read=8 * MB, flops=1e9)
    assert roofline.floor_seconds(compute, machine, 1) == pytest.approx(0.01)
    assert roofline.bound_by(compute, machine, 1) == "compute"
    memory = replace(compute, flops=1.0)
    assert roofline.floor_seconds(memory, machine, 1) == pytest.approx(8 * MB / 10e9)
    assert roofline.bound_by(memory, machine, 1) == "memory"
    assert roofline.floor_seconds(Cost(), machine, 1) == 0.0


def test_what_is_read_and_written_copies_and_the_rest_streams(machine: Machine) -> None:
    write_heavy, read_heavy = Cost(read=8 * MB, written=24 * MB), Cost(read=24 * MB, written=8 * MB)
    copied = 2 * 8 * MB / 8e9
    assert roofline.memory_seconds(write_heavy, machine, 1) == pytest.approx(copied + 16 * MB / 5e9)
    assert roofline.memory_seconds(read_heavy, machine, 1) == pytest.approx(copied + 16 * MB / 10e9)


def test_bandwidth_follows_the_working_set(machine: Machine) -> None:
    assert machine.bandwidth("read", 1, MB / 4) == 100e9
    assert machine.bandwidth("read", 1, 2 * MB) == pytest.approx(55e9)  # half way in its log
    assert machine.bandwidth("read", 1, 64 * MB) == 10e9


def test_a_thread_count_that_was_not_measured_is_held_to_the_next_larger(machine: Machine) -> None:
    assert machine.flops(2, "float32") == machine.flops(4, "float32") == 4e11
    assert machine.flops(16, "bfloat16") == 16e11
    assert machine.flops(1, "float16") == machine.flops(1, "float32")


def test_measure_machine_gives_finite_ceilings_and_restores_the_threads() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    measured = roofline.measure_machine((1, 2), quick=True)
    assert torch.get_num_threads() == before
    for kind in ("read", "fill", "copy"):
        one, two = (measured.bandwidth(kind, threads, 4 * MB) for threads in (1, 2))
        assert 1e8 < one <= two < 1e14
    assert 1e7 < measured.flops(1, "float32") <= measured.flops(2, "float32") < 1e16


def test_measuring_sees_the_time_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, *[t for call in range(3) for t in (call, call + 0.5)], *[9.0] * 9])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(now))
    assert roofline._best_seconds(lambda: None, seconds=0.0) in (0.5, 1.0)


def test_import_needs_no_torch() -> None:
    code = "import sys, csrkern.roofline; assert 'torch' not in sys.modules, 'torch imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpu_ceilings_need_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        machine = roofline.measure_gpu()
        assert roofline.floor_seconds(Cost(read=1e9), machine, 1) > 0
    else:
        with pytest.raises(RuntimeError, match="PyTorch sees no CUDA device"):
            roofline.measure_gpu()
