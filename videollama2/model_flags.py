"""The flags that choose a model and how it is held, the same for every command that loads one."""

from __future__ import annotations

import argparse
from typing import Any

from videollama2.constants import DEFAULT_MODEL_NAME

_PATH_HELP = "videollama2-tiny (built in), a folder, or a hub name"
_DEVICE_HELP = "cuda, cuda:1, mps or cpu (default: the first of these there is)"


def add_model_flags(
    parser: argparse.ArgumentParser, device_help: str = _DEVICE_HELP, **model_path: Any
) -> argparse._ArgumentGroup:
    """Add the group ``model``, which is returned.

    Args:
        model_path: arguments of ``add_argument`` for ``--model-path`` where it is not one name with the usual default.
    """
    group = parser.add_argument_group("model")
    path = {"default": DEFAULT_MODEL_NAME, "help": f"{_PATH_HELP} (default %(default)s)", **model_path}
    group.add_argument("--model-path", metavar="NAME", **path)
    group.add_argument("--model-base", metavar="NAME", help="language model under a connector or LoRA folder")
    group.add_argument("--device", help=device_help)
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default bfloat16 on a GPU that has it, else float16; float32 on a CPU",
    )
    group.add_argument("--attn-implementation", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"))
    bits = group.add_mutually_exclusive_group()
    bits.add_argument("--load-8bit", action="store_true", help="language model in 8 bits (bitsandbytes)")
    bits.add_argument("--load-4bit", action="store_true", help="language model in 4 bits (bitsandbytes)")
    return group


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say besides the path -> keyword arguments of :func:`videollama2.model_init`."""
    names = ("model_base", "device", "dtype", "attn_implementation", "load_8bit", "load_4bit")
    return {name: getattr(args, name) for name in names}
