#!/usr/bin/env bash
# VideoMME without subtitles; with them: --subtitles. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" videomme "$@"
