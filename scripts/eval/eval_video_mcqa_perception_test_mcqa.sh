#!/usr/bin/env bash
# Perception Test, multiple choice. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" perception_test "$@"
