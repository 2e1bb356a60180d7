#!/usr/bin/env bash
# Clotho captions; JUDGE= names the judge. Options and environment: run.sh. The usual model here is VideoLLaMA2.1-7B-AV.
export MODEL="${MODEL:-DAMO-NLP-SG/VideoLLaMA2.1-7B-AV}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" clotho "$@"
