"""The built-in world, part 3: the captions on which the tiny model's first training stage runs.

    python -m videollama2.shapes.captions --set DIR

The command writes ``DIR/captions.json`` beside the annotations of a finished set. Each file gets one record, which
describes quadrant by quadrant what can be seen and what it does. Real models are first trained on captions too.
From captions the tiny model learns which words belong to which visual tokens much sooner than from one-word answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.errors import DataError
from videollama2.shapes.scene import QUADRANTS, Scene, ShapeObject, make_scene

PROMPTS = {"video": "Describe the video.", "image": "Describe the picture."}


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


def write_captions(folder: Path) -> int:
    """Write ``captions.json`` for the set in ``folder`` and return the number of records.

    Raises:
        DataError: the folder holds no finished set.
    """
    try:
        records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
        parameters = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        seed, scenario, objects = parameters["seed"], parameters.get("scenario"), parameters.get("objects")
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise DataError(f"{folder} holds no finished set of python -m videollama2.shapes.sets") from error
    rows = []
    for record in records:
        modality = "video" if "video" in record else "image"
        scene = make_scene(seed, int(Path(record[modality]).stem), modality, scenario, objects)
        turns = [
            {"from": "human", "value": f"<{modality}>\n{PROMPTS[modality]}"},
            {"from": "gpt", "value": caption(scene)},
        ]
        rows.append({"id": f"{record['id']}-caption", modality: record[modality], "conversations": turns})
    part = folder / ".captions.json.part"
    part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    os.replace(part, folder / "captions.json")
    return len(rows)


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
