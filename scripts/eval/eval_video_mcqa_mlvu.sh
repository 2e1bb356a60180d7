#!/usr/bin/env bash
# MLVU, multiple choice of the dev set. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" mlvu "$@"
