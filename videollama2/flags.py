"""Command-line flags that several commands share: the types of their values, and those that choose a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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


def number(least: int) -> Callable[[str], int]:
    """Type of a flag: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return value

    return parse


def seconds(text: str) -> float:
    """Type of a flag: seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def port(text: str) -> int:
    """Type of a flag: a port."""
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return value


def address(text: str) -> str:
    """Type of a flag: where a part of the installation listens, as ``http://host:port``."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text.rstrip("/"))
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise argparse.ArgumentTypeError(f"expected an address like http://localhost:10000, got {text!r}")
    return text.rstrip("/")
