#!/usr/bin/env bash
# Accuracy of a model of the built-in world that hears on 1000 held-out questions, per question type, beside chance and the
# accuracy in silence, without pictures, with shuffled frames and with shuffled parts of the sound.
#
#   bash scripts/shapes/eval_av.sh MODEL [options of videollama2 eval run]
#
# MODEL: videollama2-tiny-av, or the folder of a model, for example runs/tiny-av/checkpoint. Environment: DATA=runs/tiny-av/test (the held-out set, made
#   when missing), and that of scripts/eval/eval_sounding_shapes.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    echo "error: the first argument is the folder of a model" >&2
    exit 2
fi
export MODEL="$1" DATA="${DATA:-runs/tiny-av/test}"
shift
exec bash scripts/eval/eval_sounding_shapes.sh --muted --blank-frames --shuffle-frames --shuffle-windows "$@"
