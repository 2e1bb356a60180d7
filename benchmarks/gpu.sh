#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of at most eight minutes, without a network or a compiler.
#
#   bash benchmarks/gpu.sh OUT            on a machine with a GPU
#   bash benchmarks/gpu.sh OUT --smoke    the same parts at tiny shapes on a CPU, to see that they run
#
# Each part writes OUT/NAME.txt while it runs, and OUT/summary.txt gets a line with its exit code and its seconds. The most
# valuable part is first, and a part has a time limit of its own, so the call may be cut short at any moment. The first
# lines of OUT/summary.txt say what the machine is, and which packages that some parts need are missing.
set -uo pipefail

[ $# -ge 1 ] || { echo "usage: bash benchmarks/gpu.sh OUT [--smoke]" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
smoke=${2:-}
[ -z "$smoke" ] || [ "$smoke" = --smoke ] || { echo "gpu.sh: unknown option $smoke" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
# What a part has printed when its time is up would be lost in a buffer.
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
failed=0

part() { # NAME SECONDS COMMAND...: run one part
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.log"
  code=$?
  [ "$code" = 0 ] || failed=1
  echo "$name: exit code $code, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}

: >"$out/summary.txt"
if [ -n "$smoke" ]; then
  part golden 300 "$python" benchmarks/golden.py --device cpu --most 1
  part engine 300 "$python" benchmarks/engine.py --device cpu --model videollama2-tiny --new-tokens 3 --concurrent 2 \
    --repeat 1 --clients 3 --mixed 3
  part train-lora 300 "$python" benchmarks/train_step.py --device cpu --shape tiny --lora --batch 2 --steps 1
  part feeding 300 "$python" benchmarks/feeding.py --device cpu --shape tiny --clips 2 --threads 1
  exit "$failed"
fi

# Random models of real shapes are 17 and 3 GB, so they are made once, and in memory if there is room.
folder=${TMPDIR:-/tmp}
[ "$(df --output=avail -BG /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)" -ge 40 ] 2>/dev/null && folder=/dev/shm
export TMPDIR
TMPDIR=$(mktemp -d "$folder/videollama2-gpu.XXXXXX") || exit 1
trap 'rm -rf "$TMPDIR"' EXIT

"$python" - >>"$out/summary.txt" <<'END' || exit 1
from importlib.util import find_spec

import torch

print(torch.cuda.get_device_name(), "torch", torch.__version__)
absent = [name for name in ("av", "flash_attn", "fastapi", "httpx", "uvicorn", "peft", "pytest") if not find_spec(name)]
print("not installed:", ", ".join(absent) or "nothing")
END
part golden 45 "$python" benchmarks/golden.py --device cuda
part model-7b 60 "$python" benchmarks/random_model.py "$TMPDIR/7b" --shape 7b --hears
part engine 130 "$python" benchmarks/engine.py --device cuda --dtype bfloat16 --model "$TMPDIR/7b" --repeat 2 \
  --parts decoding prefill start together mixed
rm -rf "$TMPDIR/7b"
part graphs-equal 40 "$python" -m pytest -q -m gpu tests/inference/test_engine_exact.py -p no:cacheprovider
part train-lora 60 "$python" benchmarks/train_step.py --device cuda --shape 7b --lora
part train-full 30 "$python" benchmarks/train_step.py --device cuda --shape 0.5b --batch 8
part feeding 35 "$python" benchmarks/feeding.py --device cuda --shape 0.5b --clips 64
part serve 75 "$python" benchmarks/serve.py --shape 0.5b --clients 1 8 32 --requests 2 --repeat 1
exit "$failed"
