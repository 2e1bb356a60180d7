#!/usr/bin/env bash
# First stage: the connector alone, from captions (published recipe of VideoLLaMA 2.1).
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch.sh

export WANDB_PROJECT="${WANDB_PROJECT:-videollama2qwen2}"
GLOBAL_BATCH_SIZE="${GLOBAL_BATCH_SIZE:-256}"
LOCAL_BATCH_SIZE="${LOCAL_BATCH_SIZE:-8}"
DEEPSPEED="${DEEPSPEED-scripts/zero3.json}"
RUN_NAME="${RUN_NAME:-vllava_settings}"

launch "$@" -- \
    --model_type videollama2_qwen2 \
    --model_path Qwen/Qwen2-7B-Instruct \
    --vision_tower google/siglip-so400m-patch14-384 \
    --mm_projector_type stc_connector_v35 \
    --mm_vision_select_layer -2 \
    --num_frames 16 \
    --tune_mm_mlp_adapter True \
    --data_path "$DATA_DIR/videollava_pt/valley_llavaimage.json" \
    --data_folder "$DATA_DIR/videollava_pt/" \
    --learning_rate 1e-3 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/pretrain_$RUN_NAME"
