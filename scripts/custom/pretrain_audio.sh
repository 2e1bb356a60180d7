#!/usr/bin/env bash
# First audio stage: the audio projector alone, from captions of sounds (published recipe of VideoLLaMA2.1-7B-AV).
# AUDIO_TOWER: Microsoft's BEATs checkpoint (fine-tuned iter3+ AS2M cpt2).
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

defaults WANDB_PROJECT=videollama2qwen2_audio RUN_NAME=audio \
    GLOBAL_BATCH_SIZE=1024 LOCAL_BATCH_SIZE=32 DEEPSPEED=scripts/zero2.json
AUDIO_TOWER="${AUDIO_TOWER:-$DATA_DIR/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt}"

launch "$@" -- \
    --model_type videollama2_qwen2 \
    --model_path DAMO-NLP-SG/VideoLLaMA2.1-7B-16F \
    --audio_tower "$AUDIO_TOWER" \
    --mm_projector_a_type mlp2x_gelu \
    --tune_mm_mlp_adapter_a True \
    --data_path_a "$DATA_DIR/audio/stage1_pretrain.json" \
    --data_folder "$DATA_DIR/audio/" \
    --group_by_modality_length False \
    --learning_rate 1e-3 \
    --save_steps 1000 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/pretrain_$RUN_NAME"
