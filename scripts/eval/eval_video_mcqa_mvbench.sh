#!/usr/bin/env bash
# MVBench, 20 tasks. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" mvbench "$@"
