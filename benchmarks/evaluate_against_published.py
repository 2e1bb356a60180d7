#!/usr/bin/env python3
"""Evaluation by this package and by the published VideoLLaMA2 script side by side on a CPU: seconds of a question.

    python benchmarks/evaluate_against_published.py WORKTREE --python PYTHON [--clips 2] [--per-clip 10] [--layers 6]

``WORKTREE`` and ``PYTHON`` are those of ``against_published.py``; ``published_code.py`` says what is changed in memory
so that the published code runs on a CPU. Both sides answer the same set: clips of the built-in world in the layout of
ActivityNet-QA, which has ten questions about each clip. One side is ``inference_video_oqa_activitynet.py`` of the work
tree, the other the runner of ``videollama2 eval run``; both in float32 with the same weights, which are random, with
the shapes of a 0.5B Qwen2, CLIP ViT-L/14-336 and the STC connector and ``--layers`` layers in decoder and encoder. As
random weights end no answer, both are held to ``--new-tokens`` tokens. ``--smoke`` takes the built-in model, whose
answers end by themselves; ``--loaders`` processes read clips for the published script (its default is 8).
``--own-dtype auto`` computes this package's side as its commands do by default; equal answers are then only counted.

Every round starts a new process for each side, in turns. Timed is what happens between loading and the last answer. A
ratio is how many times longer the published code takes, the median over the rounds. Exit code 1: answers differ.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluate import in_turns
from published_code import (
    OWN,
    PUBLISHED,
    Rounds,
    Row,
    add_sides,
    equal_texts,
    lines_of,
    open_side,
    peak_bytes,
    run_comparison,
    run_side,
)

GOAL = 3.0
STAGE = "a question"
SCRIPT = "videollama2/eval/inference_video_oqa_activitynet.py"
FOLDER = "Activitynet_Zero_Shot_QA"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--per-clip", type=int, default=10, help="questions about each (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=8, help="of an answer by random weights")
    parser.add_argument("--own-dtype", default="float32", help="of this package's side; auto: what a user gets")
    parser.add_argument("--loaders", type=int, default=1, help="processes that read clips for the published script")
    parser.add_argument("--data", type=Path, help="where the set is written, kept and found again")
    return add_sides(parser, 2, 6, arguments)


# ------------------------------------------------------------------------------------------------------ one side


def child(side: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One round of a side, in this process."""
    open_side(side, args, dtype)

    begun, answers = published(args) if side == PUBLISHED else own(args, dtype)
    seconds = [(after - before) / len(answers) for before, after in zip(begun, stamps(), strict=True)]
    return {"wall": {STAGE: seconds[0]}, "processor": {STAGE: seconds[1]}, "memory": peak_bytes(), "answers": answers}


def stamps() -> tuple[float, float]:
    """Seconds of the wall, and those of the processor of this process and the ones it started that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def published(args: argparse.Namespace) -> tuple[tuple[float, float], dict[str, str]]:
    """Run the published script; returns when its model was loaded, and its answers by question."""
    code: Any = importlib.import_module("videollama2")
    load, infer, loaded = code.model_init, code.mm_infer, []

    def model_init(*arguments: Any, **options: Any) -> Any:
        opened = load(*arguments, **options)
        loaded.append(stamps())
        return opened

    def mm_infer(*arguments: Any, **options: Any) -> str:
        return infer(*arguments, **options, **({} if args.smoke else {"max_new_tokens": args.new_tokens}))

    code.model_init, code.mm_infer = model_init, mm_infer
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.jsonl"
        flags = {
            "--model-path": args.model,
            "--video-folder": args.data / FOLDER / "all_test",
            "--question-file": args.data / FOLDER / "test_q.json",
            "--answer-file": args.data / FOLDER / "test_a.json",
            "--output-file": out,
            "--num-workers": args.loaders,
        }
        sys.argv = [SCRIPT, *(str(each) for pair in flags.items() for each in pair)]
        runpy.run_path(str(Path(args.worktree) / SCRIPT), run_name="__main__")
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return loaded[0], {row["id"]: row["pred"] for row in rows}


def own(args: argparse.Namespace, dtype: str) -> tuple[tuple[float, float], dict[str, str]]:
    """Run this package's runner; returns when the model was loaded, and the answers by question."""
    from videollama2 import model_init
    from videollama2.eval.benchmarks import benchmark
    from videollama2.eval.running.runner import AnswerOptions, Runner, open_evaluation_engine

    model, processor, _ = model_init(str(args.model), device="cpu", dtype=dtype)
    loaded, answers = stamps(), {}
    asked, data = benchmark("activitynet_qa"), args.data / FOLDER
    options = AnswerOptions(max_new_tokens=None if args.smoke else args.new_tokens)
    with open_evaluation_engine(model, processor) as engine:
        runner = Runner(engine, asked, data, options)
        runner.run(list(asked.load(data)), lambda answer: answers.__setitem__(answer.id, answer.output))
    return loaded, answers


# ------------------------------------------------------------------------------------------------------ both sides


def write_questions(folder: Path, clips: int, per_clip: int) -> int:
    """Write a set in the layout of ActivityNet-QA; returns the number of questions."""
    from videollama2.shapes.sets import write_set

    target = folder / FOLDER
    world = target / "world"
    write_set(world, videos=2 * clips, seed=31, questions_per_item=2 * per_clip, mcq_fraction=0)
    clips_with_turns = {
        row["video"]: [turn["value"].replace("<video>", "").strip() for turn in row["conversations"]]
        for row in json.loads((world / "train.json").read_text(encoding="utf-8"))
    }
    # Clips about which there is most to ask.
    chosen = sorted(clips_with_turns.items(), key=lambda pair: -len(pair[1]))[:clips]
    (target / "all_test").mkdir(parents=True, exist_ok=True)
    questions, answers = [], []
    for name, turns in chosen:
        video = target / "all_test" / f"v_{Path(name).name}"
        video.write_bytes((world / name).read_bytes())
        for question, answer in list(zip(turns[::2], turns[1::2], strict=True))[:per_clip]:
            number = f"{Path(name).stem}_{len(questions)}"
            questions.append({"video_name": Path(name).stem, "question": question, "question_id": number})
            answers.append({"answer": answer, "type": 8, "question_id": number})
    (target / "test_q.json").write_text(json.dumps(questions), encoding="utf-8")
    (target / "test_a.json").write_text(json.dumps(answers), encoding="utf-8")
    return len(questions)


def rows(published: Rounds, own: Rounds) -> list[Row]:
    """Compare the rounds of both sides, pair by pair."""
    return [Row.of_seconds(STAGE, published, own, GOAL), Row.of_memory("peak memory, GiB", published, own)]


def compare(args: argparse.Namespace) -> int:
    """Run all rounds and print the table; returns the exit code."""
    count = write_questions(args.data, args.clips, args.per_clip)
    print(f"{count} questions about {args.clips} clips" + ("" if args.smoke else f", {args.new_tokens} tokens each"))
    run = partial(run_side, __file__, args=args, names=("model", "data", "new_tokens", "loaders"))
    dtypes = {PUBLISHED: "float32", OWN: args.own_dtype}
    rounds = in_turns({side: partial(run, side, dtype=dtype) for side, dtype in dtypes.items()}, args.rounds)
    both = rounds[PUBLISHED], rounds[OWN]
    equal, of_all = equal_texts(*both)
    print("\n".join([*lines_of(rows(*both)), f"  {equal} of {of_all} answers are the same text"]))
    return 0 if equal == of_all or args.own_dtype != "float32" else 1


if __name__ == "__main__":
    sys.exit(run_comparison(parse(), child, compare))
