#!/usr/bin/env bash
# MSVC, correctness and detailedness; JUDGE= names the judge. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" msvc "$@"
