#!/usr/bin/env bash
# Joint stage: language model, both connectors and the audio encoder, from videos with their sound, sounds and videos;
# every batch holds them 2 : 1 : 1 (published recipe of VideoLLaMA2.1-7B-AV).
# AUDIO_STAGE: folder of the second audio stage, with audio_tower.bin and mm_projector_a.bin.
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

defaults WANDB_PROJECT=videollama2qwen2_audio RUN_NAME=audio \
    GLOBAL_BATCH_SIZE=128 LOCAL_BATCH_SIZE=4 DEEPSPEED=scripts/zero2.json
AUDIO_STAGE="${AUDIO_STAGE:-$OUTP_DIR/$WANDB_PROJECT/finetune_$RUN_NAME}"

launch "$@" -- \
    --model_type videollama2_qwen2 \
    --model_path DAMO-NLP-SG/VideoLLaMA2.1-7B-16F \
    --mm_projector_type stc_connector_v35 \
    --mm_vision_select_layer -2 \
    --num_frames 16 \
    --audio_tower "$AUDIO_STAGE/audio_tower.bin" \
    --mm_projector_a_type mlp2x_gelu \
    --pretrain_mm_mlp_adapter_a "$AUDIO_STAGE/mm_projector_a.bin" \
    --tune_mm_mlp_adapter_a True \
    --tune_audio_tower True \
    --tune_adapter_llm True \
    --data_path "$DATA_DIR/joint/stage3_video_audio.json" \
        "$DATA_DIR/joint/stage2_audio_subset_new.json" \
        "$DATA_DIR/joint/stage2_video_subset.json" \
    --va True False False \
    --joint_ratio 2 1 1 \
    --data_folder "$DATA_DIR/joint/" \
    --image_aspect_ratio pad \
    --group_by_modality_length False \
    --num_train_epochs 2 \
    --learning_rate 2e-5 \
    --save_steps 2000 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/va_joint_$RUN_NAME"
