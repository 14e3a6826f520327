#!/usr/bin/env bash
# Everything that wants a GPU, in one command and under nine minutes; what says most comes first.
#
#     benchmarks/gpu/run.sh      (build smoke bench_first profile test bench sanitize pytest)
#     benchmarks/gpu/run.sh build index    (the index: up to seventeen minutes more; what was measured
#                                           is kept, so a run may be cut into several)
#
# Needs what a CUDA machine with PyTorch has: python3 with torch, triton, pytest, setuptools and
# ninja, a C++ compiler, and nothing from the network. State lies in build/gpu: a part that passed is not
# done again for the same commit unless FRESH=1. All parts together end after 530 seconds: the last ones get
# what is left. Two files go to OUT (default build/gpu) at the end, or when the run is cut: results.json,
# and run.tar.gz with all logs and results. Where there is no GPU the same steps go through the Triton
# interpreter, at tiny sizes and without times.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-python3}
state=build/gpu
OUT=${OUT:-$state}
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
export CSRKERN_CACHE="$PWD/$state/choices"
export TRITON_CACHE_DIR="$PWD/build/triton" # kept, or brought along
mkdir -p "$state" "$OUT"
[ "${FRESH:-0}" = 1 ] && rm -f "$state"/*.done
stamp=$(git rev-parse --short HEAD 2>/dev/null || echo none)
failed=0
marker=gpu
slower=1 # what limits are multiplied by
parts=("$@")
end=99999 # in seconds
if [ $# -eq 0 ]; then
    parts=(build smoke bench_first profile test bench sanitize pytest)
    end=530
fi
size=(--out "$state/results.json")
first=(--shapes S1 S4 flex-sae-32 flex-sae-64 flex-sae-128 TwELL)
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo 'no GPU: interpreting kernels, timing nothing'
    export TRITON_INTERPRET=1
    marker=interpret
    slower=8
    end=99999
    size=(--tiny --out "$state/tiny.json")
    first=(--only topk_relu)
fi

bring_out() {
    tar --create --gzip --file "$OUT/run.new" --exclude=run.tar.gz --exclude=run.new -C build gpu
    mv "$OUT/run.new" "$OUT/run.tar.gz"
    if [ "$OUT" != "$state" ] && [ -s "$state/results.json" ]; then
        cp "$state/results.json" "$OUT/results.json"
    fi
}
trap bring_out EXIT
trap 'exit 143' TERM INT

# part NAME SECONDS COMMAND...: runs it once a commit, with a limit, its output in a log.
part() {
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    if [ "$(cat "$state/$name.done" 2>/dev/null)" = "$stamp" ]; then
        echo "$name: done before"
        return
    fi
    seconds=$((seconds * slower < end - began ? seconds * slower : end - began))
    if [ "$seconds" -lt 5 ]; then
        echo "$name: left out, no time is left"
        failed=1
    elif timeout "$seconds" "$@" >"$state/$name.log" 2>&1; then
        echo "$stamp" >"$state/$name.done"
        echo "$name: passed in $((SECONDS - began)) s"
    else
        echo "$name: FAILED after $((SECONDS - began)) s, the end of $state/$name.log:"
        tail -n 20 "$state/$name.log"
        failed=1
    fi
}

# with_tool NAME SECONDS PROGRAM COMMAND...: a part, where there is a GPU and the program.
with_tool() {
    if [ "$marker" = gpu ] && command -v "$3" >/dev/null; then
        part "$1" "$2" "${@:4}"
    else
        echo "$1: skipped, no GPU or no $3"
    fi
}

for name in "${parts[@]}"; do
    case $name in
        build) part build 90 "$PYTHON" benchmarks/gpu/build.py ;;
        smoke) part smoke 40 "$PYTHON" -m pytest tests/kernels/test_public.py -m "$marker" ;;
        bench_first) part bench_first 100 "$PYTHON" benchmarks/gpu/bench.py "${size[@]}" "${first[@]}" ;;
        profile)
            with_tool profile 45 ncu ncu --set basic --section MemoryWorkloadAnalysis \
                --section WarpStateStats --kernel-name 'regex:_kernel$' --csv \
                "$PYTHON" benchmarks/gpu/bench.py --shapes S1 --once
            ;;
        test)
            part test 130 "$PYTHON" -m pytest tests/kernels tests/training/test_graphed.py \
                tests/training/test_steps.py -m "$marker" -rs
            ;;
        bench) part bench 100 "$PYTHON" benchmarks/gpu/bench.py "${size[@]}" ;;
        sanitize)
            with_tool sanitize 45 compute-sanitizer compute-sanitizer --tool memcheck --error-exitcode 9 \
                "$PYTHON" -m pytest tests/kernels -m gpu -k 'writes_every_slot or transpose_equals'
            ;;
        pytest)
            part pytest 60 "$PYTHON" -m pytest --benchmark --benchmark-size=tiny -k topk_relu \
                --benchmark-results="$state"
            ;;
        index)
            part index_test 200 bash benchmarks/gpu/index.sh test "$marker"
            with_tool index_sanitize 300 compute-sanitizer bash benchmarks/gpu/index.sh sanitize
            [ "$marker" = gpu ] || continue
            part index_times 500 bash benchmarks/gpu/index.sh times "$state/index.json"
            ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0"; echo "unknown part: $name"; exit 2 ;;
    esac
done
for name in bench_first bench index_times; do
    [ -s "$state/$name.log" ] && tail -n 60 "$state/$name.log"
done
exit "$failed"
