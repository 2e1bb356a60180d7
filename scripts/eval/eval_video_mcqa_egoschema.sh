#!/usr/bin/env bash
# EgoSchema: the public answers scored, a submission file for the rest. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" egoschema "$@"
