#!/usr/bin/env bash
# The built-in set with sound (made when missing), seen and heard. MODEL: a model that hears. Options: run.sh.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && export DATA="${DATA:-eval/sounding_shapes}"
"${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}" \
    -m videollama2.shapes.sets --out "$DATA" --videos "${VIDEOS:-1000}" --seed 20261 --sound \
    --balanced-questions "${QUESTIONS:-1000}" --workers "${WORKERS:-2}" >/dev/null &&
    exec bash scripts/eval/run.sh sounding_shapes "$@"
