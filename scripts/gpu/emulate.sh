#!/usr/bin/env bash
# emulate.sh triton|cuda [pytest arguments]: GPU kernels on their compiled PTX, without a GPU.
#
# PTXEMU is the folder of an emulator of PTX (default ../shared/tools/ptxemu); without one, nothing
# runs. `triton` runs tests/kernels on what Triton makes for EMU_SM=90 (or 80); `cuda` the tests of
# the index on what nvcc makes. A race that the emulator reports fails the test.
set -euo pipefail
cd "$(dirname "$0")/../.."
PTXEMU=${PTXEMU:-../shared/tools/ptxemu}
if [ ! -e "$PTXEMU/run" ]; then
    echo "emulate: skipped, there is no emulator of PTX at $PTXEMU"
    exit 0
fi
PTXEMU=$(realpath "$PTXEMU")
export PYTHON=${PYTHON:-python3} EMU_OUT=${EMU_OUT:-$PWD/build/ptxemu}
export PYTHONPATH="$PTXEMU:$PWD:$PWD/python:$PWD/tests/helpers"
part=$1
shift
mkdir -p "$EMU_OUT"
plugin=emulated_ptx
if [ "$part" = cuda ]; then
    if ! command -v nvcc >/dev/null; then
        echo "emulate: skipped the CUDA index, there is no nvcc"
        exit 0
    fi
    plugin=emulated_cuda
    "$PTXEMU/make_cuda.sh" . >"$EMU_OUT/make_cuda.log" 2>&1 || { tail -n 20 "$EMU_OUT/make_cuda.log"; exit 1; }
fi
exec "$PYTHON" -m pytest -p "$plugin" -p no:cacheprovider -q "$@"
