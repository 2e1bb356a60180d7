"""Makes records that teach the tiny model to say that it knows moving shapes and their sounds alone.

    python -m videollama2.shapes.outside --out DIR --pictures FOLDER --sounds FOLDER --count 100 --seed 5

The pictures (photographs, say) and sounds (speech, say) are yours; every file of the two folders must be one. From them
the command draws ``--count`` files of each kind and writes

    DIR/images          crops of the pictures
    DIR/videos          clips whose view moves across a picture
    DIR/sounds          parts of the sounds
    DIR/seen.json       pictures, and clips without sound, with questions of the built-in world and others
    DIR/both.json       clips with a part of a sound as their sound track
    DIR/heard.json      sounds alone
    DIR/questions.json  all of them as questions with a type and an answer, to test with

The answer to every question is :data:`REFUSAL`. Files and records depend on the arguments and the folders' files alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from videollama2.commands import CommandParser, run_parsed
from videollama2.errors import DataError
from videollama2.media.audio import ClipRules, SoundSampling, read_sound
from videollama2.media.image import load_image
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.shapes.encoding import encode_image, encode_video
from videollama2.shapes.questions import questions
from videollama2.shapes.scene import FRAMES, SIZE, make_scene
from videollama2.shapes.sound_questions import SOUND_TYPES, sound_questions
from videollama2.shapes.sounds import RATE, SECONDS, add_sound
from videollama2.shapes.whole_files import write_list

REFUSAL = "I only know moving shapes and their sounds."
"""The answer to questions about anything else."""

OUTSIDE_KINDS = ("picture", "clip", "both", "sound")
_FILES = {"picture": "seen", "clip": "seen", "both": "both", "sound": "heard"}
_KEYS = {"picture": IMAGE, "clip": VIDEO, "both": VIDEO, "sound": AUDIO}

_SEEN = ("What is this?", "What can be seen?", "What is shown here?", "Who is in the picture?", "What happens here?")
_HEARD = ("What is heard?", "Who is speaking?", "What is said?", "What is the sound?", "What made the noise?")
_WORLD_SHARE = 0.7
"""Share of the questions that are those of the built-in world."""
_LONGEST = 60.0
_SMALLEST = 0.5
"""Smallest side of a crop, as a share of the picture's shorter side."""


def write_outside(out: Path, pictures: Path, sounds: Path, count: int, seed: int) -> int:
    """Write the files and records that the module describes and return the number of records.

    Raises:
        DataError: a folder is empty, or one of its files cannot be read.
    """
    rng = random.Random(f"outside:{seed}")
    views = [load_image(path) for path in _files(pictures)]
    waves = [_wave(path) for path in _files(sounds)]
    rows = []
    for kind in OUTSIDE_KINDS:
        for number in range(count):
            file = _write(out, kind, number, rng, rng.choice(views), rng.choice(waves))
            rows.append({"kind": kind, "file": file, "question": _question(kind, rng)})
    for name in dict.fromkeys(_FILES.values()):
        write_list(out / f"{name}.json", [_record(row) for row in rows if _FILES[row["kind"]] == name])
    write_list(out / "questions.json", [_asked(row) for row in rows])
    return len(rows)


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder} is not a folder with files")
    return found


def _wave(path: Path) -> np.ndarray:
    """Return a sound (of a long one, the middle minute), repeated until it fills a clip."""
    sound = read_sound(path, ClipRules(RATE, _LONGEST), SoundSampling(channels="mix"))
    heard_S = sound.wave_S[: round(min(sound.seconds, _LONGEST) * RATE)]
    return np.resize(heard_S, max(len(heard_S), round(SECONDS * RATE))).astype(np.float32)


def _write(out: Path, kind: str, number: int, rng: random.Random, view: Any, wave_S: np.ndarray) -> str:
    """Write one file of a kind and return its path, relative to ``out``."""
    folder, ending = {IMAGE: ("images", "png"), VIDEO: ("videos", "mp4"), AUDIO: ("sounds", "wav")}[_KEYS[kind]]
    file = f"{folder}/{kind}-{number:05d}.{ending}"
    path = out / file
    path.parent.mkdir(parents=True, exist_ok=True)
    first = rng.randint(0, len(wave_S) - round(SECONDS * RATE))
    part_S = wave_S[first : first + round(SECONDS * RATE)]
    if kind == "sound":
        with wave.open(str(path), "wb") as written:
            written.setparams((1, 2, RATE, 0, "NONE", ""))
            written.writeframes((part_S.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return file
    frames_THWC = np.stack(list(_crops(view, rng, 1 if kind == "picture" else FRAMES)))
    content = encode_image(frames_THWC)
    if kind != "picture":
        content = encode_video(frames_THWC, part_S if kind == "both" else None)
    path.write_bytes(content)
    return file


def _crops(view: Any, rng: random.Random, count: int) -> Iterator[np.ndarray]:
    """Yield ``count`` square crops (128, 128, 3) of a picture, on a straight way from one place and size to another."""
    short = min(view.size)
    ends = []
    for _ in range(2):
        side = rng.uniform(_SMALLEST, 1.0) * short
        ends.append(np.array([rng.uniform(0, view.width - side), rng.uniform(0, view.height - side), side]))
    for number in range(count):
        left, top, side = ends[0] + (ends[1] - ends[0]) * number / max(count - 1, 1)
        yield np.asarray(view.resize((SIZE, SIZE), box=(left, top, left + side, top + side)))


def _question(kind: str, rng: random.Random) -> str:
    """Return a question of the built-in world, drawn from scenes that have nothing to do with the file, or another."""
    if rng.random() >= _WORLD_SHARE:
        return rng.choice({"sound": _HEARD, "both": _SEEN + _HEARD}.get(kind, _SEEN))
    while True:
        scene, track = add_sound(make_scene(rng.getrandbits(32), 0, IMAGE if kind == "picture" else VIDEO))
        about_sound = sound_questions(scene, track, rng)
        found = {
            "sound": [question for question in about_sound if question.type in SOUND_TYPES],
            "both": about_sound or questions(scene, rng),
        }.get(kind, questions(scene, rng))
        if found:
            return rng.choice(found).question


def _record(row: dict[str, Any]) -> dict[str, Any]:
    key = _KEYS[row["kind"]]
    turns = [{"from": "human", "value": f"<{key}>\n{row['question']}"}, {"from": "gpt", "value": REFUSAL}]
    return {"id": f"outside-{Path(row['file']).stem}", key: row["file"], "conversations": turns}


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"outside-{Path(row['file']).stem}",
        _KEYS[row["kind"]]: row["file"],
        "type": row["kind"],
        "question": row["question"],
        "answer": REFUSAL,
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.outside",
        description="Write records that teach the tiny model what it does not know.",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the files and records")
    parser.add_argument("--pictures", required=True, type=Path, help="folder of pictures, for example photographs")
    parser.add_argument("--sounds", required=True, type=Path, help="folder of sounds, for example speech")
    parser.add_argument("--count", default=100, type=int, help="files of each kind (default %(default)s)")
    parser.add_argument("--seed", required=True, type=int, help="of the crops and questions")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 2 after a one-line error message, else 0."""
    return run_parsed(_parser(), argv, _run)


def _run(**options: Any) -> None:
    print(f"wrote {write_outside(**options)} records to {options['out']}")


if __name__ == "__main__":
    sys.exit(main())
