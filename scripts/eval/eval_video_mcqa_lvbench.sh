#!/usr/bin/env bash
# LVBench. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" lvbench "$@"
