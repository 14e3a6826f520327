from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from csrkern import SparseCodes
from csrkern.arguments import check_choice, check_positive
from csrkern.codes.sparse import check_codes
from csrkern.ops.validation import (
    check_k,
    check_labels,
    check_latent_mask,
    check_same,
    check_tensor,
)

ONES = torch.ones(2, 3)
CODES = SparseCodes(ONES[:, :1], torch.zeros(2, 1, dtype=torch.int32), 5)
CLASSES = torch.tensor([0, 1, 1, 2])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_right_tensors_come_back(dtype):
    value = ONES.to(dtype)
    for shape in [(2, 3), (None, 3), (2, None), (None, None)]:
        assert check_tensor("x", value, shape) is value
    assert check_tensor("x", value[0, 0], ()).dim() == 0
    assert check_tensor("x", value[:0], (0, 3)).numel() == 0
    check_same("x", value, "y", value.clone())


def test_right_values_come_back():
    assert [check_k(k, 7, "h") for k in (1, 7)] == [1, 7]
    assert check_codes("a", CODES) is CODES
    assert check_codes("a", CODES, 5) is CODES
    for temperature in (0.2, 1, np.float64(0.5), 1e-30):
        assert check_positive("temperature", temperature) == temperature
        assert type(check_positive("temperature", temperature)) is float
    check_choice("reduction", "sum", ("mean", "sum"))


def test_right_masks_and_labels_come_back():
    assert check_latent_mask(None, ONES) is None
    assert check_latent_mask(torch.ones(3, dtype=torch.bool), ONES) is None
    assert check_labels(None, 4, 4, False) is None
    assert check_labels(CLASSES, 4, 4, False) is CLASSES
    one, other = check_labels(CLASSES, 4, 4, True)
    assert one is CLASSES
    assert other is CLASSES
    pair = (CLASSES, CLASSES[:2])
    assert check_labels(pair, 4, 2, True) is pair
    for dtype in (torch.int8, torch.int32, torch.bool):
        check_labels(CLASSES.to(dtype), 4, 4, False)


WRONG = [
    (
        check_tensor,
        ("x", ONES.numpy(), (2, 3)),
        TypeError,
        "x: expected a torch.Tensor, got ndarray; use torch.from_numpy(x)",
    ),
    (check_tensor, ("x", None, ()), TypeError, "x: expected a torch.Tensor, got NoneType"),
    (check_tensor, ("x", ONES, (2, 4)), ValueError, "x: expected shape [2, 4], got [2, 3]"),
    (check_tensor, ("x", ONES, (None, 4)), ValueError, "x: expected shape [any, 4], got [2, 3]"),
    (check_tensor, ("x", ONES, (None,)), ValueError, "x: expected shape [any], got [2, 3]"),
    (check_tensor, ("x", ONES, (2, 3, 1)), ValueError, "x: expected shape [2, 3, 1], got [2, 3]"),
    *(
        (
            check_tensor,
            ("w", ONES.to(dtype), (2, 3)),
            TypeError,
            "w: expected float32, float16, bfloat16 or float64, "
            f"got {dtype}; convert it with w.float()",
        )
        for dtype in (torch.int64, torch.bool, torch.complex64)
    ),
    (
        check_same,
        ("w", ONES.half(), "x", ONES),
        TypeError,
        "w is torch.float16 but x is torch.float32; use one dtype",
    ),
    (check_same, ("w", ONES, "x", ONES.to("meta")), ValueError, "w is on cpu but x is on meta"),
    (check_k, (0, 7, "h"), ValueError, "k: expected 1 <= k <= h = 7, got 0"),
    (check_k, (8, 7, "dim"), ValueError, "k: expected 1 <= k <= dim = 7, got 8"),
    (check_k, (2.0, 7, "h"), TypeError, "k: expected an int, got float"),
    (check_k, (True, 7, "h"), TypeError, "k: expected an int, got bool"),
    (check_k, (None, 7, "h"), TypeError, "k: expected an int, got NoneType"),
    (
        check_codes,
        ("a", ONES),
        TypeError,
        "a: expected SparseCodes, got Tensor; "
        "SparseCodes.from_dense / from_scipy / from_torch convert other forms",
    ),
    (check_codes, ("b", CODES, 6), ValueError, "b: expected codes over 6 latents, got 5"),
    *(
        (check_positive, ("x", value), ValueError, f"x: expected a {kind} number, got {value}")
        for kind, value in (
            ("positive", 0.0),
            ("positive", -0.1),
            ("finite", float("inf")),
            ("finite", float("nan")),
        )
    ),
    (check_positive, ("x", "0.2"), TypeError, "x: expected a number, got str"),
    (check_positive, ("x", True), TypeError, "x: expected a number, got bool"),
    (check_positive, ("x", ONES[0, 0]), TypeError, "x: expected a number, got Tensor"),
    (
        check_choice,
        ("reduction", "avg", ("mean", "sum")),
        ValueError,
        "reduction: expected one of 'mean', 'sum', got 'avg'",
    ),
    (
        check_latent_mask,
        (ONES[0], ONES),
        TypeError,
        "latent_mask: expected a bool tensor, got torch.float32",
    ),
    (
        check_latent_mask,
        ([True] * 3, ONES),
        TypeError,
        "latent_mask: expected a bool tensor, got list",
    ),
    (
        check_latent_mask,
        (ONES.bool(), ONES),
        ValueError,
        "latent_mask: expected shape [3], got [2, 3]",
    ),
    (
        check_latent_mask,
        (ONES[0].bool(), ONES.to("meta")),
        ValueError,
        "latent_mask is on cpu but pre is on meta",
    ),
    (
        check_labels,
        (CLASSES.float(), 4, 4, False),
        TypeError,
        "labels_a: expected an integer tensor, got torch.float32",
    ),
    (
        check_labels,
        ([0, 1, 1, 2], 4, 4, False),
        TypeError,
        "labels_a: expected an integer tensor, got list",
    ),
    (check_labels, (CLASSES, 5, 5, False), ValueError, "labels_a: expected shape [5], got [4]"),
    (
        check_labels,
        (CLASSES[None], 4, 4, True),
        ValueError,
        "labels_a: expected shape [4], got [1, 4]",
    ),
    (check_labels, (CLASSES, 4, 5, True), ValueError, "labels_b: expected shape [5], got [4]"),
    (
        check_labels,
        ((CLASSES, CLASSES.double()), 4, 4, True),
        TypeError,
        "labels_b: expected an integer tensor, got torch.float64",
    ),
    (
        check_labels,
        ((CLASSES, CLASSES), 4, 4, False),
        ValueError,
        "labels: a pair (labels_a, labels_b) goes with a and b; give one tensor",
    ),
    (
        check_labels,
        ((CLASSES,), 4, 4, True),
        ValueError,
        "labels: a pair (labels_a, labels_b) goes with a and b; give one tensor",
    ),
]


@pytest.mark.parametrize(
    ("check", "arguments", "error", "message"),
    WRONG,
    ids=[f"{check.__name__}-{i}" for i, (check, *_) in enumerate(WRONG)],
)
def test_errors_name_argument_expectation_and_what_came(check, arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check(*arguments)


def test_checks_pass_through_compiled_functions():
    def checked(x, codes):
        check_tensor("x", x, (None, 3))
        check_same("x", x, "codes.values", codes.values)
        check_k(x.shape[0], 50, "n")
        return x * len(check_codes("codes", codes, 5))

    torch._dynamo.reset()
    compiled = torch.compile(checked, fullgraph=True, dynamic=True, backend="eager")
    for n in (2, 7, 12):
        assert torch.equal(compiled(torch.ones(n, 3), CODES), 2 * torch.ones(n, 3))
