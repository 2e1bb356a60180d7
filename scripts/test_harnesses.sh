#!/usr/bin/env bash
# Tests of the model in the harnesses lmms-eval and VLMEvalKit, from nothing: makes an environment for each (2.5 GB with
# torch), installs harness and package there as docs/evaluate.md says, and compares answers with the package's own engine.
#
#   bash scripts/test_harnesses.sh [lmms_eval] [vlmeval]      default: both
#
#   PYTHON       interpreter (3.10, 3.11 or 3.12; default python3)
#   VENVS        folder of the environments (default .venv-harnesses beside the scripts folder)
set -euo pipefail
unset CDPATH
case "${VENVS:-/}" in /*) ;; *) VENVS="$PWD/$VENVS" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

install() { "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@"; }

# into_environment HARNESS REQUIREMENT: makes the environment $venv, if it is not there.
into_environment() {
    venv="${VENVS:-$PWD/.venv-harnesses}/$1"
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    if ! "$venv/bin/python" -c "import $1, videollama2.serve, pytest" 2>/dev/null; then
        echo "installing $2 into $venv (a few minutes) ..."
        # The harness comes second: lmms-eval names av<16, with which this package cannot read videos, and torchvision, which
        # both need, brings the torch that it was built for.
        install -e '.[eval,serve]' pytest
        install "$2"
        [ "$1" != lmms_eval ] || install --no-deps av==18.1.0 filelock==3.18.0
    fi
}

[ $# -gt 0 ] || set -- lmms_eval vlmeval
for name in "$@"; do
    case "$name" in
    lmms_eval) into_environment lmms_eval lmms-eval==0.7.3 ;;
    vlmeval) into_environment vlmeval ms-vlmeval==0.0.20 ;;
    *)
        echo "error: there is no harness $name (there are lmms_eval and vlmeval)" >&2
        exit 2
        ;;
    esac
    "$venv/bin/python" -m pytest "tests/engines/test_$name.py" -q -p no:cacheprovider
done
