"""Accuracy on a set of the built-in world, per question type, as drawn and with each video's frames shuffled.

    python -m videollama2.shapes.accuracy --model videollama2-tiny --data DIR [--output results.json]

An answer is right when it is the expected one, apart from case, outer spaces and a final dot. Shuffling shows
whether a model uses time: questions about the order of frames must become harder, the others must not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from videollama2.checkpoints import load_pretrained_model
from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.data.rows import read_rows
from videollama2.errors import DataError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor, expand_placeholders, pad_rows
from videollama2.prompting import user_messages
from videollama2.shapes.sets import QUESTION_TYPES, STATIC_TYPES, TEMPORAL_TYPES

ENCODE_BATCH = 16
"""Videos that are encoded together."""
MAX_NEW_TOKENS = 16
GROUPS = {"static": STATIC_TYPES, "temporal": TEMPORAL_TYPES, "overall": QUESTION_TYPES}


@dataclass(frozen=True)
class Question:
    """One row of ``questions.json``; ``kind`` is ``image`` or ``video``."""

    id: str
    kind: str
    file: str
    type: str
    question: str
    answer: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """One line of the table; shares between 0 and 1. ``drop`` is in the same unit."""

    questions: int
    accuracy: float
    chance: float
    shuffled: float

    @property
    def drop(self) -> float:
        return self.accuracy - self.shuffled


def read_questions(folder: str | Path) -> list[Question]:
    """The questions of a set.

    Raises:
        DataError: no such file, or a row without one of its fields.
    """
    path = Path(folder) / "questions.json"
    found = []
    for number, row in enumerate(read_rows(path)):
        try:
            kind = "video" if "video" in row else "image"
            fields = (row["type"], row["question"], row["answer"], tuple(row["candidates"]))
            found.append(Question(row["id"], kind, str(Path(folder) / row[kind]), *fields))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: row {number} is no question: {error!r} is missing") from error
    if not found:
        raise DataError(f"{path}: there is no question")
    return found


def normalise(text: str) -> str:
    """What answers are compared as: lower case, no outer spaces, no final dot."""
    return text.strip().lower().removesuffix(".").rstrip()


def shuffled_order(frames: int, seed: str) -> list[int]:
    """A permutation of ``0 .. frames - 1`` drawn from ``seed``, never the identity where there is another."""
    rng = random.Random(seed)
    order = list(range(frames))
    while frames > 1 and order == sorted(order):
        rng.shuffle(order)
    return order


class Evaluator:
    """Answers questions of a set; every file is read and encoded once.

    Args:
        model, processor: on one device.
        batch_size: questions answered together.
        progress: show bars on standard error.
    """

    def __init__(
        self,
        model: VideoLlama2ForConditionalGeneration,
        processor: VideoLlama2Processor,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.batch_size = batch_size
        self.progress = progress
        self.tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def answers(self, questions: Sequence[Question], shuffle: bool = False) -> list[str]:
        """One answer per question, greedy; ``shuffle`` permutes the frames of each video first."""
        self._encode(questions)
        rows = [self._row(question) for question in questions]
        # Neighbours in length share a batch: less padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers = [""] * len(rows)
        batches = range(0, len(order), self.batch_size)
        for start in tqdm(batches, desc="answer", unit="batch", disable=not self.progress):
            chosen = order[start : start + self.batch_size]
            texts = self._generate([rows[i] for i in chosen], [questions[i] for i in chosen], shuffle)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
        return answers

    def _encode(self, questions: Sequence[Question]) -> None:
        """Visual tokens (N, D) of every new file, as it is and shuffled. An image has one order only."""
        kinds = {question.file: question.kind for question in questions if question.file not in self.tokens}
        files = sorted(kinds, key=lambda file: kinds[file])
        for start in tqdm(range(0, len(files), ENCODE_BATCH), desc="encode", unit="batch", disable=not self.progress):
            chunk = files[start : start + ENCODE_BATCH]
            images = [file for file in chunk if kinds[file] == "image"]
            videos = [file for file in chunk if kinds[file] == "video"]
            if images:
                pixels = torch.cat([self.processor.load_image(file) for file in images]).to(self.model.device)
                tokens = self.model.get_image_features(pixels).pooler_output
                self.tokens.update((file, (t, t)) for file, t in zip(images, tokens, strict=True))
            if videos:
                clips = [self.processor.load_video(file).to(self.model.device) for file in videos]
                mixed = [
                    clip_TCHW[shuffled_order(len(clip_TCHW), Path(file).name)]
                    for file, clip_TCHW in zip(videos, clips, strict=True)
                ]
                tokens = self.model.get_video_features(clips + mixed).pooler_output
                pairs = zip(tokens[: len(videos)], tokens[len(videos) :], strict=True)
                self.tokens.update(zip(videos, pairs, strict=True))

    def _row(self, question: Question) -> list[int]:
        prompt = self.processor.prompt(user_messages(question.question, question.kind))
        ids = prompt.token_ids(self.processor.tokenizer)
        return expand_placeholders(ids, [len(self.tokens[question.file][0])], self.model.config)[0]

    def _generate(self, rows: list[list[int]], questions: list[Question], shuffle: bool) -> list[str]:
        device, tokenizer = self.model.device, self.processor.tokenizer
        ids_BL = pad_rows(rows, self.processor.pad_token_id, "left").to(device)
        mask_BL = pad_rows([[1] * len(row) for row in rows], 0, "left").to(device)
        media = {
            kind: [self.tokens[q.file][shuffle] for q in questions if q.kind == kind] for kind in ("image", "video")
        }
        new_BL = self.model.generate(
            inputs_embeds=self.model.model.embed(ids_BL, media["image"], media["video"]),
            attention_mask=mask_BL,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self.processor.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return tokenizer.batch_decode(new_BL, skip_special_tokens=True)


def score(questions: Sequence[Question], straight: Sequence[str], shuffled: Sequence[str]) -> dict[str, Score]:
    """Scores per question type and per group, in the order of the table; types without questions left out."""
    rows = list(zip(questions, straight, shuffled, strict=True))
    table = {}
    for name, types in {**{kind: (kind,) for kind in QUESTION_TYPES}, **GROUPS}.items():
        chosen = [row for row in rows if row[0].type in types]
        if chosen:
            right = [normalise(answer) == normalise(q.answer) for q, answer, _ in chosen]
            right_shuffled = [normalise(answer) == normalise(q.answer) for q, _, answer in chosen]
            chance = sum(1 / len(q.candidates) for q, _, _ in chosen)
            count = len(chosen)
            table[name] = Score(count, sum(right) / count, chance / count, sum(right_shuffled) / count)
    return table


def format_table(table: dict[str, Score]) -> str:
    """The scores as text, in percent."""
    lines = [f"{'type':<12}{'questions':>10}{'accuracy':>10}{'chance':>8}{'shuffled':>10}{'drop':>8}"]
    for name, row in table.items():
        if name == "static":
            lines.append("-" * len(lines[0]))
        numbers = (row.accuracy, row.chance, row.shuffled, row.drop)
        accuracy, chance, shuffled, drop = (f"{100 * number:.1f}" for number in numbers)
        lines.append(f"{name:<12}{row.questions:>10}{accuracy:>10}{chance:>8}{shuffled:>10}{drop:>8}")
    return "\n".join(lines)


def evaluate(model_path: str, data: str | Path, batch_size: int = 64, progress: bool = False) -> dict[str, Any]:
    """Load a model and score it.

    Returns:
        ``model``, ``data``, ``scores`` (per type and group), ``answers`` (per question), ``table`` (as text).

    Raises:
        VideoLlama2Error: the model or the set cannot be read.
    """
    questions = read_questions(data)
    _, model, processor, _ = load_pretrained_model(model_path)
    evaluator = Evaluator(model, processor, batch_size, progress)
    straight, shuffled = (evaluator.answers(questions, shuffle) for shuffle in (False, True))
    table = score(questions, straight, shuffled)
    answers = [
        {"id": q.id, "type": q.type, "question": q.question, "expected": q.answer, "answer": a, "shuffled": s}
        for q, a, s in zip(questions, straight, shuffled, strict=True)
    ]
    scores = {name: {**asdict(row), "drop": row.drop} for name, row in table.items()}
    return {
        "model": model_path,
        "data": str(data),
        "scores": scores,
        "answers": answers,
        "table": format_table(table),
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.accuracy",
        description="Score a model on a set of the built-in world, as drawn and with shuffled frames.",
    )
    parser.add_argument("--model", default="videollama2-tiny", help="folder or name")
    parser.add_argument("--data", required=True, type=Path, help="folder of the set, with questions.json")
    parser.add_argument("--batch-size", default=64, type=int, help="questions answered together")
    parser.add_argument("--output", type=Path, help="file for scores and answers, JSON")
    add_debug_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0, or 2 after one line that says what is wrong)."""
    options = _parser().parse_args(argv)
    return run_command(lambda: _run(options), debug=options.debug)


def _run(options: argparse.Namespace) -> None:
    results = evaluate(options.model, options.data, options.batch_size, progress=True)
    print(results.pop("table"))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
