#!/usr/bin/env bash
# TempCompass: multiple choice, yes or no, caption matching. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" tempcompass "$@"
