#!/usr/bin/env bash
# Build csrkern with each of some Python interpreters, and run the tests that fit it:
#
#     scripts/python_tests.sh python3.10 python3.13 python3.14t ...
#
# What is installed is tried without PyTorch. Where there is a wheel of PyTorch for the interpreter, the
# fast tests run as well. Interpreters that are not there are named. The C++ is compiled anew for each;
# CXX='ccache c++' compiles most of it once.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
summary=()
status=0
for name in "$@"; do
    interpreter=$("$name" -c "import sys; print(sys.executable)" 2> /dev/null) || {
        summary+=("$name: not there")
        continue
    }
    version=$("$interpreter" -c 'import sys, sysconfig
print("%d.%d.%d" % sys.version_info[:3] + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))')
    folder=$PWD/build/python-$version
    in_it() { PYTHONPATH='' "$folder/bin/python" "$@"; }
    install() { "$PYTHON" -m uv pip install --quiet --python "$folder" "$@"; }
    "$PYTHON" -m uv venv --quiet --clear --python "$interpreter" "$folder"
    install --only-binary :all: numpy
    CSRKERN_CUDA=0 install --no-deps --reinstall .
    in_it scripts/try_wheel.py --here
    done_with="index without PyTorch"
    if install --only-binary torch -c constraints.txt '.[test]' 2> "$folder/log"; then
        cp "$folder"/lib/python*/site-packages/csrkern/_C.*.so csrkern/
        PYTHONPATH=$PWD:$PWD/python "$folder/bin/python" -m pytest -m 'not slow' |
            tee "$folder/log" || status=1
        done_with="fast tests: $(tail -1 "$folder/log")"
    fi
    summary+=("Python $version: $done_with")
done
printf '%s\n' '' "${summary[@]}"
exit $status
