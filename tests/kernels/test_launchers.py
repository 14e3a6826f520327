"""Every launch says whether products and sums may be fused, which the interpreter never does."""

from __future__ import annotations

import ast
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "csrkern" / "kernels"
# Kernels that fusing cannot change: they compare, count, copy, only bound a sum, or add products of
# float32 in double, which are exact.
UNCHANGED = {
    "topk_relu_kernel", "topk_relu_backward_kernel", "count_kernel", "offsets_kernel",
    "place_kernel", "round_rows_kernel", "product_kernel", "decide_kernel",
    "exact_maxima_kernel", "decide_unproved_kernel",
}  # fmt: skip


def launches() -> list[tuple[str, ast.Call]]:
    return [
        (call.func.value.id, call)
        for path in KERNELS.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Subscript)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id.endswith("_kernel")
    ]


def test_launches_compared_with_the_cpu_round_every_product():
    found = launches()
    assert len({kernel for kernel, _ in found}) > 18
    for kernel, call in found:
        fusion = [k.value for k in call.keywords if k.arg == "enable_fp_fusion"]
        if kernel in UNCHANGED:
            continue
        assert fusion, f"{kernel}: pass enable_fp_fusion=False, or say why it cannot matter"
        assert ast.unparse(fusion[0]) == "False", kernel
