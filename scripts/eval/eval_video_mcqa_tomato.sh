#!/usr/bin/env bash
# TOMATO. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" tomato "$@"
