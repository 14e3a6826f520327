"""`pytest -p emulated_ptx`: kernel tests on the PTX that Triton makes, run by an emulator.

scripts/gpu/emulate.sh finds the emulator, which is not part of this project. It looks for a module
by a name that it does not have here, to replace what launches need no longer.
"""

from __future__ import annotations

from types import SimpleNamespace

import csrkern.kernels

vars(csrkern.kernels)["encode_propose"] = SimpleNamespace(Proposer=SimpleNamespace(multiply=None))

from emuplugin import *  # noqa: E402, F403
