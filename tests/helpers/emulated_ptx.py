"""`pytest -p emulated_ptx`: kernel tests on the PTX that Triton makes, run by an emulator.

scripts/gpu/emulate.sh finds the emulator, which is not part of this project. It knows the modules
of `encode` by the names that they have here.
"""

from __future__ import annotations

import csrkern.kernels
from csrkern.kernels.encode import propose, verified

vars(csrkern.kernels).update(encode_propose=propose, encode_verified=verified)

from emuplugin import *  # noqa: E402, F403
