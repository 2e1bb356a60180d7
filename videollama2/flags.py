"""Defines flags that several commands share: types of values, and flags for the model and for questions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from videollama2.constants import DEFAULT_MODEL_NAME, MAX_SEED
from videollama2.errors import ConfigError

PATH_HELP = "a folder, a hub name, or videollama2-tiny or videollama2-tiny-av (built in)"
_DEVICE_HELP = "cuda, cuda:1, mps or cpu (default: the first of these there is)"


def add_model_flags(
    parser: argparse.ArgumentParser, device_help: str = _DEVICE_HELP, **model_path: Any
) -> argparse._ArgumentGroup:
    """Add the argument group ``model`` and return it.

    Args:
        model_path: arguments of ``add_argument`` for ``--model-path``, if it is not a single name with the usual
            default.
    """
    group = parser.add_argument_group("model")
    path = {"default": DEFAULT_MODEL_NAME, "help": f"{PATH_HELP} (default %(default)s)", **model_path}
    group.add_argument("--model-path", metavar="NAME", **path)
    group.add_argument("--model-base", metavar="NAME", help="language model that a connector or LoRA folder belongs to")
    group.add_argument("--device", help=device_help)
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "auto"),
        help="default: bfloat16 on a GPU that supports it, otherwise float16; float32 on a CPU. auto: bfloat16 also on "
        "a CPU where a measurement finds it faster; it rounds",
    )
    group.add_argument("--attn-implementation", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"))
    bits = group.add_mutually_exclusive_group()
    bits.add_argument(
        "--load-8bit",
        action="store_true",
        help="keep weights in 8 bits: on a CPU all large ones, which is faster; on a "
        "GPU those of the language model (bitsandbytes)",
    )
    bits.add_argument(
        "--load-4bit",
        action="store_true",
        help="keep the language model in 4 bits: on a CPU with a kernel of torch, on a GPU with bitsandbytes",
    )
    return group


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags other than the path as keyword arguments of :func:`videollama2.model_init`."""
    names = ("model_base", "device", "dtype", "attn_implementation", "load_8bit", "load_4bit")
    return {name: getattr(args, name) for name in names}


def quantization_asked(options: Mapping[str, Any]) -> str | None:
    """Return ``8bit`` or ``4bit`` as :func:`model_options` ask for it, and None for whole weights."""
    return next((bits for bits in ("8bit", "4bit") if options.get(f"load_{bits}")), None)


def add_bounds_flags(group: argparse._ActionsContainer) -> None:
    """Add ``--start`` and ``--end``, which select a part of a video."""
    group.add_argument("--start", type=float, metavar="SECONDS", help="start of the part of videos to use")
    group.add_argument("--end", type=float, metavar="SECONDS", help="end of the part of videos to use")


def add_num_frames_flag(group: argparse._ActionsContainer) -> None:
    """Add ``--num-frames``."""
    group.add_argument("--num-frames", type=int, metavar="N", help="number of frames of a video (default: the model's)")


def add_sampling_flag(group: argparse._ActionsContainer) -> None:
    """Add ``--sampling``, which says over what the frames of a video are spread."""
    group.add_argument(
        "--sampling",
        choices=("index", "time"),
        help="spread frames over the numbers of the frames (index, the default: published) or over the seconds of the "
        "clip (time): they differ where the frame rate varies, as in screen recordings",
    )


def add_backend_flag(group: argparse._ActionsContainer) -> None:
    """Add ``--video-backend``, for commands that decode videos themselves."""
    group.add_argument("--video-backend", default="auto", choices=("auto", "pyav", "decord"), help="video decoder")


def frame_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given ones of the flags above as fields of :class:`videollama2.media.frames.FrameSampling`.

    That class checks the values, so that every command refuses ``--num-frames 0`` with the same message.
    """
    options = {name: getattr(args, name, None) for name in ("num_frames", "start", "end", "sampling")}
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class AnswerFlags:
    """The values of the flags of :func:`add_answer_flags`, which control how answers are generated.

    Attributes:
        max_new_tokens: maximum length of an answer in tokens; None for the command's own default.
        temperature: 0 takes the most likely token; above 0, tokens are sampled.
        top_p: cumulative probability of the most likely tokens that are sampled from; None for the back end's default.
        seed: seed that makes sampled answers reproducible.

    Raises:
        ConfigError: a value is out of range; the message names its flag.
    """

    max_new_tokens: int | None
    temperature: float
    top_p: float | None
    seed: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> AnswerFlags:
        """Take the options from a parsed command line."""
        return cls(args.max_new_tokens, args.temperature, args.top_p, args.seed)

    def __post_init__(self) -> None:
        check_max_new_tokens(self.max_new_tokens)
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature must be 0 or a positive number, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be above 0 and at most 1, got {self.top_p}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"--seed must be from 0 to 2**63 - 1, got {self.seed}")


def add_max_new_tokens_flag(
    group: argparse._ActionsContainer, default: int | None, text: str = "longest answer (default %(default)s)"
) -> None:
    """Add ``--max-new-tokens``; :func:`check_max_new_tokens` checks its value."""
    group.add_argument("--max-new-tokens", type=int, default=default, metavar="N", help=text)


def check_max_new_tokens(value: int | None) -> None:
    """Raise ConfigError unless the value of ``--max-new-tokens`` is None or a possible length of an answer."""
    if value is not None and value < 1:
        raise ConfigError(f"--max-new-tokens (max_new_tokens) must be at least 1, got {value}")


def add_answer_flags(
    group: argparse._ActionsContainer,
    max_new_tokens: int | None = 512,
    top_p: float | None = None,
    seed: int | None = None,
    max_new_tokens_help: str = "longest answer (default %(default)s)",
) -> None:
    """Add ``--max-new-tokens``, ``--temperature``, ``--top-p`` and ``--seed``, with these defaults."""
    usual = {True: "", False: " (default %(default)s)"}
    add_max_new_tokens_flag(group, max_new_tokens, max_new_tokens_help)
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 (default) always takes the most likely token",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=top_p,
        metavar="P",
        help=f"when sampling: draw from the likeliest tokens that together have this probability{usual[top_p is None]}",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=seed,
        metavar="N",
        help=f"when sampling: seed, which makes answers repeatable{usual[seed is None]}",
    )


def add_count_flag(
    group: argparse._ActionsContainer,
    name: str,
    text: str,
    default: int | None = None,
    least: int = 1,
    metavar: str = "N",
) -> None:
    """Add a flag for a whole number of at least ``least``; the help text goes on with the default if there is one."""
    usual = "" if default is None or "default" in text else " (default %(default)s)"
    group.add_argument(name, type=number(least), default=default, metavar=metavar, help=text + usual)


def add_seconds_flag(group: argparse._ActionsContainer, name: str, text: str, default: float) -> None:
    """Add a flag for a number of seconds above 0; the help text goes on with the default."""
    usual = " (default %(default)g)"
    group.add_argument(name, type=seconds, default=default, metavar="SECONDS", help=text + usual)


def number(least: int) -> Callable[[str], int]:
    """Return a type for flags: a whole number of at least ``least``."""

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
    """Parse a flag's value as a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def port(text: str) -> int:
    """Parse a flag's value as a port."""
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return value


def address(text: str) -> str:
    """Parse a flag's value as the address of a part of the installation, ``http://host:port``."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text.rstrip("/"))
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        has_more = bool(parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        is_server = has_more = False
    if not is_server or has_more:
        raise argparse.ArgumentTypeError(f"expected an address like http://localhost:10000, got {text!r}")
    return text.rstrip("/")


def check_without_effect(
    args: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], object], rule: str
) -> None:
    """Check that flags which would have no effect were not given.

    Args:
        add_flags: adds these flags to a parser.
        rule: when they have an effect, for the message.

    Raises:
        ConfigError: one of them has another value than its default.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    for name, usual in vars(parser.parse_args([])).items():
        if getattr(args, name) != usual:
            raise ConfigError(f"--{name.replace('_', '-')}: {rule}")
