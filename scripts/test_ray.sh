#!/usr/bin/env bash
# Tests of the application on Ray Serve, from nothing: makes an environment with Ray (2.5 GB with torch), installs this
# package there, starts a cluster of two nodes on this machine, and kills a replica and a node under 32 clients. Prints
# the figures.
#
#   PYTHON       interpreter (3.10, 3.11 or 3.12; default python3)
#   VENV         folder of the environment (default .venv-ray beside the scripts folder)
#   RAY          what pip installs (default ray[serve]==2.60.0)
#
# Arguments go to pytest.
set -euo pipefail
unset CDPATH
case "${VENV:-/}" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-$PWD/.venv-ray}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if ! "$venv/bin/python" -c 'import ray.serve, videollama2.serve, pytest, yaml' 2>/dev/null; then
    echo "installing Ray into $venv (a few minutes) ..."
    "$venv/bin/python" -m pip --disable-pip-version-check install -q "${RAY:-ray[serve]==2.60.0}" -e '.[ray]' pytest
fi
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_USAGE_STATS_ENABLED=0
exec "$venv/bin/python" -m pytest tests/engines/test_ray.py -q -s -p no:cacheprovider "$@"
