"""``videollama2 merge ADAPTER OUT``: merge a LoRA folder into a full checkpoint that needs neither base nor peft."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from videollama2.commands import add_debug_flag
from videollama2.errors import CheckpointError, ConfigError

_DTYPES = ("float32", "bfloat16", "float16")


def merge_adapter(
    adapter: str | Path, out: str | Path, base: str | Path | None = None, dtype: str | None = None
) -> Path:
    """Add the matrices of a LoRA folder to the weights of its base and save the result under published names.

    Args:
        adapter: folder with ``adapter_config.json``, as ``train.py --lora_enable`` writes it.
        out: output folder; it must not hold a checkpoint yet.
        base: base model of the adapter; defaults to the one its configuration names.
        dtype: dtype of the saved weights, ``float32``, ``bfloat16`` or ``float16``; defaults to the base's.

    Returns:
        ``out``.

    Raises:
        CheckpointError: ``adapter`` is not a LoRA folder, or its weights do not fit.
        ConfigError: ``out`` is in use.
    """
    # Every start of the command line imports this module, so heavy imports wait until the command runs.
    import torch

    from videollama2.checkpoints import checkpoint_kind, load_pretrained_model
    from videollama2.checkpoints.write import save_model

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: give a new folder for the merged checkpoint")
    kind = checkpoint_kind(str(adapter))
    if kind != "lora":
        raise CheckpointError(f"{adapter} holds a {kind} checkpoint; only a LoRA folder can be merged")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    # The sum is computed in float32 whatever dtype is saved: a sum in 16 bits would lose most of a small change.
    _, model, processor, _ = load_pretrained_model(adapter, base, device="cpu", dtype="float32")
    target = getattr(torch, dtype or _dtype_of_base(str(adapter), base))
    save_model(model, processor, out, dtype=None if target is torch.float32 else target)
    return out


def _dtype_of_base(adapter: str, base: str | Path | None) -> str:
    from videollama2.checkpoints.files import base_of
    from videollama2.hub import read_config

    fields = read_config(base_of(adapter, base))
    found = fields.get("dtype") or fields.get("torch_dtype")
    return found if found in _DTYPES else "bfloat16"


def add_merge_command(subparsers: Any) -> None:
    """Add ``merge`` to the command line."""
    parser = subparsers.add_parser("merge", help="LoRA folder + base -> a whole checkpoint")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder with adapter_config.json")
    parser.add_argument("out", metavar="OUT", help="new folder for the merged checkpoint")
    parser.add_argument("--model-base", metavar="NAME", help="model under the adapter (default: what it names)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights written (default: the base's)")
    add_debug_flag(parser)
    parser.set_defaults(run=_merge)


def _merge(args: argparse.Namespace) -> int:
    print(f"written to {merge_adapter(args.adapter, args.out, args.model_base, args.dtype)}")
    return 0
