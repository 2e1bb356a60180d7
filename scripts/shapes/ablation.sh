#!/usr/bin/env bash
# Compares the connectors of the paper's ablation on the built-in world: the same start, the same questions, three seeds.
#
#   bash scripts/shapes/ablation.sh [options of python -m videollama2.shapes.ablation]
#
# Environment: RUN=runs/ablation (where everything goes), SEEDS=3, STEPS=1500 (of each of the 7 x SEEDS runs), PYTHON or VENV
#   (interpreter); QUICK=1 for a few seconds of each connector, which learn nothing.
# Half an hour of one core. Started again after an interruption, it goes on where it stopped. The table, with intervals, is
# $RUN/results.md, the plot $RUN/results.svg.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

SMALL=()
if [ -n "${QUICK:-}" ]; then
    RUN="${RUN:-runs/ablation-quick}" SEEDS="${SEEDS:-2}" STEPS="${STEPS:-5}"
    SMALL=(--encoder-steps 5 --clips 60 --test-clips 40)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the products are too small for more
exec "$(find_python)" -m videollama2.shapes.ablation --out "${RUN:-runs/ablation}" --seeds "${SEEDS:-3}" \
    --steps "${STEPS:-1500}" ${SMALL[@]+"${SMALL[@]}"} "$@"
