"""Runs the command ``videollama2 inspect``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from videollama2.commands import add_debug_flag
from videollama2.errors import DataError
from videollama2.flags import (
    add_bounds_flags,
    add_max_new_tokens_flag,
    add_model_flags,
    add_num_frames_flag,
    add_sampling_flag,
    check_max_new_tokens,
    frame_options,
    model_options,
)


def add_inspect_command(commands: Any) -> None:
    """Add ``videollama2 inspect`` to the command line."""
    text = "draw over frames and sound how much each of their tokens weighed in an answer"
    parser = commands.add_parser("inspect", help=text, description=text)
    parser.set_defaults(run=inspect)
    parser.add_argument("medium", metavar="MEDIUM", type=Path, help="a video, a folder of frames, or an image")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="page to write; a .png is written beside it (default: inspect.html)"
    )
    add_max_new_tokens_flag(parser, default=32)
    add_model_flags(parser, device_help="default: cuda, else mps, else cpu")
    media = parser.add_argument_group("video")
    add_bounds_flags(media)
    add_num_frames_flag(media)
    add_sampling_flag(media)
    media.add_argument("--no-audio", action="store_true", help="do not hear the sound of a video")
    add_debug_flag(parser)


def inspect(args: argparse.Namespace) -> int:
    """Run the command: answer the question and write the page and the picture."""
    from videollama2.inference.api import model_init
    from videollama2.inspection.page import sheet, to_html
    from videollama2.inspection.weights import inspect_answer
    from videollama2.media.frames import FrameSampling
    from videollama2.media.sources import kind_of_path

    check_max_new_tokens(args.max_new_tokens)
    kind, sampling = kind_of_path(args.medium), FrameSampling(**frame_options(args))
    model, processor, _ = model_init(args.model_path, **model_options(args))
    use_audio = False if args.no_audio else None
    found = inspect_answer(model, processor, kind, args.medium, args.question, sampling, args.max_new_tokens, use_audio)
    page = args.output or Path("inspect.html")
    picture = page.with_suffix(".png")
    try:
        page.write_text(to_html(found), encoding="utf-8")
        sheet(found).save(picture)
    except OSError as error:
        raise DataError(f"{error.filename or page}: cannot be written ({error.strerror or error})") from error
    print(found.answer)
    steps = "1 step" if len(found.steps) == 1 else f"{len(found.steps)} steps"
    sound = "" if found.sound_TF is None else f", {found.sound_TF.size} of the sound ({found.sound_TF.sum():.0%})"
    print(f"{page} and {picture}: {steps}, {found.weights_THW.size} visual tokens{sound}")
    for note in found.notes:
        print(f"videollama2: {note}", file=sys.stderr)
    return 0
