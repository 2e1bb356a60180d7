#!/usr/bin/env bash
# Video-MMMU. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" videommmu "$@"
