#!/usr/bin/env bash
# Shows that a reward teaches: the built-in model forgets one type of questions, and earns it back without any label.
#
#   NPROC_PER_NODE=2 WORLD_SIZE=1 bash scripts/shapes/grpo.sh [flags of train.py for the last stage]
#
# First, the model learns wrong answers to questions of the type, drawn at random among their candidates. Then
# --objective grpo samples its answers to other clips and rewards those that are right. The logs of both stages have
# eval_answer_accuracy, the share of exact answers to questions about clips of a third set.
#
# Environment: RUN=runs/grpo, TYPE=direction, SEEDS="1 2 3" (a run of both stages for each), VIDEOS=300 of each training
#   set, TEST_VIDEOS=120, WEAKEN_STEPS=40, STEPS=40, GROUP=8, and what scripts/launch.sh names (NPROC_PER_NODE=2 here).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

RUN="${RUN:-runs/grpo}"
TYPE="${TYPE:-direction}"
defaults GLOBAL_BATCH_SIZE=8 LOCAL_BATCH_SIZE=4 NPROC_PER_NODE=2
DEEPSPEED=none
PYTHON="$(find_python)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

number=0
for SET in wrong right test; do
    number=$((number + 1))
    VIDEOS_OF_SET="${VIDEOS:-300}"
    [ "$SET" = test ] && VIDEOS_OF_SET="${TEST_VIDEOS:-120}"
    "$PYTHON" -m videollama2.shapes.sets --out "$RUN/$SET" --videos "$VIDEOS_OF_SET" --seed "$((900 + number))" \
        --questions-per-item 10 --workers 2
    "$PYTHON" - "$RUN/$SET" "$TYPE" "$SET" <<'PY'
import json
import random
import sys
from pathlib import Path

folder, kind, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
draw = random.Random(0)
records = []
for row in json.loads((folder / "questions.json").read_text()):
    if row["type"] != kind or "video" not in row:
        continue
    answer = draw.choice(row["candidates"]) if name == "wrong" else row["answer"]
    turns = [{"from": "human", "value": f"<video>\n{row['question']}"}, {"from": "gpt", "value": answer}]
    records.append({"id": row["id"], "video": row["video"], "conversations": turns})
(folder / "one_type.json").write_text(json.dumps(records))
PY
done

# stage OUTPUT STEPS -- FLAGS: a stage that is finished says so and has nothing to do.
stage() {
    local output="$1" steps="$2"
    shift 3
    launch -- \
        --model_path "$MODEL" \
        --model_max_length 512 \
        --bf16 False \
        --tf32 False \
        --gradient_checkpointing False \
        --group_by_modality_length False \
        --freeze_mm_mlp_adapter True \
        --lr_scheduler_type constant \
        --warmup_steps 0 \
        --dataloader_num_workers 0 \
        --dataloader_pin_memory False \
        --logging_steps 5 \
        --save_strategy no \
        --eval_data_path "$RUN/test/one_type.json" \
        --eval_strategy steps \
        --eval_on_start True \
        --per_device_eval_batch_size 8 \
        --max_steps "$steps" \
        --output_dir "$output" \
        "$@"
}

for SEED in ${SEEDS:-1 2 3}; do
    MODEL=videollama2-tiny
    stage "$RUN/weakened-$SEED" "${WEAKEN_STEPS:-40}" -- --data_path "$RUN/wrong/one_type.json" --learning_rate 1e-4 \
        --eval_steps "${WEAKEN_STEPS:-40}" --seed "$SEED"
    MODEL="$RUN/weakened-$SEED"
    stage "$RUN/earned-$SEED" "${STEPS:-40}" -- --data_path "$RUN/right/one_type.json" --learning_rate 1e-4 \
        --objective grpo --reward videollama2.training.rewards:exact_match --group_size "${GROUP:-8}" \
        --answer_tokens 6 --kl_beta 0 --eval_steps 20 --seed "$SEED" "$@"
done
"$PYTHON" - "$RUN" <<'PY'
import json
import sys
from pathlib import Path

for folder in sorted(Path(sys.argv[1]).glob("earned-*")):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    found = [(row["step"], f"{row['eval_answer_accuracy']:.1%}") for row in log if "eval_answer_accuracy" in row]
    print(folder.name, "exact answers:", ", ".join(f"step {step} {share}" for step, share in found))
PY
