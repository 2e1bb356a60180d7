#!/usr/bin/env bash
# Trains the tiny model of the built-in world from nothing: data, starting parts, first stage (the connector, from
# captions), second stage (the language model, from dialogues and captions).
#
#   NPROC_PER_NODE=2 WORLD_SIZE=1 bash scripts/shapes/train.sh [flags of train.py for both stages, which override those below]
#
# Environment: RUN=runs/tiny (where everything goes), VIDEOS=30000, IMAGES=8000, ORDER_VIDEOS=5000 (files of the training
#   sets), SEED=1 (of the first one; the second has the next), OBJECTS=4 (of a scene at most, where it needs no more: with
#   one, a model learns in minutes what there is), WORKERS=2 (to write the sets),
#   TINY="--width 192 ..." (sizes and steps of the parts, see python -m videollama2.shapes.parts --help),
#   PRETRAIN_STEPS=100, FINETUNE_STEPS=6600, WARMUP (steps of both), and what scripts/launch.sh names (NPROC_PER_NODE=2 here);
#   QUICK=1 for other defaults of all these: three minutes on two cores instead of more than an hour, scenes of one object,
#   and a smaller model, which has learnt some of the ten types of questions.
# Started again after an interruption, it goes on where it stopped. The result is $RUN/checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

if [ -n "${QUICK:-}" ]; then
    RUN="${RUN:-runs/quick}" VIDEOS="${VIDEOS:-500}" IMAGES="${IMAGES:-100}" ORDER_VIDEOS="${ORDER_VIDEOS:-60}"
    OBJECTS="${OBJECTS:-1}"
    TINY="${TINY:---encoder-steps 150 --connector-steps 100 --vision-width 64 --vision-layers 3 --layers 3}"
    PRETRAIN_STEPS="${PRETRAIN_STEPS:-5}" FINETUNE_STEPS="${FINETUNE_STEPS:-450}" WARMUP="${WARMUP:-20}"
    GLOBAL_BATCH_SIZE="${GLOBAL_BATCH_SIZE:-8}" LOCAL_BATCH_SIZE="${LOCAL_BATCH_SIZE:-4}"
fi
RUN="${RUN:-runs/tiny}"
SEED="${SEED:-1}"
defaults GLOBAL_BATCH_SIZE=16 LOCAL_BATCH_SIZE=8 NPROC_PER_NODE=2 DEEPSPEED=none
PYTHON="$(find_python)"
read -r -a SIZES <<<"${TINY:-}"

# Two processes of one thread each use two cores better than one of two threads: the products are small.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$PYTHON" -m videollama2.shapes.sets --out "$RUN/train" --videos "${VIDEOS:-30000}" \
    --images "${IMAGES:-8000}" --seed "$SEED" --mcq-fraction 0.1 --workers "${WORKERS:-2}" ${OBJECTS:+--objects "$OBJECTS"}
# Only one dialogue in six asks which of two objects moved first, and that is learnt last: more of these.
"$PYTHON" -m videollama2.shapes.sets --out "$RUN/order" --videos "${ORDER_VIDEOS:-5000}" \
    --seed "$((SEED + 1))" --mcq-fraction 0.1 --workers "${WORKERS:-2}" --scenario order ${OBJECTS:+--objects "$OBJECTS"}
for SET in train order; do
    "$PYTHON" -m videollama2.shapes.captions --set "$RUN/$SET"
done
# This file is the last one written: the starting parts are whole when it is there.
if [ ! -f "$RUN/start/mm_projector.bin" ]; then
    "$PYTHON" -m videollama2.shapes.parts --out "$RUN/start" --seed 0 ${SIZES[@]+"${SIZES[@]}"}
fi

# stage ARGUMENTS OF THE SCRIPT -- FLAGS OF THE STAGE
stage() {
    launch "$@" \
        --model_type videollama2_qwen2 \
        --model_path "$RUN/start/llm" \
        --vision_tower "$RUN/start/clip" \
        --mm_projector_type stc_connector_v35 \
        --num_frames 8 \
        --model_max_length 512 \
        --bf16 False \
        --tf32 False \
        --gradient_checkpointing False \
        --lr_scheduler_type linear \
        --adam_beta2 0.99 \
        --dataloader_num_workers 1 \
        --dataloader_pin_memory False \
        --logging_steps 25 \
        --save_steps 200 \
        --save_total_limit 2 \
        --seed 0
}

# The decoder knows no language yet, so little can be learnt through it: few steps, and small ones, which leave the tokens
# where the words are. A stage that is finished says so and has nothing to do.
stage --max_steps "${PRETRAIN_STEPS:-100}" "$@" -- \
    --tune_mm_mlp_adapter True \
    --pretrain_mm_mlp_adapter "$RUN/start/mm_projector.bin" \
    --data_path "$RUN/train/captions.json" "$RUN/order/captions.json" \
    --output_dir "$RUN/pretrain" \
    --learning_rate 1e-5 \
    --group_by_modality_length False \
    --warmup_steps "${WARMUP:-20}"

stage --max_steps "${FINETUNE_STEPS:-6600}" "$@" -- \
    --pretrain_mm_mlp_adapter "$RUN/pretrain/mm_projector.bin" \
    --freeze_mm_mlp_adapter True \
    --data_path "$RUN/train/train.json" "$RUN/train/captions.json" \
    "$RUN/order/train.json" "$RUN/order/train.json" "$RUN/order/train.json" "$RUN/order/captions.json" \
    --output_dir "$RUN/checkpoint" \
    --learning_rate 1e-3 \
    --warmup_steps "${WARMUP:-100}" \
    --weight_decay 0.05 \
    --max_grad_norm 1.0
