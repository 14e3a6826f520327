"""The native module's interface; see csrc/bindings/."""

from enum import IntEnum
from typing import Any

class DType(IntEnum):
    float32 = ...
    float16 = ...
    bfloat16 = ...

def isa() -> str: ...
def available_threads() -> int: ...
def multiplies_bfloat16() -> bool: ...
def topk_relu(
    pre: int,
    dtype: DType,
    n: int,
    h: int,
    row_stride: int,
    col_stride: int,
    latent_mask: int,
    k: int,
    values: int,
    indices: int,
    num_threads: int,
    /,
) -> None: ...
def __getattr__(name: str) -> Any: ...
