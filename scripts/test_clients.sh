#!/usr/bin/env bash
# Tests this package with programs that other people wrote, from nothing: installs clients of the API and TRL into FOLDER
# (default: a temporary one), then runs tests/serve/test_clients.py and tests/test_trl.py. Needs node and npm for the
# clients of Node; where promtool (of Prometheus) is on the PATH, it reads the metrics. Honours PYTHON= and VENV=.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
folder="$(realpath -m "${1:-$(mktemp -d)}")"
mkdir -p "$folder"
# Beside the environment, not in it. The clients bring their own versions of what they share with the server, which come
# first when both run in one process.
"$VENV_PYTHON" -m pip install -q --target "$folder/python" langchain-openai instructor litellm llm
if command -v npm >/dev/null; then
    (cd "$folder" && npm install --silent openai ai @ai-sdk/openai-compatible zod)
    export NODE_CLIENTS="$folder"
fi
# TRL runs with the torch and transformers of the environment, so pip must not bring others.
"$VENV_PYTHON" -m pip install -q --target "$folder/trl" --no-deps trl datasets dill multiprocess xxhash pandas \
    python-dateutil pytz tzdata six
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PYTHONPATH="$PWD:$folder/python" "$VENV_PYTHON" -m pytest -q -rs tests/serve/test_clients.py ||
    fail "tests failed, see above"
PYTHONPATH="$PWD:$folder/trl" "$VENV_PYTHON" -m pytest -q -rs tests/test_trl.py || fail "tests failed, see above"
