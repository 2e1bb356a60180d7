"""The ``videollama2`` command.

    videollama2 ask clip.mp4 "What moves first?" --model-path videollama2-tiny
    videollama2 chat --model-path videollama2-tiny

Errors are one line and exit code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from videollama2 import __version__
from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.constants import TINY_MODEL_NAME
from videollama2.errors import ConfigError
from videollama2.flags import (
    AnswerFlags,
    add_answer_flags,
    add_backend_flag,
    add_bounds_flags,
    add_model_flags,
    add_num_frames_flag,
    frame_options,
    model_options,
)
from videollama2.media.kinds import IMAGE, VIDEO

_CHAT_LENGTH = 16384
"""Tokens that a conversation in the terminal may have, where the model has as many positions."""


_ELSEWHERE = {
    "eval": ("evaluate on benchmarks", "videollama2.eval.cli", "add_eval_commands"),
    "data": ("check annotation files for training", "videollama2.data.check", "add_data_commands"),
    "serve": ("controller, worker, API and web page on this machine", "videollama2.serve.launch", "add_serve_command"),
    "merge": ("LoRA folder + base -> a whole checkpoint", "videollama2.checkpoints.merge", "add_merge_command"),
}
"""Commands declared where they are done: help, module and function that adds the parser. Imported when asked for."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; the arguments of the commands in :data:`_ELSEWHERE` only for ``command``."""
    parser = CommandParser(prog="videollama2", description="Ask videos and images questions.")
    parser.add_argument("--version", action="version", version=f"videollama2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ask(commands.add_parser("ask", help="answer a question about a video or an image"))
    _add_chat(commands.add_parser("chat", help="talk about videos and images in the terminal"))
    for name, (text, module, function) in _ELSEWHERE.items():
        if command == name:
            getattr(import_module(module), function)(commands)
        else:
            commands.add_parser(name, help=text)
    demo = commands.add_parser("demo", help="the built-in tiny model answers questions about bundled samples")
    demo.set_defaults(run=_demo)
    add_debug_flag(demo)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_ask)
    parser.add_argument("media", help="video, gif, folder of frames or image")
    parser.add_argument("question", help="what to ask")
    _add_options(parser)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_chat)
    parser.add_argument("media", nargs="*", help="videos and images to begin with")
    _add_options(parser)
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens a conversation may have (default: what model and memory allow, at most {_CHAT_LENGTH})",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that answers takes."""
    add_model_flags(parser)
    media = parser.add_argument_group("video")
    add_bounds_flags(media)
    add_num_frames_flag(media)
    add_backend_flag(media)
    add_answer_flags(parser.add_argument_group("answer"))
    add_debug_flag(parser)


def _ask(args: argparse.Namespace) -> int:
    """Load, look, answer. The media are read first: a wrong path must not wait for 15 GB of weights."""
    from videollama2.media.sources import kind_of_path
    from videollama2.prompting import check_text

    if not args.question.strip():
        raise ConfigError("the question is empty")
    check_text(args.question, "the question")
    kind = kind_of_path(args.media)
    if kind == IMAGE and frame_options(args):
        given = ", ".join("--" + name.replace("_", "-") for name in frame_options(args))
        raise ConfigError(f"{args.media} is an image; {given} can only be given for a video")
    options = _generation(args)
    _check_readable(args, kind)
    engine, sampling = _open_engine(args, options, lambda processor: _prompt_length(processor, args, kind))
    part = {"type": kind, "path": args.media, **(_video_options(args) if kind == VIDEO else {})}
    content = [part, {"type": "text", "text": args.question}]
    answer = engine.submit([{"role": "user", "content": content}], **sampling)
    if sys.stdout.isatty():
        for delta in answer:
            print(delta, end="", flush=True)
        print()
    else:
        print(answer.result().text.strip())
    return 0


def _chat(args: argparse.Namespace) -> int:
    """A conversation; media given on the command line go with the first question."""
    from videollama2.media.sources import kind_of_path

    options = _generation(args)
    kinds = [kind_of_path(path) for path in args.media]
    if args.max_length is not None and args.max_length < 1:
        raise ConfigError(f"--max-length must be at least 1, got {args.max_length}")
    engine, sampling = _open_engine(args, options, None)
    from videollama2.inference.chat import Chat

    chat = Chat(engine, _video_options(args), sampling)
    for kind, path in zip(kinds, args.media, strict=True):
        chat.handle(f"/{kind} {path}")
    chat.run()
    return 0


def _open_engine(
    args: argparse.Namespace, options: dict[str, Any], prompt_length: Callable[[Any], int] | None
) -> tuple[Any, dict[str, Any]]:
    """The model in an engine of one slot, and the options of its requests.

    Args:
        prompt_length: processor -> tokens of the one prompt; None: as long a slot as chats use (--max-length).
    """
    _quiet_libraries()
    from videollama2.inference.api import generation_options, model_init, sampling_options
    from videollama2.inference.engine import Engine
    from videollama2.inference.sizes import fitting_length

    model, processor, tokenizer = model_init(args.model_path, **model_options(args))
    sampling = sampling_options(model, generation_options(tokenizer, **options))
    if args.seed is not None and args.temperature:
        sampling["seed"] = args.seed
    if prompt_length is not None:
        length = prompt_length(processor) + args.max_new_tokens
    else:
        length = args.max_length or fitting_length(model, longest=_CHAT_LENGTH)
    return Engine(model, processor, max_batch=1, max_length=length, background=False), sampling


def _prompt_length(processor: Any, args: argparse.Namespace, kind: str) -> int:
    """Tokens of the prompt, from the number of frames: nothing is decoded."""
    from videollama2.processing import expand_placeholders, visual_tokens
    from videollama2.prompting import user_messages

    frames = args.num_frames if args.num_frames is not None else processor.model_config.num_frames
    count = visual_tokens(processor.model_config, kind, frames)
    prompt = processor.prompt(user_messages(args.question, kind))
    ids = prompt.token_ids(processor.tokenizer)
    return len(expand_placeholders(ids, [count], processor.model_config)[0])


def _video_options(args: argparse.Namespace) -> dict[str, Any]:
    return {**frame_options(args), "backend": args.video_backend}


def _demo(args: argparse.Namespace) -> int:
    """Questions about a bundled video and image: the answer given beside the right one."""
    import json
    from pathlib import Path

    _quiet_libraries()
    from videollama2.inference.api import mm_infer, model_init
    from videollama2.media.sources import kind_of_path

    folder = Path(__file__).parent / "assets" / "demo"
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    model, processor, tokenizer = model_init(TINY_MODEL_NAME)
    current, right = None, 0
    for row in rows:
        kind = kind_of_path(folder / row["file"])
        if row["file"] != current:
            current = row["file"]
            pixels = processor[kind](folder / current)
            print(f"\n{kind}: {folder / current}")
            print(f"  {'question':<64}{'answer':<16}correct answer")
        answer = mm_infer(pixels, row["question"], model, tokenizer, modal=kind, max_new_tokens=32)
        right += answer == row["answer"]
        print(f"  {row['question']:<64}{answer:<16}{row['answer']}", flush=True)
    print(f"\n{right} of {len(rows)} answers are right. {TINY_MODEL_NAME} knows moving shapes and nothing else;")
    print("for your own videos: videollama2 ask VIDEO QUESTION --model-path DAMO-NLP-SG/VideoLLaMA2.1-7B-16F")
    return 0


def _check_readable(args: argparse.Namespace, kind: str) -> None:
    """Decode the first frame asked for (or the image): cheap, and the same errors as later."""
    from videollama2.media.frames import FrameSampling
    from videollama2.media.image import load_image
    from videollama2.media.video import read_clip

    if kind == IMAGE:
        load_image(args.media)
        return
    sampling = FrameSampling(**frame_options(args))
    read_clip(args.media, replace(sampling, num_frames=1), backend=args.video_backend)


def _generation(args: argparse.Namespace) -> dict[str, Any]:
    answer = AnswerFlags.of(args)
    options: dict[str, Any] = {"max_new_tokens": answer.max_new_tokens, "do_sample": answer.temperature != 0}
    if answer.temperature:
        options["temperature"] = answer.temperature
        if answer.top_p is not None:
            options["top_p"] = answer.top_p
    return options


def _quiet_libraries() -> None:
    """An answer is one thing on the screen: no loading bars of small models, no hints for library authors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = build_parser(next(iter(arguments), None)).parse_args(arguments)
    return run_command(lambda: args.run(args), "videollama2", args.debug)


if __name__ == "__main__":
    sys.exit(main())
