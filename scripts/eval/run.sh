#!/usr/bin/env bash
# Runs one benchmark, a process per GPU; the scripts beside it call this.
#
#   bash scripts/eval/run.sh BENCHMARK [options of "videollama2 eval run"]
#
# Environment:
#   CUDA_VISIBLE_DEVICES  GPUs to use (default: all there are)
#   NPROC                 processes (default: one per GPU; 1 without a GPU)
#   MODEL                 name or folder (default DAMO-NLP-SG/VideoLLaMA2-7B)
#   DATA, OUTPUT          data folder, output folder (default: as "videollama2 eval layout" says, eval_output/)
#   JUDGE                 model that judges open answers; "local" compares texts. Its key: OPENAI_API_KEY
#   JUDGE_URL             its address, for any server that speaks OpenAI's protocol
#   PYTHON or VENV        interpreter, or environment that holds it (default .venv, else python3)
#
# Relative paths are meant from the repository. The same command again goes on where it was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON="${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}"
BENCHMARK="${1:?usage: bash scripts/eval/run.sh BENCHMARK [options]}"
shift

if [ -z "${NPROC:-}" ]; then
    GPUS="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
    NPROC="$((GPUS > 1 ? GPUS : 1))"
fi

# Options given on the command line come last and win.
set -- --model-path "${MODEL:-DAMO-NLP-SG/VideoLLaMA2-7B}" \
    ${DATA:+--data "$DATA"} ${OUTPUT:+--output "$OUTPUT"} \
    ${JUDGE:+--judge-model "$JUDGE"} ${JUDGE_URL:+--judge-url "$JUDGE_URL"} "$@"
if [ "$NPROC" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NPROC" \
        -m videollama2.eval run "$BENCHMARK" "$@"
fi
exec "$PYTHON" -m videollama2.eval run "$BENCHMARK" "$@"
