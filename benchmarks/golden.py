#!/usr/bin/env python3
"""How far each dtype is from the published code's values: every reference model, its logits and its greedy tokens.

    python benchmarks/golden.py [--device cuda] [--dtype float32 bfloat16 float16 int8] [--models FOLDER] [--most N]

Each reference model is a folder with weights and ``reference.safetensors``, which holds a prompt, a video, the logits
of all positions and the greedy continuation, computed in float32 by the published code. The table gives, over all
models, the largest and the median error of a logit as a share of the spread (standard deviation) of the reference
logits, and the share of equal tokens: the most likely token after each position of prompt and continuation, where both
see the same tokens before it. ``int8`` is ``--load-8bit`` on a CPU, but with every layer in 8 bits: by default, weights
as small as those of the reference models stay as they are. The exit code is 1 if float32 is off by more than its
tolerance.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3
"""The largest error that float32 may have, as a share of the spread of the logits."""

DTYPES = ("float32", "bfloat16", "float16", "int8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "float16"], choices=DTYPES)
    parser.add_argument("--models", type=Path, default=ROOT / "tests" / "golden" / "models")
    parser.add_argument("--most", type=int, help="use only so many models")
    return parser.parse_args()


def compare(folder: Path, dtype: str, device: str | None) -> dict[str, Any]:
    """Return the relative errors of one model's logits, flat, and which of its most likely tokens are equal."""
    import torch
    from safetensors.torch import load_file

    from videollama2 import model_init
    from videollama2.constants import IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
    from videollama2.processing import expand_placeholders, media_tokens

    if dtype == "int8":
        from videollama2.checkpoints import load_checkpoint
        from videollama2.checkpoints.cpu_integers import CpuIntegerConfig

        every_layer = CpuIntegerConfig(smallest_weight=1)
        model, _ = load_checkpoint(folder, device_map={"": "cpu"}, dtype="float32", quantization_config=every_layer)
    else:
        model, _, _ = model_init(folder, dtype=dtype, device=device)
    values = load_file(folder / "reference.safetensors")
    prompt, video = values["single.input_ids"][0].tolist(), values["video"].to(model.device, model.dtype)
    media = sum(token in (IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX) for token in prompt)
    ids, _ = expand_placeholders(prompt, [media_tokens(model.config, "image")] * media, model.config)
    greedy = values["single.greedy"][0].tolist()
    with torch.inference_mode():
        row = torch.tensor([ids + greedy], device=model.device)
        logits_LV = model(input_ids=row, pixel_values_videos=video[None]).logits[0].float().cpu()
    reference_LV = values["single.logits"][0]
    errors = (logits_LV[: len(ids)] - reference_LV).abs() / reference_LV.std()
    chosen = logits_LV[len(ids) - 1 : -1].argmax(-1).tolist()
    same = (logits_LV[: len(ids)].argmax(-1) == reference_LV.argmax(-1)).tolist()
    return {"errors": errors.flatten(), "equal": [*same, *(a == b for a, b in zip(chosen, greedy, strict=True))]}


def main() -> int:
    args = parse()
    folders = sorted(path.parent for path in args.models.glob("*/reference.safetensors"))[: args.most]
    if not folders:
        sys.exit(f"{args.models} holds no reference models")
    import torch

    # On a GPU, torch computes float32 convolutions with 10 bits of mantissa unless it is told not to.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    broken = False
    print(processor_name())
    print(f"{len(folders)} models; errors of logits as shares of their spread\n")
    print(f"{'dtype':10} {'median':>10} {'largest':>10} {'equal tokens':>14}")
    for dtype in args.dtype:
        rows = [compare(folder, dtype, args.device) for folder in folders]
        largest = max(row["errors"].max().item() for row in rows)
        middle = statistics.median(row["errors"].median().item() for row in rows)
        equal = [same for row in rows for same in row["equal"]]
        print(f"{dtype:10} {middle:10.1e} {largest:10.1e} {sum(equal):7} of {len(equal)}", flush=True)
        broken |= dtype == "float32" and not largest <= TOLERANCE
    if broken:
        print(f"BROKEN: float32 must be within {TOLERANCE:g}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
