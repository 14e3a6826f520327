#!/usr/bin/env bash
# CUDA's compiler from PyPI, for machines and containers without one: 100 MB into a folder.
#
#     CUDA_HOME=$(scripts/cuda_from_pypi.sh FOLDER) make wheel
set -euo pipefail
folder=${1:-build/cuda}
cuda=$folder/nvidia/cu13
if [ ! -e "$cuda/lib64" ]; then
    "${PYTHON:-python3}" -m pip install --quiet --no-deps --upgrade --target "$folder" \
        'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
        'nvidia-cuda-runtime==13.0.*' >&2
    ln -s lib "$cuda/lib64"  # where nvcc looks
fi
cd "$cuda"
pwd
