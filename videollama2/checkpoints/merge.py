"""Writes whole checkpoints from parts.

``videollama2 merge ADAPTER OUT`` merges a LoRA folder into a full checkpoint that needs neither base nor peft.
``videollama2 export MODEL OUT`` makes one of any checkpoint that needs not even this package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from videollama2.commands import add_debug_flag
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import CheckpointError, ConfigError
from videollama2.flags import PATH_HELP

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
    from videollama2.checkpoints import checkpoint_kind

    _check_is_free(Path(out))
    kind = checkpoint_kind(str(adapter))
    if kind != "lora":
        raise CheckpointError(f"{adapter} holds a {kind} checkpoint; only a LoRA folder can be merged")
    return write_whole(adapter, out, base, dtype)


def export_model(
    name_or_path: str | Path, out: str | Path, base: str | Path | None = None, dtype: str | None = None
) -> Path:
    """Save any checkpoint as one folder that transformers opens without this package.

    The folder holds whole weights under published names, the code that opens them with ``trust_remote_code=True``
    (:mod:`videollama2.model_code`) and a model card.

    Args:
        name_or_path: a whole checkpoint, or a LoRA or connector folder; a folder, a hub name or ``videollama2-tiny``.
        out, base, dtype: as for :func:`merge_adapter`; the dtype defaults to the one that the checkpoint names.

    Raises:
        CheckpointError: the checkpoint cannot be read. ConfigError: ``out`` is in use.
    """
    return write_whole(name_or_path, out, base, dtype, with_code=True)


def _check_is_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: give a new folder for the checkpoint")


def write_whole(
    name_or_path: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    dtype: str | None = None,
    with_code: bool = False,
) -> Path:
    """Load a checkpoint of any kind and write it as whole weights with a model card; return ``out``."""
    import torch

    from videollama2.checkpoints import load_pretrained_model
    from videollama2.checkpoints.card import Provenance, write_card
    from videollama2.checkpoints.files import base_of, checkpoint_kind, resolve_name
    from videollama2.checkpoints.write import save_model
    from videollama2.model_code import write_code

    out = Path(out)
    _check_is_free(out)
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    source = resolve_name(name_or_path)
    whole = checkpoint_kind(source) == "full"
    described = source if whole else base_of(source, base)
    # The sum is computed in float32 whatever dtype is saved: a sum in 16 bits would lose most of a small change.
    _, model, processor, _ = load_pretrained_model(source, base, device="cpu", dtype="float32")
    target = getattr(torch, dtype or _dtype_of(described))
    save_model(model, processor, out, dtype=None if target is torch.float32 else target)
    if with_code:
        write_code(out)
    made_by = "Exported" if whole else "Merged with its base"
    run = Path(source) if Path(source).is_dir() else None
    write_card(out, Provenance(str(name_or_path) if whole else described, run, f"{made_by} by videollama2."))
    return out


def _dtype_of(name_or_path: str) -> str:
    from videollama2.hub import read_config

    fields = read_config(name_or_path)
    found = fields.get("dtype") or fields.get("torch_dtype")
    return found if found in _DTYPES else "bfloat16"


def add_export_command(subparsers: Any) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export", help="write any checkpoint as one folder that transformers opens without this package"
    )
    parser.add_argument("model", metavar="MODEL", help=f"{PATH_HELP}, such as {DEFAULT_MODEL_NAME}")
    _add_output_flags(parser)
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    out = export_model(args.model, args.out, args.model_base, args.dtype)
    print(f"written to {out}. Without videollama2 installed, transformers opens it with trust_remote_code=True")
    return 0


def add_merge_command(subparsers: Any) -> None:
    """Add ``merge`` to the command line."""
    parser = subparsers.add_parser("merge", help="merge a LoRA folder into its base model")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder with adapter_config.json")
    _add_output_flags(parser)
    parser.set_defaults(run=_merge)


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="new folder for the whole checkpoint")
    parser.add_argument(
        "--model-base", metavar="NAME", help="base model of an adapter (default: the one that it names)"
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="dtype of the written weights (default: the base model's)")
    add_debug_flag(parser)


def _merge(args: argparse.Namespace) -> int:
    print(f"written to {merge_adapter(args.adapter, args.out, args.model_base, args.dtype)}")
    return 0
