#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of at most eight minutes, without a network or a compiler.
#
#   bash benchmarks/gpu.sh OUT            on a machine with a GPU
#   bash benchmarks/gpu.sh OUT --smoke    the same parts at tiny shapes on a CPU, to see that they run
#
# Each part writes OUT/NAME.txt when it ends, and OUT/summary.txt gets a line with its exit code and its seconds. The most
# valuable part is first, and a part has a time limit of its own, so the call may be cut short at any moment.
set -uo pipefail

[ $# -ge 1 ] || { echo "usage: bash benchmarks/gpu.sh OUT [--smoke]" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
smoke=${2:-}
[ -z "$smoke" ] || [ "$smoke" = --smoke ] || { echo "gpu.sh: unknown option $smoke" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
export HF_HUB_OFFLINE=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
failed=0

part() { # NAME SECONDS COMMAND...: run one part
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.log"
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

"$python" -c "import torch; print(torch.cuda.get_device_name(), torch.__version__)" >>"$out/summary.txt" || exit 1
part golden 50 "$python" benchmarks/golden.py --device cuda
part engine-graphs 100 "$python" benchmarks/engine.py --device cuda --dtype bfloat16 --repeat 2
part engine-no-graphs 80 "$python" benchmarks/engine.py --device cuda --dtype bfloat16 --repeat 2 --no-cuda-graphs
part graphs-equal 40 "$python" -m pytest -q -m gpu tests/inference/test_engine_exact.py -p no:cacheprovider
part train-lora 70 "$python" benchmarks/train_step.py --device cuda --shape 7b --lora
part train-full 40 "$python" benchmarks/train_step.py --device cuda --shape 0.5b --batch 8
part feeding 40 "$python" benchmarks/feeding.py --device cuda --shape 0.5b --clips 64
part serve 50 "$python" benchmarks/serve.py --shape 0.5b --clients 1 8 32 --requests 2 --repeat 1
exit "$failed"
