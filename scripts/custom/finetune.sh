#!/usr/bin/env bash
# Your own data: connector and language model, from the published connector.
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

defaults WANDB_PROJECT=videollama2qwen2 RUN_NAME=custom_sft \
    GLOBAL_BATCH_SIZE=128 LOCAL_BATCH_SIZE=4 DEEPSPEED=scripts/zero3.json

launch "$@" -- \
    "${NEW_MODEL[@]}" \
    --pretrain_mm_mlp_adapter DAMO-NLP-SG/VideoLLaMA2.1-7B-16F-Base/mm_projector.bin \
    --data_path "$DATA_DIR/custom_sft/custom.json" \
    --data_folder "$DATA_DIR/custom_sft/" \
    --image_aspect_ratio pad \
    --learning_rate 2e-5 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/finetune_$RUN_NAME"
