#!/usr/bin/env bash
# Trains the tiny model of the built-in world from nothing: data, starting parts, training.
#
#   bash scripts/tiny/train.sh [flags of train.py, which override those below]
#
# Environment: RUN=runs/tiny (where everything goes), VIDEOS=30000, IMAGES=8000, ORDER_VIDEOS=5000 (files of the training
#   sets), SEED=1 (of the first one; the second has the next), PROCESSES=2, WORKERS=2 (to write the sets),
#   TINY="--width 192 ..." (sizes, see python -m videollama2.training.tiny --help),
#   PYTHON=/path/to/python or VENV=.venv.
# Started again after an interruption, it goes on where it stopped. The result is $RUN/checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON="${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}"
RUN="${RUN:-runs/tiny}"
SEED="${SEED:-1}"
read -r -a SIZES <<<"${TINY:-}"

"$PYTHON" -m videollama2.data.moving_shapes --out "$RUN/train" --videos "${VIDEOS:-30000}" \
    --images "${IMAGES:-8000}" --seed "$SEED" --mcq-fraction 0.1 --workers "${WORKERS:-2}"
# Only one dialogue in six asks which of two objects moved first, and that is learnt last: more of these.
"$PYTHON" -m videollama2.data.moving_shapes --out "$RUN/order" --videos "${ORDER_VIDEOS:-5000}" \
    --seed "$((SEED + 1))" --mcq-fraction 0.1 --scenario order --workers "${WORKERS:-2}"
for SET in train order; do
    "$PYTHON" -m videollama2.data.moving_shapes_captions --set "$RUN/$SET"
done
# This file is the last one written: the starting parts are whole when it is there.
if [ ! -f "$RUN/start/mm_projector.bin" ]; then
    "$PYTHON" -m videollama2.training.tiny --out "$RUN/start" --seed 0 ${SIZES[@]+"${SIZES[@]}"}
fi

# Two processes of one thread each use two cores better than one of two threads: the products are small.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" -m videollama2.train \
    --model_type videollama2_qwen2 \
    --model_path "$RUN/start/llm" \
    --vision_tower "$RUN/start/clip" \
    --mm_projector_type stc_connector_v35 \
    --pretrain_mm_mlp_adapter "$RUN/start/mm_projector.bin" \
    --freeze_mm_mlp_adapter True \
    --data_path "$RUN/train/train.json" "$RUN/train/captions.json" \
    "$RUN/order/train.json" "$RUN/order/train.json" "$RUN/order/train.json" "$RUN/order/captions.json" \
    --num_frames 8 \
    --model_max_length 512 \
    --output_dir "$RUN/checkpoint" \
    --max_steps 6600 \
    --per_device_train_batch_size 8 \
    --learning_rate 1e-3 \
    --lr_scheduler_type linear \
    --warmup_steps 100 \
    --weight_decay 0.05 \
    --adam_beta2 0.99 \
    --max_grad_norm 1.0 \
    --group_by_modality_length True \
    --dataloader_num_workers 1 \
    --dataloader_pin_memory False \
    --ddp_backend gloo \
    --ddp_find_unused_parameters False \
    --logging_steps 25 \
    --save_steps 200 \
    --save_total_limit 2 \
    --seed 0 \
    "$@"
