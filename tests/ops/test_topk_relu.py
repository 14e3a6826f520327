from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from adversarial import adversarial_rows, assert_selects
from digests import ISAS, assert_runs_with
from hypothesis import given, settings
from hypothesis import strategies as st
from opchecks import assert_compiles_whole

import csrkern

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (2, 1), (16, 16), (17, 5), (100, 7), (127, 127), (130, 64), (1000, 32)]
SHAPES += [(1000, 999), (4096, 32), (4099, 300), (8192, 256), (8192, 1024), (6000, 5000)]


@pytest.mark.parametrize(("h", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_specification_on_adversarial_rows(h, k, dtype):
    for name, pre in adversarial_rows(h, k).items():
        pre = pre.to(dtype)
        codes = csrkern.topk_relu(pre, k)
        try:
            assert_selects(codes, pre, k)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{name}, h={h}, k={k}, {dtype}: {error}") from error


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_codes(isa):
    assert_runs_with(
        isa,
        "import torch, csrkern\n"
        "from adversarial import adversarial_rows, assert_selects\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16):\n"
        "    for h, k in ((1, 1), (100, 7), (1000, 32), (4099, 300), (4096, 1024), (130, 130)):\n"
        "        for name, pre in adversarial_rows(h, k).items():\n"
        "            pre = pre.to(dtype)\n"
        "            assert_selects(csrkern.topk_relu(pre, k), pre, k)\n",
    )


def test_unknown_instruction_set_is_named():
    run = subprocess.run(
        [sys.executable, "-c", "from csrkern import _C; _C.isa()"],
        env={**os.environ, "CSRKERN_ISA": "sse9"},
        capture_output=True,
        text=True,
    )
    message = "CSRKERN_ISA=sse9: expected one that this processor has: portable"
    assert message in run.stderr


@st.composite
def numbers(draw: st.DrawFn, n: int) -> torch.Tensor:
    """Any bits of float16, NaN included, or up to 8 numbers that repeat.

    Drawn as bytes, which takes a twentieth of the time of drawing one number after another.
    """
    if draw(st.booleans()):
        drawn = draw(st.binary(min_size=2 * n, max_size=2 * n))
        return torch.frombuffer(bytearray(drawn), dtype=torch.float16)
    element = st.one_of(st.floats(width=16), st.sampled_from([0.0, -0.0, 1.0, 2.0]))
    few = torch.tensor(draw(st.lists(element, min_size=1, max_size=8)))
    which = torch.tensor(list(draw(st.binary(min_size=n, max_size=n))))
    return few[which % len(few)]


@settings(max_examples=200)
@given(data=st.data())
def test_any_row(data):
    h = data.draw(st.integers(1, 400))
    k = data.draw(st.integers(1, h))
    row = data.draw(numbers(h))
    pre = torch.stack([row, row.flip(0)]).to(data.draw(st.sampled_from(DTYPES)))
    assert_selects(csrkern.topk_relu(pre, k), pre, k)


@pytest.mark.usefixtures("poisoned_empty")
def test_writes_every_slot():
    pre = -torch.ones(3, 50)
    pre[1, 4] = 1.0
    assert_selects(csrkern.topk_relu(pre, 9), pre, 9)


def test_strides():
    base = torch.randn(40, 300)
    for pre in (base.T, base[:, ::3], base[::2], base[:, 10:90], base[:1].expand(5, 300)):
        assert_selects(csrkern.topk_relu(pre, 8), pre, 8)
    flipped = base.flip(1).as_strided((3, 20), (0, 1))
    assert_selects(csrkern.topk_relu(flipped, 4), flipped, 4)


def test_no_rows():
    codes = csrkern.topk_relu(torch.empty(0, 10), 3)
    assert codes.shape == (0, 10)
    assert codes.values.shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_latent_mask(dtype):
    for h, k in [(64, 8), (1000, 32), (1000, 700)]:
        mask = torch.rand(h) < 0.3
        for pre in adversarial_rows(h, k).values():
            pre = pre.to(dtype)
            codes = csrkern.topk_relu(pre, k, latent_mask=mask)
            assert_selects(codes, pre, k, mask)
            assert bool(mask[codes.indices.long()][codes.active].all())


def test_truncation_is_the_code_at_smaller_k():
    pre = torch.randint(0, 9, (20, 200)).float()
    wide = csrkern.topk_relu(pre, 64)
    for k in (1, 5, 63, 64):
        assert wide.truncate(k).equal(csrkern.topk_relu(pre, k))


def test_gradient_reaches_positive_selected_entries_only():
    pre = torch.tensor([[0.0, 3.0, -1.0, 2.0], [-1.0, -2.0, 0.0, 0.5]], requires_grad=True)
    codes = csrkern.topk_relu(pre, 3)
    codes.values.backward(torch.full_like(codes.values, 7.0))
    assert pre.grad.tolist() == [[0.0, 7.0, 0.0, 7.0], [0.0, 0.0, 0.0, 7.0]]


def test_gradcheck_in_float64():
    pre = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: csrkern.topk_relu(p, 5).values, (pre,))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype):
    op = torch.ops.csrkern.topk_relu.default
    for requires_grad in (False, True):
        pre = torch.randn(6, 64, dtype=dtype, requires_grad=requires_grad)
        torch.library.opcheck(op, (pre, 5, None))
        torch.library.opcheck(op, (pre, 5, torch.rand(64) < 0.5))
    codes = csrkern.topk_relu(pre.detach(), 5)
    backward = torch.ops.csrkern.topk_relu_backward.default
    torch.library.opcheck(backward, (codes.values, codes.values, codes.indices, 64))


def test_compiles_whole_with_a_dynamic_batch():
    def loss(pre):
        return csrkern.topk_relu(pre, 4).values.square().sum()

    assert_compiles_whole(loss, lambda n: [torch.randn(n, 64, requires_grad=True)])


def test_compiled_function_may_return_codes():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda pre: csrkern.topk_relu(pre, 4), fullgraph=True, backend="aot_eager"
    )
    pre = torch.randn(5, 64)
    assert compiled(pre).equal(csrkern.topk_relu(pre, 4))


def test_thread_count_does_not_matter():
    pre = torch.randn(300, 2000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = csrkern.topk_relu(pre, 40)
        torch.set_num_threads(4)
        assert csrkern.topk_relu(pre, 40).equal(alone)
    finally:
        torch.set_num_threads(before)


def test_from_several_threads_at_once():
    inputs = [torch.randn(200, 1000) for _ in range(6)]
    expected = [csrkern.topk_relu(pre, 16) for pre in inputs]
    wrong = []

    def work(pre, want):
        for _ in range(20):
            if not csrkern.topk_relu(pre, 16).equal(want):
                wrong.append(1)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(pre, queue):
    queue.put(csrkern.topk_relu(pre, 3).indices.sum().item())


@pytest.mark.usefixtures("four_threads")
def test_in_a_forked_child():
    import multiprocessing

    csrkern.topk_relu(torch.randn(2000, 1000), 8)  # the pool has threads before the fork
    # Made here: PyTorch's own operators may hang in a fork of a process that used OpenMP.
    pre = torch.arange(800_000, dtype=torch.float32).reshape(2000, 400)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(pre, queue))
    child.start()
    assert queue.get(timeout=60) == 2000 * (399 + 398 + 397)
    child.join(timeout=60)


def test_flush_denormal_does_not_change_the_codes():
    pre = torch.randn(4, 200) * 1e-41
    expected = csrkern.topk_relu(pre, 9)
    torch.set_flush_denormal(True)
    try:
        codes = csrkern.topk_relu(pre, 9)
    finally:
        torch.set_flush_denormal(False)
    assert codes.equal(expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], 1), TypeError, "pre: expected a torch.Tensor, got list"),
        ((torch.ones(2, 3, dtype=torch.int32), 1), TypeError, "pre: expected float32"),
        ((torch.ones(3), 1), ValueError, r"pre: expected shape \[any, any\], got \[3\]"),
        ((torch.ones(2, 3), 4), ValueError, "k: expected 1 <= k <= h = 3, got 4"),
        ((torch.ones(2, 3), 0), ValueError, "k: expected 1 <= k <= h = 3, got 0"),
        ((torch.ones(2, 3), 1.5), TypeError, "k: expected an int, got float"),
    ],
)
def test_errors_teach(arguments, error, message):
    with pytest.raises(error, match=message):
        csrkern.topk_relu(*arguments)


def test_mask_errors_teach():
    with pytest.raises(TypeError, match="latent_mask: expected a bool tensor"):
        csrkern.topk_relu(torch.ones(2, 3), 1, latent_mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"latent_mask: expected shape \[3\]"):
        csrkern.topk_relu(torch.ones(2, 3), 1, latent_mask=torch.ones(4, dtype=torch.bool))
