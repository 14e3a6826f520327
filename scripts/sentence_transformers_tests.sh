#!/usr/bin/env bash
# The tests of the sentence-transformers integration, or other arguments for pytest, under another
# version of it than the environment has:
#
#     scripts/sentence_transformers_tests.sh 5.1.0 [PYTEST ARGUMENTS]
#
# It is installed into a folder of its own, first on the path; the environment stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
shift
PYTHON=${PYTHON:-python3}
folder=build/sentence-transformers-$version
if [ ! -f "$folder/.installed" ]; then
    # With what it needs of its time; the rest, PyTorch before all, is there.
    "$PYTHON" -m pip install --quiet --no-deps --upgrade --target "$folder" \
        "sentence-transformers==$version" \
        'transformers<5' 'tokenizers<0.23' 'huggingface-hub<1' 'datasets<4.5'
    touch "$folder/.installed"
fi
export PYTHONPATH="$PWD/$folder:$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
found=$("$PYTHON" -c 'import sentence_transformers as st; print(st.__version__)')
[ "$found" = "$version" ] || { echo "expected $version, Python imports $found" >&2; exit 1; }
echo "sentence-transformers $found"
[ $# -gt 0 ] || set -- tests/integrations/test_sentence_transformers*.py
"$PYTHON" -m pytest "$@"
