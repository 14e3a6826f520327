#!/usr/bin/env bash
# Random calls of everything public, on a build with AddressSanitizer, for ATTACK_SECONDS.
#
# The build lies in build/attack, a copy of the source, so that the usual module stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${PYTHON:-python3}")
seconds=${ATTACK_SECONDS:-60}
here=build/attack

mkdir -p "$here"
git ls-files -z --cached --others --exclude-standard csrkern csrc python tests scripts benchmarks examples \
    setup.py pyproject.toml conftest.py README.md LICENSE |
    tar --null --files-from=- --create --ignore-failed-read 2>/dev/null | tar --extract --directory "$here"
cd "$here"
flags='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined'
CSRKERN_CUDA=0 CXXFLAGS=$flags "$PYTHON" setup.py --quiet build_ext --inplace

libraries=
for name in asan ubsan stdc++; do
    libraries+=${libraries:+:}$("${CXX:-c++}" -print-file-name="lib$name.so")
done
export PYTHONPATH="$PWD:$PWD/python" OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
run() {
    LD_PRELOAD=$libraries "$PYTHON" -m pytest -q -x -p no:cacheprovider --hypothesis-seed="$seed" "$@"
}
SECONDS=0
for ((seed = 1; SECONDS < seconds; ++seed)); do
    CSRKERN_FUZZ_EXAMPLES=500 run tests/ops/test_surface_fuzz.py
    CSRKERN_FUZZ_EXAMPLES=30 run tests/index/test_index_fuzz.py
done
echo "No finding in $SECONDS seconds, $((seed - 1)) rounds."
