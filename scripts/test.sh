#!/usr/bin/env bash
# From a fresh machine to a passed test suite: installs into .venv, then runs all tests.
# Arguments go to pytest. Honours PYTHON= and VENV= (see environment.sh), and TEST_WORKERS= (default: one per core, 4
# at most). One more than there are cores is a little sooner on a quiet machine, and lets browsers and servers wait longer
# for their turn.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
# One torch thread per worker: two workers with two threads each are three times slower on two cores.
# (nproc itself obeys OMP_NUM_THREADS.)
workers="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
[ "$workers" -le 4 ] || workers=4
workers="${TEST_WORKERS:-$workers}"
# A test that never ends fails after a quarter of an hour, with what each thread was doing, and the others go on. No test
# takes a fifth of that, even on busy cores.
export PYTEST_TIMEOUT="${PYTEST_TIMEOUT:-900}"
# Tests start many interpreters, each of which would compile this package anew.
unset PYTHONDONTWRITEBYTECODE
# Files keep the order of tests/conftest.py, where the slow ones come first.
"$VENV_PYTHON" -m pytest -q -n "$workers" --dist loadfile --no-loadscope-reorder "$@" || {
    status=$?  # 1: tests failed; above: the suite itself did not come to its end
    echo "test.sh: tests failed, see above" >&2
    exit "$status"
}
