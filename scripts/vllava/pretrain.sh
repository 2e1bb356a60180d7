#!/usr/bin/env bash
# First stage: the connector alone, from captions (published recipe of VideoLLaMA 2.1).
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

# Only the connector learns, so no optimizer state is worth sharding. Plain data-parallel training does without gathering the
# frozen weights for each layer and pass, as ZeRO-3 (published) does; a 7B model takes 16 GB of each GPU. On smaller ones:
# DEEPSPEED=scripts/zero3.json.
defaults WANDB_PROJECT=videollama2qwen2 RUN_NAME=vllava_settings \
    GLOBAL_BATCH_SIZE=256 LOCAL_BATCH_SIZE=8 DEEPSPEED=none

launch "$@" -- \
    "${NEW_MODEL[@]}" \
    --tune_mm_mlp_adapter True \
    --data_path "$DATA_DIR/videollava_pt/valley_llavaimage.json" \
    --data_folder "$DATA_DIR/videollava_pt/" \
    --learning_rate 1e-3 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/pretrain_$RUN_NAME"
