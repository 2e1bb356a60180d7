#!/usr/bin/env bash
# ActivityNet-QA; JUDGE= names the judge. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" activitynet_qa "$@"
