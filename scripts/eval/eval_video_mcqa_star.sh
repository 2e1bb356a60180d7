#!/usr/bin/env bash
# STAR (validation). Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" star "$@"
