#!/usr/bin/env bash
# NExT-QA, multiple choice. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" nextqa "$@"
