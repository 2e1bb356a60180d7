"""Draws ``docs/map.svg``: the way from a file to text, and the four doors through which everybody comes in.

    python scripts/draw_map.py            # writes docs/map.svg
    python scripts/draw_map.py --check    # exit code 1 where the picture is not what the code says

The numbers come from the code: frames, patch grid and tokens are those of the connector table for the model published
as VideoLLaMA2.1-7B-16F, and every file that is named must exist.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "map.svg"

WIDTH, HEIGHT = 1180, 560
CONNECTOR, FRAMES, IMAGE_SIZE, PATCH_SIZE = "stc_connector_v35", 16, 384, 14

_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; fill: #0f172a }
.name { font-size: 15px; font-weight: 600 }
.note { font-size: 12.5px; fill: #475569 }
.file { font-size: 12px; fill: #4338ca; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.step { fill: #ffffff; stroke: #94a3b8; stroke-width: 1.2 }
.door { fill: #eef2ff; stroke: #6366f1; stroke-width: 1.2 }
.room { fill: #f8fafc; stroke: #cbd5e1; stroke-dasharray: 5 4 }
.way { fill: none; stroke: #475569; stroke-width: 1.6; marker-end: url(#head) }
"""


@dataclass(frozen=True)
class Box:
    """One rectangle: a step of the way, or a door."""

    x: int
    y: int
    name: str
    notes: tuple[str, ...]
    file: str
    kind: str = "step"
    width: int = 200
    height: int = 104

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height

    def draw(self) -> str:
        if not (ROOT / "videollama2" / self.file).exists():
            raise FileNotFoundError(f"videollama2/{self.file}: the picture names a file that does not exist")
        middle = self.x + self.width / 2
        lines = [
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="10"/>'
        ]
        lines.append(_text(middle, self.y + 26, self.name, "name"))
        lines += [_text(middle, self.y + 47 + 17 * n, note, "note") for n, note in enumerate(self.notes)]
        lines.append(_text(middle, self.y + self.height - 11, self.file, "file"))
        return "\n".join(lines)


def _text(x: float, y: float, text: str, style: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _way(*points: tuple[float, float]) -> str:
    return '<path class="way" d="M ' + " L ".join(f"{x:g} {y:g}" for x, y in points) + '"/>'


def steps(tokens: int, grid: int) -> list[Box]:
    """The way of a clip, from left to right in two rows."""
    patches = grid * grid
    return [
        Box(40, 196, "file", ("video, image, sound,", "folder of frames"), "media/kinds.py"),
        Box(270, 196, "frames", (f"{FRAMES} of them, evenly", "spread over the clip"), "media/video.py"),
        Box(
            500,
            196,
            "pixels and ids",
            (f"{FRAMES} x 3 x {IMAGE_SIZE} x {IMAGE_SIZE}, prompt", f"with {tokens} placeholders"),
            "processing/processor.py",
        ),
        Box(
            500, 376, "features", (f"{FRAMES} x {patches} patches, of the", "selected encoder layer"), "model/encoders"
        ),
        Box(730, 376, "visual tokens", (f"{tokens}, in the place", "of the placeholders"), "model/connectors"),
        Box(730, 196, "tokens", ("one by one, many requests", "in a running batch"), "inference/engine.py"),
        Box(960, 376, "loss", ("in training, at the", "labelled positions alone"), "model/loss.py", width=190),
        Box(960, 196, "text", ("streamed to", "whoever asked"), "inference/text_stream.py", width=190),
    ]


def doors() -> list[Box]:
    """Who asks."""
    size = {"kind": "door", "width": 182, "height": 86}
    rows = (
        ("ask, chat", "terminal and Python", "inference/api.py"),
        ("training", "records and answers", "data/dataset.py"),
        ("evaluation", "benchmarks", "eval/running/runner.py"),
        ("serving", "API, controller, worker", "serve/worker/service.py"),
        ("page", "a browser", "serve/page/layout.py"),
    )
    return [Box(190 + 192 * n, 44, name, (note,), file, **size) for n, (name, note, file) in enumerate(rows)]


def picture() -> str:
    """The whole drawing, as SVG."""
    from videollama2.model.connectors import num_visual_tokens

    grid = IMAGE_SIZE // PATCH_SIZE
    way = steps(num_visual_tokens(CONNECTOR, FRAMES, grid), grid)
    file, frames, inputs, features, visual, tokens, loss, text = way
    entries = doors()
    lane = 160
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>From a file to text in VideoLLaMA 2</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 10 5 L 0 10 z" fill="#475569"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        '<rect class="room" x="480" y="336" width="690" height="180" rx="14"/>',
        _text(825, 505, "model/modeling.py", "file"),
        _text(30, 80, "one door:", "name", "start"),
        _text(30, 101, "messages and media in,", "note", "start"),
        _text(30, 119, "tokens out", "note", "start"),
    ]
    # Every asking door leads into one lane, and the lane to the file at the head of the way.
    lines += [_way(door.bottom, (door.bottom[0], lane), (file.top[0], lane), file.top) for door in entries]
    lines += [
        _way(file.right, frames.left),
        _way(frames.right, inputs.left),
        _way(inputs.bottom, features.top),
        _way(features.right, visual.left),
        _way(visual.top, tokens.bottom),
        _way(tokens.right, text.left),
        _way(visual.right, loss.left),
    ]
    lines += [box.draw() for box in (*way, *entries)]
    caption = f"numbers: VideoLLaMA2.1-7B-16F ({CONNECTOR}, {IMAGE_SIZE} px, patches of {PATCH_SIZE})"
    lines += [_text(WIDTH - 30, HEIGHT - 14, caption, "note", "end"), "</svg>"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args(argv)
    drawn = picture()
    if args.check:
        is_current = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == drawn
        if not is_current:
            print(f"error: {PICTURE} is not what the code says: run python scripts/draw_map.py", file=sys.stderr)
        return 0 if is_current else 1
    PICTURE.write_text(drawn, encoding="utf-8")
    print(f"wrote {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
