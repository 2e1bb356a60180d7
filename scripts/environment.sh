# Sourced by quickstart.sh and test.sh: makes or reuses a virtual environment that holds requirements.txt.
#
#   PYTHON  interpreter to make the environment with (3.10, 3.11 or 3.12; default python3). Where it is set and the
#           environment is another interpreter's, the environment is made anew, if these scripts made it.
#   VENV    folder of the environment (default .venv beside the scripts folder)
#
# Afterwards the working folder is the repository and $VENV_PYTHON is the environment's interpreter.

# With it, "cd" may go elsewhere, and print where.
unset CDPATH
# Relative paths are meant from where the caller stands.
case "${PYTHON:-/}" in /*) ;; */*) PYTHON="$PWD/$PYTHON" ;; esac
case "${VENV:-/}" in /*) ;; *) VENV="$PWD/$VENV" ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# Version and home of an interpreter; the same for an environment and what it was made with. Empty if it is none.
interpreter() {
    "$1" -c 'import os, sys; print("%d.%d.%d in" % sys.version_info[:3], os.path.realpath(sys.base_prefix))' 2>/dev/null
}

# What a log says went wrong, in one line.
reason() {
    grep -iE 'error|no module' "$1" | tail -n 1 | grep . || grep . "$1" | tail -n 1
}

prepare_environment() {
    local venv="${VENV:-$PWD/.venv}" stamp_file stamp
    VENV_PYTHON="$venv/bin/python"
    stamp_file="$venv/.videollama2-installed"
    make_environment "$venv" "$stamp_file"
    stamp="$(cat requirements.txt setup.py | cksum | cut -d' ' -f1) $PWD"
    [ "$(cat "$stamp_file" 2>/dev/null)" = "$stamp" ] || install_packages "$venv" "$stamp_file" "$stamp"
}

# An environment of the interpreter asked for, new or the one that is there.
make_environment() {
    local venv="$1" stamp_file="$2" python="${PYTHON:-python3}" made wanted log is_new= is_ours=
    made="$(interpreter "$VENV_PYTHON")"
    if [ -n "$made" ] && [ -z "${PYTHON:-}" ]; then
        is_supported "$made" || fail "$venv holds Python $made, which is not 3.10 to 3.12; remove it or set VENV="
        return 0
    fi
    command -v "$python" >/dev/null || fail "there is no interpreter '$python'; set PYTHON= to a Python 3.10 to 3.12"
    wanted="$(interpreter "$python")"
    is_supported "$wanted" ||
        fail "'$python' (${wanted:-no Python 3}) is not supported; set PYTHON= to a Python 3.10 to 3.12"
    [ "$made" != "$wanted" ] || return 0
    [ -e "$venv" ] || is_new=1
    [ ! -e "$stamp_file" ] || is_ours=1
    # What somebody else made is not ours to empty.
    [ -z "$made" ] || [ -n "$is_ours" ] ||
        fail "$venv holds Python $made, PYTHON is $wanted; remove that folder or set VENV= to another"
    [ -z "$made" ] || echo "making $venv anew: it holds Python $made, PYTHON is $wanted"
    log="$(mktemp)"
    if ! "$python" -m venv ${is_ours:+--clear} "$venv" >"$log" 2>&1 || [ -z "$(interpreter "$VENV_PYTHON")" ]; then
        [ -z "$is_new" ] || rm -rf "$venv"
        fail "cannot make a virtual environment in $venv: $(reason "$log") (whole output: $log)"
    fi
    rm -f "$log"
}

is_supported() {
    case "$1" in 3.1[012].*) ;; *) return 1 ;; esac
}

install_packages() {
    local venv="$1" stamp_file="$2" stamp="$3" log
    # The stamp is written last, so an interrupted installation is taken up again.
    { : >"$stamp_file"; } 2>/dev/null || fail "cannot write into $venv"
    log="$(mktemp)"
    echo "installing into $venv (a few minutes the first time) ..."
    "$VENV_PYTHON" -m pip install --disable-pip-version-check -q -r requirements.txt >"$log" 2>&1 ||
        fail "installing requirements.txt failed: $(reason "$log") (whole output: $log)"
    "$VENV_PYTHON" -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . >"$log" 2>&1 ||
        fail "installing this package failed: $(reason "$log") (whole output: $log)"
    rm -f "$log"
    echo "$stamp" >"$stamp_file"
}
