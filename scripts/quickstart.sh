#!/usr/bin/env bash
# From a fresh machine to answers: installs into .venv, then asks the built-in tiny model about a bundled video and image.
# Honours PYTHON= and VENV= (see environment.sh). Needs no network once it is installed.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
HF_HUB_OFFLINE=1 "$VENV_PYTHON" -m videollama2 demo || fail "the demo failed, see above"
