#!/usr/bin/env bash
# Your own data: connector and language model, from the published connector.
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch.sh

export WANDB_PROJECT="${WANDB_PROJECT:-videollama2qwen2}"
GLOBAL_BATCH_SIZE="${GLOBAL_BATCH_SIZE:-128}"
LOCAL_BATCH_SIZE="${LOCAL_BATCH_SIZE:-4}"
DEEPSPEED="${DEEPSPEED-scripts/zero3.json}"
RUN_NAME="${RUN_NAME:-custom_sft}"

launch "$@" -- \
    --model_type videollama2_qwen2 \
    --model_path Qwen/Qwen2-7B-Instruct \
    --vision_tower google/siglip-so400m-patch14-384 \
    --mm_projector_type stc_connector_v35 \
    --mm_vision_select_layer -2 \
    --num_frames 16 \
    --pretrain_mm_mlp_adapter DAMO-NLP-SG/VideoLLaMA2.1-7B-16F-Base/mm_projector.bin \
    --data_path "$DATA_DIR/custom_sft/custom.json" \
    --data_folder "$DATA_DIR/custom_sft/" \
    --image_aspect_ratio pad \
    --learning_rate 2e-5 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/finetune_$RUN_NAME"
