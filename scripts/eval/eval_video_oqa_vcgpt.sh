#!/usr/bin/env bash
# Video-ChatGPT, all five scores; JUDGE= names the judge. Options and environment: run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" videochatgpt "$@"
