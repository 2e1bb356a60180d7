#!/usr/bin/env bash
# Second stage: connector and language model, after scripts/vllava/pretrain.sh (published recipe of VideoLLaMA 2.1).
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

defaults WANDB_PROJECT=videollama2qwen2 RUN_NAME=vllava_settings \
    GLOBAL_BATCH_SIZE=128 LOCAL_BATCH_SIZE=4 DEEPSPEED=scripts/zero3.json

launch "$@" -- \
    "${NEW_MODEL[@]}" \
    --pretrain_mm_mlp_adapter "$OUTP_DIR/$WANDB_PROJECT/pretrain_$RUN_NAME/mm_projector.bin" \
    --data_path "$DATA_DIR/videollava_sft/videochatgpt_llavaimage_tune.json" \
    --data_folder "$DATA_DIR/videollava_sft/" \
    --image_aspect_ratio pad \
    --learning_rate 2e-5 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/finetune_$RUN_NAME"
