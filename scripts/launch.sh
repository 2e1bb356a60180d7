# Sourced by the training scripts: processes, batch sizes and the call of train.py, the same for all of them.
#
#   bash scripts/vllava/finetune.sh [WORLD_SIZE [NPROC_PER_NODE]] [flags of train.py, which override the script's]
#
#   WORLD_SIZE=1         nodes                       MASTER_ADDR=127.0.0.1  address of the first node
#   NPROC_PER_NODE=8     processes of each node      MASTER_PORT=16666      its port
#   RANK=0               number of this node         PYTHON, VENV=.venv     interpreter
#   GLOBAL_BATCH_SIZE    samples of one step         LOCAL_BATCH_SIZE       samples of one process at a time
#   MAX_RESTARTS=0       how often all processes begin again, from the last checkpoint, after one of them has died
#   STOP_SECONDS=600     how long a run may take to write its checkpoint after SIGTERM, SIGUSR1 (Slurm's --signal) or Ctrl-C
#   DATA_DIR=datasets    OUTP_DIR=work_dirs          DEEPSPEED              a JSON file, or none for plain DDP
#
# A script names its `defaults` of these variables and calls `launch "$@" -- FLAGS`.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export WANDB_PROJECT
[ -n "${DEEPSPEED-unset}" ] || DEEPSPEED=none # an empty value is a choice too

# The parts that the published models of version 2.1 start from.
NEW_MODEL=(
    --model_type videollama2_qwen2
    --model_path Qwen/Qwen2-7B-Instruct
    --vision_tower google/siglip-so400m-patch14-384
    --mm_projector_type stc_connector_v35
    --mm_vision_select_layer -2
    --num_frames 16
)

DATA_DIR="${DATA_DIR:-datasets}"
OUTP_DIR="${OUTP_DIR:-work_dirs}"

fail() {
    echo "error: $1" >&2
    exit 2
}

# defaults NAME=VALUE ...: set the variables that the caller has not set.
defaults() {
    local each name
    for each in "$@"; do
        name="${each%%=*}"
        [ -n "${!name:-}" ] || printf -v "$name" %s "${each#*=}"
    done
}

find_python() {
    echo "${PYTHON:-$([ -x "${VENV:-.venv}/bin/python" ] && echo "${VENV:-.venv}/bin/python" || echo python3)}"
}

# hand_on SIGNAL: give a signal to the launcher, or keep it until there is one.
hand_on() {
    if [ -n "$launcher" ]; then kill "-$1" "$launcher" 2>/dev/null || true; else early="$1"; fi
}

# launch ARGUMENTS OF THE SCRIPT -- ITS OWN FLAGS
launch() {
    local positional=() overrides=() flags=()
    while [ $# -gt 0 ] && [ "$1" != "--" ]; do
        case "$1" in
        --*) break ;;
        *) positional+=("$1") ;;
        esac
        shift
    done
    while [ $# -gt 0 ] && [ "$1" != "--" ]; do
        overrides+=("$1")
        shift
    done
    [ $# -gt 0 ] && shift
    flags=("$@")
    [ ${#positional[@]} -le 2 ] || fail "at most two numbers come before the flags: nodes and processes of each node"

    local nodes="${WORLD_SIZE:-${positional[0]:-1}}" processes="${NPROC_PER_NODE:-${positional[1]:-8}}"
    local number
    for number in "$nodes" "$processes" "$GLOBAL_BATCH_SIZE" "$LOCAL_BATCH_SIZE"; do
        case "$number" in
        '' | *[!0-9]* | 0) fail "nodes, processes and batch sizes must be positive numbers, got '$number'" ;;
        esac
    done
    for number in "${RANK:=0}" "${MAX_RESTARTS:=0}"; do
        case "$number" in
        *[!0-9]*) fail "RANK and MAX_RESTARTS must be numbers from 0, got '$number'" ;;
        esac
    done
    [ "$RANK" -lt "$nodes" ] || fail "RANK $RANK is the number of a node, and $nodes nodes have numbers from 0 to $((nodes - 1))"
    local together=$((nodes * processes * LOCAL_BATCH_SIZE))
    [ $((GLOBAL_BATCH_SIZE % together)) -eq 0 ] ||
        fail "GLOBAL_BATCH_SIZE $GLOBAL_BATCH_SIZE is not a multiple of $nodes nodes x $processes processes x LOCAL_BATCH_SIZE $LOCAL_BATCH_SIZE = $together"
    local accumulation=$((GLOBAL_BATCH_SIZE / together))
    echo "$nodes nodes x $processes processes x $LOCAL_BATCH_SIZE samples x $accumulation steps = $GLOBAL_BATCH_SIZE samples"

    local sharding=()
    [ "${DEEPSPEED:-none}" = none ] || sharding=(--deepspeed "$DEEPSPEED")
    # Set before the launcher starts, since a signal in between would end this shell alone.
    local launcher='' code=0 told='' early='' signal
    for signal in TERM USR1 INT; do
        trap "told=SIG$signal; hand_on $signal" "$signal"
    done
    "$(find_python)" -m torch.distributed.run \
        --nnodes "$nodes" \
        --nproc_per_node "$processes" \
        --master_addr "${MASTER_ADDR:-127.0.0.1}" \
        --master_port "${MASTER_PORT:-16666}" \
        --node_rank "$RANK" \
        --max_restarts "$MAX_RESTARTS" \
        --signals_to_handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
        --shutdown_timeout "${STOP_SECONDS:-600}" \
        -m videollama2.train \
        ${sharding[@]+"${sharding[@]}"} \
        --per_device_train_batch_size "$LOCAL_BATCH_SIZE" \
        --per_device_eval_batch_size 4 \
        --gradient_accumulation_steps "$accumulation" \
        --num_train_epochs 1 \
        --model_max_length 2048 \
        --lr_scheduler_type cosine \
        --warmup_steps 0.03 \
        --weight_decay 0. \
        --bf16 True \
        --tf32 True \
        --gradient_checkpointing True \
        --group_by_modality_length True \
        --dataloader_num_workers 4 \
        --save_strategy steps \
        --save_steps 500 \
        --save_total_limit 99 \
        --logging_steps 1 \
        --report_to tensorboard \
        "${flags[@]}" \
        ${overrides[@]+"${overrides[@]}"} &
    # A shell that waits for a program in the foreground hears of no signal before that has ended.
    launcher=$!
    [ -z "$early" ] || hand_on "$early"
    wait "$launcher" || code=$?
    while kill -0 "$launcher" 2>/dev/null; do
        wait "$launcher" || code=$?
    done
    trap - TERM USR1 INT
    [ "$code" -ne 0 ] || return 0
    if [ -n "$told" ]; then
        echo "stopped by $told; run the same command to continue from the last checkpoint" >&2
    else
        # The launcher has put a list of its own calls behind what the process said.
        echo "error: training ended with code $code; if a line above begins with 'error:', it says why" >&2
    fi
    return "$code"
}
