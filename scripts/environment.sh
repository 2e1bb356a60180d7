# Sourced by quickstart.sh and test.sh: makes or reuses a virtual environment that holds requirements.txt.
#
#   PYTHON  interpreter to make the environment with (default python3; 3.10, 3.11 or 3.12)
#   VENV    folder of the environment (default .venv beside the scripts folder)
#
# Afterwards the working folder is the repository and $VENV_PYTHON is the environment's interpreter.

# Relative paths are meant from where the caller stands.
case "${PYTHON:-}" in ./* | ../* | */*) PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")" ;; esac
case "${VENV:-/}" in /*) ;; *) VENV="$PWD/$VENV" ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

prepare_environment() {
    local python="${PYTHON:-python3}" venv="${VENV:-$PWD/.venv}" stamp log
    VENV_PYTHON="$venv/bin/python"
    command -v "$python" >/dev/null || fail "there is no interpreter '$python'; set PYTHON= to a Python 3.10 to 3.12"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        fail "$("$python" --version) at '$python' is not supported; set PYTHON= to a Python 3.10 to 3.12"
    # The stamp is written last, so an interrupted installation is taken up again.
    stamp="$(cat requirements.txt setup.py | cksum | cut -d' ' -f1) $PWD"
    if [ -x "$VENV_PYTHON" ] && [ "$(cat "$venv/.videollama2-installed" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    log="$(mktemp)"
    echo "installing into $venv (a few minutes the first time) ..."
    [ -x "$VENV_PYTHON" ] || "$python" -m venv "$venv" >"$log" 2>&1 ||
        fail "cannot make a virtual environment in $venv: $(tail -n 1 "$log")"
    "$VENV_PYTHON" -m pip install --disable-pip-version-check -q -r requirements.txt >"$log" 2>&1 ||
        fail "installing requirements.txt failed: $(grep -i error "$log" | tail -n 1) (whole output: $log)"
    "$VENV_PYTHON" -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . >"$log" 2>&1 ||
        fail "installing this package failed: $(grep -i error "$log" | tail -n 1) (whole output: $log)"
    rm -f "$log"
    echo "$stamp" >"$venv/.videollama2-installed"
}
