#!/usr/bin/env bash
# The index on a GPU: tests, memory accesses and races, then times. Part of run.sh.
#
#     benchmarks/gpu/index.sh gpu|interpret RESULTS.json
set -euo pipefail
if [ "$1" != gpu ]; then
    exec "$PYTHON" -m pytest tests/test_index_cuda.py
fi
"$PYTHON" -m pytest tests/test_index_cuda.py -m gpu
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=csrkern \
            "$PYTHON" -m pytest tests/test_index_cuda.py -m gpu -k 'filters_ids or says_what'
    done
fi
exec "$PYTHON" benchmarks/gpu/index.py --out "$2"
