"""Writes the captions on which the tiny model's first training stage runs.

    python -m videollama2.shapes.captions --set DIR

The command writes ``DIR/captions.json`` beside the annotations of a finished set. Each file gets one record, which
describes quadrant by quadrant what can be seen and what it does. For a set with sound, it describes what is heard too,
and ``DIR/sound_captions.json`` describes the sounds alone. Real models are first trained on captions too. From captions
the tiny model learns which words belong to which visual tokens much sooner than from one-word answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.errors import DataError
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.shapes.questions import NUMBERS
from videollama2.shapes.scene import QUADRANTS, Scene, ShapeObject, make_scene
from videollama2.shapes.sounds import HIT, OWN_STORIES, SECONDS, Soundtrack, add_sound
from videollama2.shapes.whole_files import write_list

PROMPTS = {VIDEO: "Describe the video.", IMAGE: "Describe the picture."}
SOUND_PROMPT = "Describe the sound."


def caption(scene: Scene) -> str:
    """Describe each quadrant: 'top left: red circle moves left early. top right: nothing. ...'."""
    by_quadrant = {item.quadrant: item for item in scene.objects}
    parts = []
    for number, name in enumerate(QUADRANTS):
        item = by_quadrant.get(number)
        parts.append(f"{name}: {'nothing' if item is None else describe(item)}.")
    return " ".join(parts)


def describe(item: ShapeObject) -> str:
    """Describe one object: 'red circle', 'red circle moves left slowly', 'red circle becomes blue'."""
    name = f"{item.colour} {item.shape}"
    if item.behaviour in ("appear", "disappear"):
        return f"{name} {item.behaviour}s"
    if item.behaviour == "recolour":
        return f"{name} becomes {item.colour_after}"
    if item.behaviour == "reshape":
        return f"{name} becomes {item.shape_after}"
    if item.behaviour == "bounce_fast":
        return f"{name} moves fast"
    if item.behaviour == "still":
        return name
    # An object that crosses its quadrant once at a steady pace is slow, whichever question it was drawn for.
    manner = {"slide_early": "early", "slide_late": "late"}.get(item.behaviour, "slowly")
    return f"{name} moves {item.direction} {manner}"


def sound_caption(track: Soundtrack) -> str:
    """Describe a soundtrack: 'three hits', 'a low tone, then a high tone', 'a chime late', 'nothing'."""
    hits = sum(event.kind == HIT for event in track.events)
    if track.story == "hits":
        return f"{NUMBERS[hits - 1]} hit{'s' if hits > 1 else ''}"
    if track.story in ("maker", "together"):
        [event] = track.events
        return f"a {event.kind} {'early' if event.start < SECONDS / 2 else 'late'}"
    return ", then ".join(f"a {event.kind} tone" for event in track.events) or "nothing"


def write_captions(folder: Path) -> int:
    """Write ``captions.json`` for the set in ``folder`` and return the number of records in it.

    For a set with sound, ``sound_captions.json`` is written too.

    Raises:
        DataError: the folder holds no finished set.
    """
    try:
        records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
        parameters = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        seed, scenario, objects = parameters["seed"], parameters.get("scenario"), parameters.get("objects")
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{folder} holds no finished set of python -m videollama2.shapes.sets") from error
    rows, sounds = [], []
    for record in records:
        modality = VIDEO if VIDEO in record else IMAGE
        scene = make_scene(seed, int(Path(record[modality]).stem), modality, scenario, objects)
        if not parameters.get("sound"):
            rows.append(_row(record["id"], modality, record[modality], PROMPTS[modality], caption(scene)))
            continue
        scene, track = add_sound(scene, parameters.get("own_stories", OWN_STORIES))
        heard = sound_caption(track)
        described = f"{caption(scene)} sound: {heard}." if modality == VIDEO else caption(scene)
        rows.append(_row(record["id"], modality, record[modality], PROMPTS[modality], described))
        if track.story != "silent":
            sounds.append(_row(f"{record['id']}-sound", AUDIO, record[modality], SOUND_PROMPT, f"{heard}."))
    write_list(folder / "captions.json", rows)
    if parameters.get("sound"):
        write_list(folder / "sound_captions.json", sounds)
    return len(rows)


def _row(name: str, key: str, file: str, prompt: str, text: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<{key}>\n{prompt}"}, {"from": "gpt", "value": text}]
    return {"id": f"{name}-caption", key: file, "conversations": turns}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m videollama2.shapes.captions",
        description="Write captions for a set of the built-in world.",
    )
    parser.add_argument("--set", required=True, type=Path, metavar="DIR", help="folder of the finished set")
    add_debug_flag(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: _run(args.set), debug=args.debug)


def _run(folder: Path) -> None:
    print(f"wrote {write_captions(folder)} captions to {folder / 'captions.json'}")


if __name__ == "__main__":
    sys.exit(main())
