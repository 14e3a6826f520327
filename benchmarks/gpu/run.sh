#!/usr/bin/env bash
# Everything that wants a GPU, in one command and under nine minutes: build, test, measure.
#
#     benchmarks/gpu/run.sh [build] [test] [sanitize] [bench] [pytest]     (all of these by default)
#     benchmarks/gpu/run.sh build index     (the index: up to seventeen minutes more; what was
#                                            measured is kept, so a run may be cut into several)
#
# Needs what a CUDA machine with PyTorch has: python3 with torch, triton, pytest, setuptools and
# ninja, a C++ compiler, and nothing from the network. A part that is done is not done again for
# the same commit unless FRESH=1. OUT (default build/gpu) takes logs and results.json; the table of
# results comes last. Where there is no GPU the same steps go through the Triton interpreter, at
# tiny sizes and without times.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
[ "${FRESH:-0}" = 1 ] && rm -f "$OUT"/*.done
stamp=$(git rev-parse --short HEAD 2>/dev/null || echo none)
failed=0
marker=gpu
slower=1 # what limits are multiplied by
size=(--out "$OUT/results.json")
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo 'no GPU: interpreting kernels, timing nothing'
    export TRITON_INTERPRET=1
    marker=interpret
    slower=8
    size=(--tiny)
fi

# part NAME SECONDS COMMAND...: runs it once a commit, with a limit, its output in a log.
part() {
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    if [ "$(cat "$OUT/$name.done" 2>/dev/null)" = "$stamp" ]; then
        echo "$name: done before"
        return
    fi
    if timeout $((seconds * slower)) "$@" >"$OUT/$name.log" 2>&1; then
        echo "$stamp" >"$OUT/$name.done"
        echo "$name: passed in $((SECONDS - began)) s"
    else
        echo "$name: FAILED after $((SECONDS - began)) s, the end of $OUT/$name.log:"
        tail -n 20 "$OUT/$name.log"
        failed=1
    fi
}

sanitize() {
    local tool
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$PYTHON" -m pytest tests/kernels -m gpu -k 'writes_every_slot or transpose_equals' \
            || return
    done
}
export PYTHON
export -f sanitize

for name in "${@:-all}"; do
    case $name in
        build) part build 90 "$PYTHON" benchmarks/gpu/build.py ;;
        test)
            part test 150 "$PYTHON" -m pytest tests/kernels tests/training/test_graphed.py \
                tests/training/test_steps.py -m "$marker" -rs
            ;;
        sanitize)
            if [ "$marker" = gpu ] && command -v compute-sanitizer >/dev/null; then
                part sanitize 60 bash -c sanitize
            else
                echo 'sanitize: skipped, no GPU or no compute-sanitizer'
            fi
            ;;
        bench) part bench 150 "$PYTHON" benchmarks/gpu/bench.py "${size[@]}" ;;
        pytest)
            part pytest 60 "$PYTHON" -m pytest --benchmark --benchmark-size=tiny -k topk_relu \
                --benchmark-results="$OUT"
            ;;
        index)
            part index_test 200 bash benchmarks/gpu/index.sh test "$marker"
            [ "$marker" = gpu ] || continue
            if command -v compute-sanitizer >/dev/null; then
                part index_sanitize 300 bash benchmarks/gpu/index.sh sanitize
            else
                echo 'index_sanitize: skipped, no compute-sanitizer'
            fi
            part index_times 500 bash benchmarks/gpu/index.sh times "$OUT/index.json"
            ;;
        all) exec "$0" build test sanitize bench pytest ;;
        *) echo "unknown part $name: build, test, sanitize, bench, pytest, index"; exit 2 ;;
    esac
done
[ -s "$OUT/bench.log" ] && tail -n 60 "$OUT/bench.log"
[ -s "$OUT/index_times.log" ] && tail -n 40 "$OUT/index_times.log"
exit "$failed"
