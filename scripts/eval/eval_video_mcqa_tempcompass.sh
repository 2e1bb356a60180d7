#!/usr/bin/env bash
# TempCompass; its captioning task is the benchmark tempcompass_captioning of eval_video_cap_tempcompass.sh. Options and
# environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" tempcompass "$@"
