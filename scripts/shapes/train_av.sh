#!/usr/bin/env bash
# Teaches the tiny model of the built-in world to hear: data, starting parts, and the three stages of the published audio
# models. Sight and language are those of videollama2-tiny, or of another model of this world.
#
#   NPROC_PER_NODE=2 WORLD_SIZE=1 bash scripts/shapes/train_av.sh [flags of train.py for all stages, which override those below]
#
# Environment: RUN=runs/tiny-av (where everything goes), MODEL=videollama2-tiny (which sees), VIDEOS=8000 (clips with sound),
#   SIGHT_VIDEOS=2000, SIGHT_IMAGES=800 (clips without, and pictures), SEED=11 (of the first set; the others have the next),
#   WORKERS=2 (to write the sets), PICTURES, SOUNDS (folders of photographs and of speech, say: with them, the model learns
#   to say that it knows moving shapes and their sounds alone), OUTSIDE=200 (files of each kind made from these),
#   HEARING_STEPS=500 (of the starting parts, see python -m videollama2.shapes.hearing_parts --help),
#   PRETRAIN_STEPS=50, FINETUNE_STEPS=50, JOINT_STEPS=2400, WARMUP (steps of all three), and what scripts/launch.sh names
#   (NPROC_PER_NODE=2 here).
# Started again after an interruption, it goes on where it stopped. The result is $RUN/checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

RUN="${RUN:-runs/tiny-av}"
SEED="${SEED:-11}"
defaults GLOBAL_BATCH_SIZE=16 LOCAL_BATCH_SIZE=8 NPROC_PER_NODE=2 DEEPSPEED=none
PYTHON="$(find_python)"

# Two processes of one thread each use two cores better than one of two threads: the products are small.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Few questions of a clip are about its sound: one of four turns, not of eight. Questions that need sight and sound are
# learnt last: as many clips as possible have one, and turns that only training has lead to their answers.
"$PYTHON" -m videollama2.shapes.sets --out "$RUN/heard" --videos "${VIDEOS:-8000}" --sound \
    --own-stories 1 --training-questions \
    --seed "$SEED" --questions-per-item 4 --mcq-fraction 0 --workers "${WORKERS:-2}"
"$PYTHON" -m videollama2.shapes.sets --out "$RUN/seen" --videos "${SIGHT_VIDEOS:-2000}" \
    --images "${SIGHT_IMAGES:-800}" \
    --seed "$((SEED + 1))" --questions-per-item 4 --mcq-fraction 0 --workers "${WORKERS:-2}"
"$PYTHON" -m videollama2.shapes.captions --set "$RUN/heard"
BOTH=("$RUN/heard/train.json") HEARD=("$RUN/heard/sounds.json") SEEN=("$RUN/seen/train.json")
VA=(True False False)
if [ -n "${PICTURES:-}" ] && [ -n "${SOUNDS:-}" ]; then
    "$PYTHON" -m videollama2.shapes.outside --out "$RUN/outside" --pictures "$PICTURES" --sounds "$SOUNDS" \
        --count "${OUTSIDE:-200}" --seed "$((SEED + 2))"
    BOTH+=("$RUN/outside/both.json") HEARD+=("$RUN/outside/heard.json") SEEN+=("$RUN/outside/seen.json")
    VA=(True True False False False False)
fi
# This file is the last one written: the starting parts are whole when it is there.
if [ ! -f "$RUN/start/mm_projector_a.bin" ]; then
    "$PYTHON" -m videollama2.shapes.hearing_parts --out "$RUN/start" --model "${MODEL:-videollama2-tiny}" \
        --seed 0 --steps "${HEARING_STEPS:-500}"
fi

# stage ARGUMENTS OF THE SCRIPT -- FLAGS OF THE STAGE
stage() {
    launch "$@" \
        --model_type videollama2_qwen2 \
        --model_path "$RUN/start/sight" \
        --mm_projector_a_type mlp2x_gelu \
        --tune_mm_mlp_adapter_a True \
        --num_frames 8 \
        --model_max_length 512 \
        --bf16 False \
        --tf32 False \
        --gradient_checkpointing False \
        --group_by_modality_length False \
        --lr_scheduler_type linear \
        --adam_beta2 0.99 \
        --dataloader_num_workers 1 \
        --dataloader_pin_memory False \
        --logging_steps 25 \
        --save_steps 200 \
        --save_total_limit 2 \
        --seed 0
}

# The decoder knows no word of sound yet, so little can be learnt through it: few steps, and small ones, which leave the
# tokens where the words are. A stage that is finished says so and has nothing to do.
stage --max_steps "${PRETRAIN_STEPS:-50}" "$@" -- \
    --audio_tower "$RUN/start/beats.pt" \
    --pretrain_mm_mlp_adapter_a "$RUN/start/mm_projector_a.bin" \
    --data_path_a "$RUN/heard/sound_captions.json" \
    --output_dir "$RUN/pretrain" \
    --learning_rate 1e-5 \
    --warmup_steps "${WARMUP:-10}"

stage --max_steps "${FINETUNE_STEPS:-50}" "$@" -- \
    --audio_tower "$RUN/start/beats.pt" \
    --pretrain_mm_mlp_adapter_a "$RUN/pretrain/mm_projector_a.bin" \
    --tune_audio_tower True \
    --data_path_a "$RUN/heard/sounds.json" \
    --output_dir "$RUN/finetune" \
    --learning_rate 1e-5 \
    --warmup_steps "${WARMUP:-10}"

# Of every eight, six are clips with their sound, one is a sound alone, one is a clip without sound or a picture.
stage --max_steps "${JOINT_STEPS:-2400}" "$@" -- \
    --audio_tower "$RUN/finetune/audio_tower.bin" \
    --pretrain_mm_mlp_adapter_a "$RUN/finetune/mm_projector_a.bin" \
    --tune_adapter_llm True \
    --data_path "${BOTH[@]}" "${HEARD[@]}" "${SEEN[@]}" \
    --va "${VA[@]}" \
    --joint_ratio 6 1 1 \
    --output_dir "$RUN/checkpoint" \
    --learning_rate 7e-4 \
    --warmup_steps "${WARMUP:-50}" \
    --weight_decay 0.05 \
    --max_grad_norm 1.0
