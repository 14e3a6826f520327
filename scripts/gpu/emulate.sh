#!/usr/bin/env bash
# emulate.sh triton|cuda [pytest arguments]: GPU kernels on their compiled PTX, without a GPU.
#
# PTXEMU is the folder of an emulator of PTX (default ../shared/tools/ptxemu); without one, nothing
# runs. `triton` runs tests/kernels on what Triton makes for EMU_SM=90 (or 80); `cuda` the tests of
# the index on what nvcc makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
PTXEMU=${PTXEMU:-../shared/tools/ptxemu}
if [ ! -e "$PTXEMU/run" ]; then
    echo "emulate: skipped, there is no emulator of PTX at $PTXEMU"
    exit 0
fi
PTXEMU=$(realpath "$PTXEMU")
export PYTHON=${PYTHON:-python3} PYTHONPATH="$PWD:$PWD/python" EMU_OUT=${EMU_OUT:-$PWD/build/ptxemu}
part=$1
shift
if [ "$part" = cuda ]; then
    exec "$PTXEMU/run" cuda "$@"
fi
mkdir -p "$EMU_OUT"
export PYTHONPATH="$PTXEMU:$PYTHONPATH"
exec "$PYTHON" -m pytest -p emulated_ptx -p no:cacheprovider -q "$@"
