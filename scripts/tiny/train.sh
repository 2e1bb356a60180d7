#!/usr/bin/env bash
# The old name of scripts/shapes/train.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../shapes/train.sh" "$@"
