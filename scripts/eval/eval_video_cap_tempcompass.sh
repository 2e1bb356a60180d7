#!/usr/bin/env bash
# TempCompass, captioning; JUDGE= names the judge. The other tasks are the benchmark tempcompass of
# eval_video_mcqa_tempcompass.sh. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" tempcompass_captioning "$@"
