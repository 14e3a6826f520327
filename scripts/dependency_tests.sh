#!/usr/bin/env bash
# The fast tests, or other arguments for pytest, with the oldest dependencies that pyproject.toml
# allows, or with the newest that there are:
#
#     scripts/dependency_tests.sh oldest|newest [PYTEST ARGUMENTS]
#
# They are installed by uv into an environment of their own, build/oldest or build/newest; csrkern
# is taken from this folder, as it was built.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:?oldest or newest}
shift
case $which in oldest) resolution=lowest-direct ;; newest) resolution=highest ;; *) exit 2 ;; esac
PYTHON=${PYTHON:-python3}
folder=build/$which
if [ ! -f "$folder/.installed" ]; then
    "$PYTHON" -m uv venv --quiet --clear --python "$PYTHON" "$folder"
    "$PYTHON" -m uv pip install --quiet --python "$folder" --resolution "$resolution" \
        -r pyproject.toml --extra test
    touch "$folder/.installed"
fi
"$PYTHON" -m uv pip list --quiet --python "$folder" |
    grep -E '^(faiss|numpy|pyarrow|rich|safetensors|scikit|scipy|torch|triton|typer)'
export PYTHONPATH="$PWD:$PWD/python"
[ $# -gt 0 ] || set -- -m 'not slow'
"$folder/bin/python" -m pytest "$@"
