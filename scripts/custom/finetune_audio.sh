#!/usr/bin/env bash
# Second audio stage: audio projector and encoder, from questions about sounds (published recipe of VideoLLaMA2.1-7B-AV).
# AUDIO_TOWER: Microsoft's BEATs checkpoint. AUDIO_PROJECTOR: mm_projector_a.bin of the first stage.
# Environment and arguments: see scripts/launch.sh. Started again after an interruption, it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

defaults WANDB_PROJECT=videollama2qwen2_audio RUN_NAME=audio \
    GLOBAL_BATCH_SIZE=128 LOCAL_BATCH_SIZE=4 DEEPSPEED=scripts/zero2.json
AUDIO_TOWER="${AUDIO_TOWER:-$DATA_DIR/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt}"
AUDIO_PROJECTOR="${AUDIO_PROJECTOR:-$OUTP_DIR/$WANDB_PROJECT/pretrain_$RUN_NAME/mm_projector_a.bin}"

launch "$@" -- \
    --model_type videollama2_qwen2 \
    --model_path DAMO-NLP-SG/VideoLLaMA2.1-7B-16F \
    --audio_tower "$AUDIO_TOWER" \
    --mm_projector_a_type mlp2x_gelu \
    --pretrain_mm_mlp_adapter_a "$AUDIO_PROJECTOR" \
    --tune_mm_mlp_adapter_a True \
    --tune_audio_tower True \
    --data_path_a "$DATA_DIR/audio/stage2_audio_text.json" \
    --data_folder "$DATA_DIR/audio/" \
    --group_by_modality_length False \
    --num_train_epochs 2 \
    --learning_rate 2e-5 \
    --save_steps 2000 \
    --run_name "$RUN_NAME" \
    --output_dir "$OUTP_DIR/$WANDB_PROJECT/finetune_$RUN_NAME"
