#!/usr/bin/env bash
# The built-in set (made when missing) through MVBench's runner, by default with the built-in model. Options: run.sh.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && export DATA="${DATA:-eval/moving_shapes}" MODEL="${MODEL:-videollama2-tiny}"
"${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}" \
    -m videollama2.shapes.sets --out "$DATA" --videos "${VIDEOS:-1000}" --seed 20260 \
    --balanced-questions "${QUESTIONS:-1000}" --workers "${WORKERS:-2}" >/dev/null &&
    exec bash scripts/eval/run.sh moving_shapes "$@"
