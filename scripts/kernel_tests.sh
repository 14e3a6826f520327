#!/usr/bin/env bash
# The kernel tests, or other arguments for pytest, under another version of Triton than the
# environment has:
#
#     scripts/kernel_tests.sh 3.6.0 [PYTEST ARGUMENTS]
#
# It is installed into a folder of its own, first on the path; the environment stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
shift
PYTHON=${PYTHON:-python3}
folder=build/triton-$version
if [ ! -f "$folder/.installed" ]; then
    # The interpreter of 3.6 makes numbers of arrays of one element, which later NumPy refuses.
    "$PYTHON" -m pip install --quiet --no-deps --upgrade --target "$folder" \
        "triton==$version" 'numpy<2.4'
    touch "$folder/.installed"
fi
export PYTHONPATH="$PWD/$folder:$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
found=$("$PYTHON" -c 'import triton; print(triton.__version__)')
[ "$found" = "$version" ] || { echo "expected Triton $version, Python imports $found" >&2; exit 1; }
echo "Triton $found"
"$PYTHON" -m pytest "${@:-tests/kernels}"
"$PYTHON" scripts/gpu/aot.py --check --targets "${AOT_TARGET:-sm_90}"
