#!/usr/bin/env python3
"""This package and the published VideoLLaMA2 code side by side on a CPU: the same weights and questions, in turns.

    python benchmarks/against_published.py WORKTREE --python PYTHON [--rounds 3] [--dtypes float32 bfloat16 int8]

``WORKTREE`` is a clean checkout of the published repository (branch ``main``), ``PYTHON`` an interpreter with what its
``requirements.txt`` pins. That code needs CUDA and flash attention; ``published_code.py`` beside this file changes it
in memory so that it runs on a CPU, and says how. The model has random weights and the shapes of CLIP ViT-L/14-336, the
STC connector and a 0.5B Qwen2 (8 frames); both sides read one folder, stored in bfloat16 as published weights are.

Every round starts a new process for each side, one after another, so that start-up and peak memory are its own and a
slow minute of the machine slows both. In each: import, load, a first question about a clip, a second one about the same
clip (each reads the file again), and one about an image, through ``model_init``, the processors and ``mm_infer``,
greedy, with ``--new-tokens`` tokens at most. The published code computes in float32 throughout; this package in each of
``--dtypes``.

A ratio is how many times longer the published code takes, the median over the rounds; for memory, the share that this
package takes. Seconds of the processor are distorted less by other work on the machine than those of the wall. Exit
code 1: answers in float32 differ. ``--smoke`` takes the built-in model, whose million weights say nothing about large
ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluate import in_turns
from published_code import (
    OWN,
    PUBLISHED,
    Clock,
    Rounds,
    Row,
    add_sides,
    equal_texts,
    lines_of,
    open_side,
    options_of_own,
    peak_bytes,
    run_comparison,
    run_side,
)
from random_model import CLIP, QUESTION

IMAGE = CLIP.with_name("shapes.png")
SECOND_QUESTION = "How many objects are there in the end?"
DTYPES = ("float32", "bfloat16", "int8")
STAGES = ("import", "load", "start", "first answer", "second question", "image")
"""Of a round. The start is importing and loading together."""
ANSWERS = STAGES[3:]

AT_LEAST = {
    "float32": {"start": 1.0, "first answer": 1.05, "second question": 10.0, "image": 4.0},
    "bfloat16": {"first answer": 2.5},
    "int8": {"first answer": 2.5},
}
"""Goals: times that the published code takes longer. Those of bfloat16 and int8 are for processors that have
instructions for them (AVX512_BF16 or AMX, VNNI)."""
MEMORY_AT_MOST = {"float32": 0.65, "bfloat16": 0.4, "int8": 0.25}
"""Goals: share of the published code's peak memory."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of this package")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--video", type=Path, default=CLIP, help="clip to ask about (default: the bundled one)")
    return add_sides(parser, 3, 24, arguments)


# ------------------------------------------------------------------------------------------------------ one side


def child(side: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One round of a side, in this process."""
    clock, answers = Clock(), {}
    with clock.stage("start"):
        with clock.stage("import"):
            open_side(side, args, dtype)

            from videollama2 import mm_infer, model_init

        with clock.stage("load"):
            options = {"device": "cpu"} if side == PUBLISHED else options_of_own(dtype)
            model, processor, tokenizer = model_init(str(args.model), **options)
    asked = [("video", args.video, QUESTION), ("video", args.video, SECOND_QUESTION), ("image", IMAGE, QUESTION)]
    for name, (modal, path, question) in zip(ANSWERS, asked, strict=True):
        with clock.stage(name):
            medium = processor[modal](str(path))
            answers[name] = mm_infer(
                medium, question, model=model, tokenizer=tokenizer, modal=modal, max_new_tokens=args.new_tokens
            )
    return {"wall": clock.wall, "processor": clock.processor, "memory": peak_bytes(), "answers": answers}


# ------------------------------------------------------------------------------------------------------ both sides


def rows(published: Rounds, own: Rounds, dtype: str, judged: bool = True) -> list[Row]:
    """Compare the rounds of both sides, pair by pair, and hold them to the goals if they are ``judged``."""
    goals, memory = (AT_LEAST[dtype], MEMORY_AT_MOST[dtype]) if judged else ({}, None)
    found = [Row.of_seconds(stage, published, own, goals.get(stage)) for stage in STAGES]
    return [*found, Row.of_memory("peak memory, GiB", published, own, memory)]


def table(dtype: str, published: Rounds, own: Rounds, judged: bool = True) -> str:
    equal, count = equal_texts(published, own, ANSWERS)
    head, last = (
        f"this package in {dtype}, the published code in float32",
        f"{equal} of {count} answers are the same text",
    )
    return "\n".join([head, *lines_of(rows(published, own, dtype, judged)), f"  {last}", ""])


def compare(args: argparse.Namespace) -> int:
    """Run all rounds, print one table per dtype; returns the exit code."""
    sides = {PUBLISHED: (PUBLISHED, "float32"), **{dtype: (OWN, dtype) for dtype in args.dtypes}}
    run = partial(run_side, __file__, args=args, names=("model", "video", "new_tokens"))
    rounds = in_turns({name: partial(run, side, dtype) for name, (side, dtype) in sides.items()}, args.rounds)
    for dtype in args.dtypes:
        print(table(dtype, rounds[PUBLISHED], rounds[dtype], judged=not args.smoke))
    equal, count = equal_texts(rounds[PUBLISHED], rounds.get("float32", rounds[PUBLISHED]), ANSWERS)
    return 0 if equal == count else 1


if __name__ == "__main__":
    sys.exit(run_comparison(parse(), child, compare))
