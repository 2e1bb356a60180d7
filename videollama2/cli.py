"""Defines the ``videollama2`` command.

    videollama2 ask clip.mp4 "What moves first?" --model-path videollama2-tiny
    videollama2 chat --model-path videollama2-tiny

Errors are printed on one line, with exit code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from videollama2 import __version__
from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.errors import MissingDependencyError
from videollama2.flags import (
    add_answer_flags,
    add_backend_flag,
    add_bounds_flags,
    add_model_flags,
    add_num_frames_flag,
    add_sampling_flag,
)

_ELSEWHERE = {
    "eval": ("evaluate on benchmarks", "videollama2.eval.cli", "add_eval_commands"),
    "batch": (
        "answer a file of requests, or one question about many media",
        "videollama2.engines.batch",
        "add_batch_command",
    ),
    "data": (
        "check annotation files for training, or compute features of their media",
        "videollama2.training.feature_command",
        "add_data_commands",
    ),
    "plan": (
        "count which ways of training a model fit into a GPU",
        "videollama2.training.plan.command",
        "add_plan_command",
    ),
    "serve": (
        "run controller, worker, API and web page on this machine",
        "videollama2.serve.launch",
        "add_serve_command",
    ),
    "inspect": (
        "draw how much each token of a medium weighed in an answer",
        "videollama2.inspection.cli",
        "add_inspect_command",
    ),
    "doctor": ("show versions, devices and codecs, for bug reports", "videollama2.doctor", "add_doctor_command"),
    "export": (
        "write any checkpoint as one folder that transformers opens without this package",
        "videollama2.checkpoints.merge",
        "add_export_command",
    ),
    "merge": ("merge a LoRA folder into its base model", "videollama2.checkpoints.merge", "add_merge_command"),
}
"""Commands declared in other modules: help text, module, and the function that adds the parser. They are imported when
they are used."""


SHELLS = ("bash", "zsh", "tcsh")


def build_parser(command: str | None = None) -> CommandParser:
    """Return the parser of the command line. A command of :data:`_ELSEWHERE` gets its arguments only if it is
    ``command``.

    ``completion`` needs the arguments of all commands.
    """
    parser = CommandParser(prog="videollama2", description="Ask videos, images and sounds questions.")
    parser.add_argument("--version", action="version", version=f"videollama2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ask(commands.add_parser("ask", help="answer a question about videos, images and sounds"))
    _add_chat(commands.add_parser("chat", help="talk about videos, images and sounds in the terminal"))
    for name, (text, module, function) in _ELSEWHERE.items():
        if command in (name, "completion"):
            getattr(import_module(module), function)(commands)
        else:
            commands.add_parser(name, help=text)
        commands.choices[name].description = commands.choices[name].description or f"{text[0].upper()}{text[1:]}."
    demo = commands.add_parser("demo", help="the built-in tiny model answers questions about bundled samples")
    demo.set_defaults(run=_late("videollama2.ask", "demo"))
    _add_completion(commands.add_parser("completion", help="print a script that completes commands and flags"))
    add_debug_flag(demo)
    return parser


def _late(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that imports a command's module and runs the command."""

    def run(args: argparse.Namespace) -> int:
        return getattr(import_module(module), function)(args)

    return run


def _add_ask(parser: CommandParser) -> None:
    parser.set_defaults(run=_late("videollama2.ask", "ask"))
    parser.usage = "%(prog)s [flags] MEDIA ... QUESTION"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MEDIA ... QUESTION",
        help="videos, gifs, folders of frames, images and sounds; last, the question (-: read it from the standard "
        "input)",
    )
    parser.take_words_anywhere("words")
    parser.add_argument(
        "--attach",
        action="append",
        default=[],
        metavar="FILE",
        help="another video, image or sound, placed after MEDIA",
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions that precede the question")
    parser.add_argument("--json", action="store_true", help="print the answer with its counts and times as JSON")
    _add_options(parser)


def _add_chat(parser: CommandParser) -> None:
    parser.set_defaults(run=_late("videollama2.ask", "chat"))
    parser.add_argument("words", nargs="*", metavar="MEDIA", help="videos, images and sounds to begin with")
    parser.take_words_anywhere("words")
    _add_options(parser)
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest conversation in tokens (default: as long as model and memory allow, at most 16384)",
    )


def _add_options(parser: CommandParser) -> None:
    """Add the flags of all commands that answer."""
    add_model_flags(parser)
    media = parser.add_argument_group("video")
    add_bounds_flags(media)
    add_num_frames_flag(media)
    add_sampling_flag(media)
    add_backend_flag(media)
    sound = media.add_mutually_exclusive_group()
    sound.add_argument("--no-audio", action="store_true", help="do not hear the sound of videos")
    sound.add_argument("--audio-only", action="store_true", help="hear videos without seeing them")
    add_answer_flags(parser.add_argument_group("answer"))
    add_debug_flag(parser)


def _add_completion(parser: CommandParser) -> None:
    parser.set_defaults(run=_completion)
    parser.description = 'For bash, put this into ~/.bashrc: eval "$(videollama2 completion bash)"'
    parser.add_argument("shell", choices=SHELLS, help="shell that the script is for")
    add_debug_flag(parser)


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("completion needs shtab", "shtab") from error
    print(shtab.complete(build_parser("completion"), shell=args.shell))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = build_parser(next(iter(arguments), None)).parse_args(arguments)
    return run_command(lambda: args.run(args), "videollama2", args.debug)


if __name__ == "__main__":
    sys.exit(main())
