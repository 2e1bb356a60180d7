#!/usr/bin/env bash
# MMVU (validation, multiple choice). Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" mmvu "$@"
