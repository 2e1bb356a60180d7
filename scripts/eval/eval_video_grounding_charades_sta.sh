#!/usr/bin/env bash
# Charades-STA: spans of time, IoU and R@1. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" charades_sta "$@"
