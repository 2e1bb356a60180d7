#!/usr/bin/env bash
# MSVD-QA; JUDGE= names the judge. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" msvd_qa "$@"
