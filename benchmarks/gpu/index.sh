#!/usr/bin/env bash
# A step of the index on a GPU, for run.sh:
#
#     benchmarks/gpu/index.sh test gpu|interpret     tests on the GPU, or on a simulated one
#     benchmarks/gpu/index.sh sanitize               memory accesses, races, barriers
#     benchmarks/gpu/index.sh times RESULTS.json     equality on a million codes, then times
set -euo pipefail
tests=(tests/index/test_index_cuda.py tests/index/test_index_cuda_rerank.py tests/index/test_index_cuda_random.py)
case $1 in
    test)
        if [ "$2" = gpu ]; then
            exec "$PYTHON" -m pytest "${tests[@]}" -m gpu
        fi
        exec "$PYTHON" -m pytest "${tests[@]}"
        ;;
    sanitize)
        for tool in memcheck racecheck initcheck synccheck; do
            compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=csrkern \
                "$PYTHON" -m pytest "${tests[@]}" -m gpu -k 'filters_ids or says_what or norms'
        done
        ;;
    times) exec "$PYTHON" benchmarks/gpu/index.py --out "$2" ;;
esac
