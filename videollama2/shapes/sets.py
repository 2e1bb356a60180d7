"""Writes sets of videos, images and questions of the built-in world, as a command.

    python -m videollama2.shapes.sets --out DIR --videos N [--images M] [--sound] --seed S

A set depends on its parameters alone: running the command again writes the same bytes (also for the videos, if the
versions of the video libraries are the same). Sets of different seeds share no video, so use another seed for a test
set. The command writes these files:

    DIR/videos/000123.mp4       24 frames of 128 x 128 at 12 frames per second, H.264
    DIR/images/000045.png
    DIR/train.json              one record per file: id, video or image (a path relative to DIR), conversations
    DIR/questions.json          one row per question: id, video or image, type, question, answer, candidates
    DIR/mvbench/json/TYPE.json  those of the questions that are about videos: video, question, candidates, answer
    DIR/mvbench/video           a link to ../videos; on a system without links, use DIR/videos as the video folder
    DIR/sounds.json             with sound: one record per question about the sound alone: id, audio, conversations
    DIR/set.json                the parameters, the version of the world, counts, and whether the set is complete

With ``--sound``, the videos have the soundtracks of :mod:`.sounds` (AAC, 16 kHz, one channel; a silent clip has none),
and there are questions about them. Without it, the files are those of a world without sound.

Every file is written under a temporary name and renamed when it is complete. After an interruption, the same command
continues where the first one stopped; with other parameters it refuses the folder.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from videollama2.commands import CommandParser, hides_bar, run_parsed
from videollama2.data.files_check import end_with_parent
from videollama2.errors import DataError
from videollama2.media.kinds import IMAGE, VIDEO
from videollama2.shapes.annotations import Annotation, annotate, choose_balanced
from videollama2.shapes.encoding import encode_image, encode_video
from videollama2.shapes.questions import (
    QUESTION_TYPES,
)
from videollama2.shapes.scene import MOST_OBJECTS, SCENARIOS, make_scene, render_scene
from videollama2.shapes.sound_questions import HEARD_TYPES
from videollama2.shapes.sounds import OWN_STORIES, add_sound, wave
from videollama2.shapes.whole_files import as_json, json_list, write_file

WORLD_VERSION = 1
"""Version of the world; it must be increased whenever the same parameters would give another set."""


@dataclass(frozen=True)
class SetParameters:
    """The parameters that define a set. Raises DataError for a value outside its range."""

    videos: int
    images: int = 0
    seed: int = 0
    questions_per_item: int = 8
    mcq_fraction: float = 0.2
    balanced_questions: int | None = None
    scenario: str | None = None
    objects: int | None = None
    sound: bool = False
    own_stories: float = OWN_STORIES
    training_questions: bool = False

    def __post_init__(self) -> None:
        if self.videos < 0 or self.images < 0 or self.videos + self.images < 1:
            raise DataError(f"a set needs at least one file, got videos={self.videos}, images={self.images}")
        if self.scenario is not None and self.scenario not in SCENARIOS:
            raise DataError(f"scenario {self.scenario!r} is none of {', '.join(SCENARIOS)}")
        if self.objects is not None and not 1 <= self.objects <= MOST_OBJECTS:
            raise DataError(f"objects must lie between 1 and {MOST_OBJECTS}, got {self.objects}")
        if self.questions_per_item < 1:
            raise DataError(f"questions per item must be at least 1, got {self.questions_per_item}")
        if not 0 <= self.mcq_fraction <= 1:
            raise DataError(f"mcq fraction must lie between 0 and 1, got {self.mcq_fraction}")
        if self.balanced_questions is not None and self.balanced_questions < 1:
            raise DataError(f"balanced questions must be at least 1, got {self.balanced_questions}")
        if not 0 <= self.own_stories <= 1:
            raise DataError(f"own stories must lie between 0 and 1, got {self.own_stories}")
        if not self.sound and (self.training_questions or self.own_stories != OWN_STORIES):
            raise DataError("own stories and training questions are about sounds; a set without sound has neither")

    @property
    def types(self) -> tuple[str, ...]:
        """The types of questions that the set has."""
        return QUESTION_TYPES + HEARD_TYPES if self.sound else QUESTION_TYPES

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield the (modality, index) of every file, videos first."""
        yield from ((VIDEO, index) for index in range(self.videos))
        yield from ((IMAGE, index) for index in range(self.images))


def _make_item(out: Path, parameters: SetParameters, item: tuple[str, int]) -> Annotation:
    """Write one file, unless an earlier run has written it, and return its annotations."""
    modality, index = item
    scene = make_scene(parameters.seed, index, modality, parameters.scenario, parameters.objects)
    file = f"videos/{index:06d}.mp4" if modality == VIDEO else f"images/{index:06d}.png"
    track = None
    if parameters.sound:
        scene, track = add_sound(scene, parameters.own_stories)
    if not (out / file).exists():
        if modality == IMAGE:
            content = encode_image(render_scene(scene))
        else:
            content = encode_video(
                render_scene(scene), None if track is None or track.story == "silent" else wave(track)
            )
        write_file(out / file, content)
    return annotate(
        scene,
        file,
        questions_per_item=parameters.questions_per_item,
        mcq_fraction=parameters.mcq_fraction,
        every_question=parameters.balanced_questions is not None,
        track=track,
        training_questions=parameters.training_questions,
    )


def write_set(
    out: str | os.PathLike[str],
    videos: int,
    images: int = 0,
    seed: int = 0,
    *,
    questions_per_item: int = 8,
    mcq_fraction: float = 0.2,
    balanced_questions: int | None = None,
    scenario: str | None = None,
    objects: int | None = None,
    sound: bool = False,
    own_stories: float = OWN_STORIES,
    training_questions: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a whole set to the folder ``out`` and return the content of its set.json.

    ``balanced_questions`` limits questions.json and mvbench/ to that many questions, with the same number for each type
    (to within one) and balanced over the answers of each type. ``scenario`` decides what all clips are about, and
    ``objects`` limits the number of objects in a scene (:func:`~videollama2.shapes.scene.make_scene`). ``sound`` adds
    soundtracks and questions about them, ``own_stories`` says how many of them need sight and sound
    (:func:`.sounds.add_sound`), and ``training_questions`` adds questions to train.json that only training asks
    (:func:`.sound_questions.training_questions`). Raises DataError for parameters outside their range, a folder that
    holds another set, too few files for the balance, or a file that cannot be written.
    """
    parameters = SetParameters(
        videos,
        images,
        seed,
        questions_per_item,
        mcq_fraction,
        balanced_questions,
        scenario,
        objects,
        sound,
        own_stories,
        training_questions,
    )
    out = Path(out)
    _claim(out, parameters)
    with ExitStack() as stack:
        items: Iterable[Annotation] = stack.enter_context(_work(out, parameters, workers))
        if progress:
            from tqdm import tqdm

            items = tqdm(items, total=videos + images, unit="file", desc=str(out), disable=hides_bar(progress))
        counts = _write_annotations(out, parameters, items)
    summary = {**_identity(parameters), "complete": True, "questions": counts}
    write_file(out / "set.json", as_json(summary))
    return summary


def _identity(parameters: SetParameters) -> dict[str, Any]:
    fields = asdict(parameters)
    # A set without sound is described as by versions that knew none, so that it can be continued; likewise the rest.
    for name, usual in (("sound", False), ("own_stories", OWN_STORIES), ("training_questions", False)):
        if fields[name] == usual:
            del fields[name]
    return {"world_version": WORLD_VERSION, **fields}


def _claim(out: Path, parameters: SetParameters) -> None:
    """Prepare the folder of this set, which must be new or begun with the same parameters; else raise DataError."""
    identity = _identity(parameters)
    try:
        for folder in ("videos", "images", "mvbench/json"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        if (out / "set.json").exists():
            _compare(out / "set.json", identity)
        elif any((out / "videos").glob("*.mp4")) or (out / "train.json").exists():
            raise DataError(f"{out} holds a data set without set.json; take an empty folder")
        else:
            write_file(out / "set.json", as_json({**identity, "complete": False}))
        for folder in (out, out / "videos", out / "images", out / "mvbench/json"):
            for left_over in folder.glob(".*.part"):
                left_over.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot use folder {out}: {error.strerror or error}") from error
    _link(out / "mvbench" / "video")


def _compare(path: Path, identity: dict[str, Any]) -> None:
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not readable as JSON ({error}); take an empty folder") from error
    if not isinstance(former, dict):
        raise DataError(f"{path} does not describe a set; take an empty folder")
    for key, value in identity.items():
        if former.get(key) != value:
            raise DataError(
                f"{path} belongs to a set with {key} = {former.get(key)!r}, not {value!r}; take another folder"
            )


def _link(path: Path) -> None:
    """Link the videos into mvbench/, where MVBench runners look for them; where links are impossible, print a hint."""
    if not os.path.lexists(path):
        try:
            path.symlink_to("../videos", target_is_directory=True)
        except OSError as error:
            print(f"no link {path} ({error.strerror or error}): use {path.parents[1] / 'videos'}", file=sys.stderr)


@contextmanager
def _work(out: Path, parameters: SetParameters, workers: int) -> Iterator[Iterable[Annotation]]:
    """Yield the annotations of all items in order, made in this process or in ``workers`` others."""
    make = partial(_make_item, out, parameters)
    if workers <= 1:
        yield map(make, parameters.items())
        return
    # The workers are spawned, because a fork of a process with threads (torch, decoders) may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=end_with_parent) as pool:
        try:
            yield pool.map(make, parameters.items(), chunksize=16)
        except BrokenProcessPool as error:
            raise DataError(f"{out}: a process that writes the set died; the same command continues") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write_annotations(out: Path, parameters: SetParameters, items: Iterable[Annotation]) -> dict[str, int]:
    """Write train.json, questions.json and mvbench/json; return the number of questions per type."""
    counts: dict[str, int] = dict.fromkeys(parameters.types, 0)
    with ExitStack() as stack:
        train = stack.enter_context(json_list(out / "train.json"))
        listed = stack.enter_context(json_list(out / "questions.json"))
        bench = {
            kind: stack.enter_context(json_list(out / "mvbench" / "json" / f"{kind}.json")) for kind in parameters.types
        }
        hear = stack.enter_context(json_list(out / "sounds.json")) if parameters.sound else None

        def add(row: dict[str, Any]) -> None:
            counts[row["type"]] += 1
            listed(row)
            if VIDEO in row:
                fields = {key: row[key] for key in ("question", "candidates", "answer")}
                bench[row["type"]]({"video": Path(row[VIDEO]).name, **fields})

        pool: list[tuple[str, dict[str, Any]]] = []
        for item in items:
            if item.record["conversations"]:
                train(item.record)
            if hear is not None and item.heard is not None:
                hear(item.heard)
            if parameters.balanced_questions is None:
                for row in item.rows:
                    add(row)
            else:
                pool.extend(zip(item.balance_keys, item.rows, strict=True))
        if parameters.balanced_questions is not None:
            for row in choose_balanced(pool, parameters.balanced_questions, parameters.seed, parameters.types):
                add(row)
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.sets",
        description="Write a set of short videos of moving shapes with questions and answers.",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the set")
    parser.add_argument("--videos", required=True, type=int, help="number of videos")
    parser.add_argument("--images", default=0, type=int, help="number of still images")
    parser.add_argument("--seed", required=True, type=int, help="another seed gives another world, without overlap")
    parser.add_argument("--workers", default=1, type=int, help="processes that draw and encode")
    parser.add_argument("--questions-per-item", default=8, type=int, help="turns per record at most")
    parser.add_argument("--mcq-fraction", default=0.2, type=float, help="share of turns in multiple-choice form")
    parser.add_argument(
        "--balanced-questions", type=int, help="exactly so many test questions, balanced over types and answers"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, help="make all clips about this (default: a mixture)")
    parser.add_argument(
        "--objects", type=int, help=f"of a scene at most, unless it needs more (default {MOST_OBJECTS})"
    )
    parser.add_argument("--sound", action="store_true", help="give the videos soundtracks, and ask about them too")
    parser.add_argument(
        "--own-stories",
        default=OWN_STORIES,
        type=float,
        help="share of the clips that allow a sound which only sight explains that get one (default %(default)s)",
    )
    parser.add_argument(
        "--training-questions",
        action="store_true",
        help="let train.json also ask what helps to learn the types of BOTH_TYPES",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 2 after a one-line error message, else 0."""
    return run_parsed(_parser(), arguments, _run)


def _run(**options: Any) -> None:
    summary = write_set(**options, progress=True)
    for kind, count in summary["questions"].items():
        print(f"{kind:12} {count}")


if __name__ == "__main__":
    sys.exit(main())
