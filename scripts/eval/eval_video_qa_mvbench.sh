#!/usr/bin/env bash
# MVBench, under the name in the published README. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" mvbench "$@"
