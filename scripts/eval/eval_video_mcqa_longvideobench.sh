#!/usr/bin/env bash
# LongVideoBench, validation. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" longvideobench "$@"
