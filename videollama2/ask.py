"""Runs ``videollama2 ask | chat | demo``, the commands that answer in this process. Their flags are in :mod:`.cli`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videollama2.constants import BUILT_IN_MODELS, TINY_MODEL_NAME
from videollama2.errors import ConfigError
from videollama2.flags import AnswerFlags, frame_options, model_options
from videollama2.garbage_collection import loading
from videollama2.hub_connection import hub_options
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO, with_article
from videollama2.quiet import hide_library_bars

CHAT_LENGTH = 16384
"""Maximum number of tokens of a conversation in the terminal, if the model has this many positions."""

_BAR_FROM_BYTES = 1 << 30
"""Size in bytes from which the loading of weights shows a progress bar."""

STDIN = "-"
"""In place of a question, this reads it from standard input."""


@dataclass(frozen=True)
class Asked:
    """The input of the command ``ask``.

    Attributes:
        media: pairs of ``(kind, path)``, in the order in which the model sees them.
        question: the text.
        system: text before the conversation; None uses the model's own, if it has one.
    """

    media: tuple[tuple[str, str], ...]
    question: str
    system: str | None = None

    def messages(self, args: argparse.Namespace, config: Any) -> list[dict[str, Any]]:
        """Return the conversation in the form that :meth:`videollama2.inference.engine.Engine.submit` takes.

        Args:
            config: configuration of the model. A model with an audio encoder also hears videos unless a flag forbids
                it.
        """
        from videollama2.inference.chat import file_part

        options, hears_only = _video_options(args, config), _hears_only(args, config)
        content = [file_part(kind, path, options, hears_only) for kind, path in self.media]
        content.append({"type": "text", "text": self.question})
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": content}]


def ask(args: argparse.Namespace) -> int:
    """Load the model and print its answer. Media are read first: a wrong path must not wait for 15 GB of weights."""
    asked = read_asked(args)
    options = _generation(args)
    for kind, path in asked.media:
        _check_readable(args, kind, path)
    begin = time.monotonic()
    engine, sampling = open_single_engine(args, options, lambda processor: _prompt_length(processor, args, asked))
    loaded = time.monotonic() - begin
    answer = engine.submit(asked.messages(args, engine.model.config), **sampling)
    if args.json:
        print(json.dumps(_as_json(args, asked, answer.result(), loaded), ensure_ascii=False))
    elif sys.stdout.isatty():
        for delta in answer:
            print(delta, end="", flush=True)
        print()
    else:
        print(answer.result().text.strip())
    for note in answer.result().notes if not args.json else ():
        print(f"videollama2: {note}", file=sys.stderr)
    return 0


def read_asked(args: argparse.Namespace) -> Asked:
    """Read media and question from the command line, ``--attach`` and standard input.

    Raises:
        ConfigError: there is no question or no medium, or an option fits none of the media.
        MediaError: a path is not a readable medium.
        PromptError: an input is not valid text.
    """
    from videollama2.media.sources import kind_of_path
    from videollama2.prompting import check_text

    *paths, question = args.words or [None]
    if question is None:
        raise ConfigError("there is no question: videollama2 ask MEDIA ... QUESTION")
    paths += args.attach
    if not paths:
        what = "question" if os.path.exists(question) else "video or image"
        raise ConfigError(f"there is no {what} beside {question!r}: videollama2 ask MEDIA ... QUESTION")
    if question == STDIN:
        question = _read_stdin()
    if not question.strip():
        raise ConfigError("the question is empty")
    check_text(question, "the question")
    if args.system is not None:
        check_text(args.system, "--system")
    asked = Asked(tuple((kind_of_path(path), path) for path in paths), question, args.system)
    _check_options(args, asked)
    return asked


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the question on the standard input is not valid UTF-8 ({error.reason})") from error


def _check_options(args: argparse.Namespace, asked: Asked) -> None:
    """Refuse options that fit none of the media. Ignored silently, they would seem to have had an effect."""
    given = frame_options(args)
    if given and not any(given.keys() <= KINDS[kind].options for kind, _ in asked.media):
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        kind, path = asked.media[0]
        raise ConfigError(f"{path} is {with_article(kind)}; {flags} can only be given for {with_article(VIDEO)}")
    if (args.no_audio or args.audio_only) and all(kind != VIDEO for kind, _ in asked.media):
        raise ConfigError("--no-audio and --audio-only can only be given for a video")


def _as_json(args: argparse.Namespace, asked: Asked, result: Any, loaded: float) -> dict[str, Any]:
    timings = result.timings
    return {
        "answer": result.text.strip(),
        "finish_reason": result.finish_reason,
        "notes": list(result.notes),
        "question": asked.question,
        "media": [{"type": kind, "path": path} for kind, path in asked.media],
        "model": args.model_path,
        "usage": {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens},
        "seconds": {
            "load": round(loaded, 3),
            "media": round(timings.media, 3),
            "first_token": round(timings.first_token, 3),
            "answer": round(timings.total, 3),
        },
    }


def chat(args: argparse.Namespace) -> int:
    """Run a conversation; media given on the command line belong to the first question."""
    from videollama2.media.sources import kind_of_path

    options = _generation(args)
    kinds = [kind_of_path(path) for path in args.words]
    if args.max_length is not None and args.max_length < 1:
        raise ConfigError(f"--max-length must be at least 1, got {args.max_length}")
    engine, sampling = open_single_engine(args, options, None)
    from videollama2.inference.chat import Chat

    config = engine.model.config
    conversation = Chat(engine, _video_options(args, config), sampling, audio_only=_hears_only(args, config))
    for kind, path in zip(kinds, args.words, strict=True):
        conversation.handle(f"/{kind} {path}")
    conversation.run()
    return 0


def demo(args: argparse.Namespace) -> int:
    """Ask about a bundled video and image, and print each answer beside the correct one."""
    hide_library_bars()
    from videollama2.inference.api import mm_infer, model_init
    from videollama2.media.sources import kind_of_path

    folder = Path(__file__).parent / "assets" / "demo"
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    model, processor, tokenizer = model_init(TINY_MODEL_NAME)
    current, pixels, right = None, None, 0
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


@loading()
def open_single_engine(
    args: argparse.Namespace, options: dict[str, Any], prompt_length: Callable[[Any], int] | None
) -> tuple[Any, dict[str, Any]]:
    """Return an engine with one slot for the model, and the options of its requests.

    Args:
        prompt_length: returns the tokens of the only prompt, given the processor; None makes a slot for a whole chat
            (--max-length).
    """
    hub = {} if args.model_path in BUILT_IN_MODELS else hub_options(args.model_path)
    if not _is_large(args.model_path):
        hide_library_bars()
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine
    from videollama2.inference.generate_options import generation_options, sampling_options
    from videollama2.inference.sizes import fitting_length

    model, processor, tokenizer = model_init(args.model_path, **model_options(args), **hub)
    sampling = sampling_options(model, generation_options(tokenizer, **options))
    if args.seed is not None and args.temperature:
        sampling["seed"] = args.seed
    if prompt_length is not None:
        length = prompt_length(processor) + args.max_new_tokens
    else:
        length = args.max_length or fitting_length(model, longest=CHAT_LENGTH)
    return Engine(model, processor, max_batch=1, max_length=length, background=False), sampling


def _prompt_length(processor: Any, args: argparse.Namespace, asked: Asked) -> int:
    """Return the number of tokens of the prompt, which follows from the number of frames without decoding any."""
    from videollama2.inference.request import Request
    from videollama2.processing import expand_placeholders, planned_tokens

    config = processor.model_config
    request = Request(asked.messages(args, config))
    # The count is never None: that requires one frame per second, which no flag selects and only the file can resolve.
    counts = [planned_tokens(config, medium.kind, medium.options) or 0 for medium in request.media]
    ids = processor.prompt(request.messages).token_ids(processor.tokenizer)
    return len(expand_placeholders(ids, counts, config)[0])


def _video_options(args: argparse.Namespace, config: Any) -> dict[str, Any]:
    heard = {"use_audio": True} if config.hears and not args.no_audio else {}
    return {**frame_options(args), "backend": args.video_backend, **heard}


def _hears_only(args: argparse.Namespace, config: Any) -> bool:
    """Return whether videos are only heard and not seen, as by every model without a vision encoder."""
    return args.audio_only or not config.sees


def _check_readable(args: argparse.Namespace, kind: str, path: str) -> None:
    """Decode the first requested frame, the image or the sound. This is cheap and finds the errors of a full read."""
    from videollama2.media.audio import SoundSampling, read_sound, read_video_sound
    from videollama2.media.frames import FrameSampling
    from videollama2.media.image import load_image
    from videollama2.media.video import read_clip

    if kind == IMAGE:
        load_image(path)
        return
    if kind == AUDIO or args.audio_only:
        (read_sound if kind == AUDIO else read_video_sound)(path, sampling=SoundSampling(args.start, args.end))
        return
    sampling = FrameSampling(**frame_options(args))
    read_clip(path, replace(sampling, num_frames=1), backend=args.video_backend)


def _generation(args: argparse.Namespace) -> dict[str, Any]:
    answer = AnswerFlags.of(args)
    options: dict[str, Any] = {"max_new_tokens": answer.max_new_tokens, "do_sample": answer.temperature != 0}
    if answer.temperature:
        options["temperature"] = answer.temperature
        if answer.top_p is not None:
            options["top_p"] = answer.top_p
    return options


def _is_large(model_path: str) -> bool:
    """Return whether loading takes long: for a hub model, which may need a download, or a folder with large weights."""
    if not os.path.isdir(model_path):  # unlike Path.is_dir, it answers for a path that is too long, too
        return model_path not in BUILT_IN_MODELS
    weights = [path for pattern in ("*.safetensors", "*.bin") for path in Path(model_path).glob(pattern)]
    return sum(path.stat().st_size for path in weights) >= _BAR_FROM_BYTES
