#!/usr/bin/env bash
# The old name of scripts/shapes/eval.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../shapes/eval.sh" "$@"
