#!/usr/bin/env bash
# Accuracy of a model of the built-in world on 1000 held-out questions, per question type, beside chance and the accuracy
# with shuffled frames.
#
#   bash scripts/shapes/eval.sh [MODEL] [options of videollama2 eval run]
#
# MODEL: folder or videollama2-tiny (default). Environment: DATA=runs/tiny/test (the held-out set, made when missing),
#   VIDEOS=1000, QUESTIONS=1000, SEED=20260, WORKERS=2, PYTHON=/path/to/python or VENV=.venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON="${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}"
DATA="${DATA:-runs/tiny/test}"
MODEL="videollama2-tiny"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    MODEL="$1"
    shift
fi

"$PYTHON" -m videollama2.shapes.sets --out "$DATA" --videos "${VIDEOS:-1000}" \
    --seed "${SEED:-20260}" --balanced-questions "${QUESTIONS:-1000}" --workers "${WORKERS:-2}" >/dev/null
exec "$PYTHON" -m videollama2 eval run moving_shapes --shuffle-frames --model-path "$MODEL" --data "$DATA" "$@"
