"""Draws an inspection: one picture of the whole answer, and an HTML page with every step, which loads nothing.

A sound is drawn as the filter bank that the model hears, time from left to right and low notes at the bottom.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from videollama2.inspection.weights import Inspection, Step

HEIGHT = 192
"""Height in pixels of a picture."""
GAP = 8
HEAT = (230, 30, 30)
SOUND_WIDTH = 3 * HEIGHT
"""Width in pixels of the picture of a sound."""
MOST_COVER = 0.7
"""Opacity of the colour over the token with the largest weight."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
.slices { display: flex; flex-wrap: wrap; gap: 0.5rem; }
figure { margin: 0; } figcaption { font-size: 0.8rem; color: #555; }
table { border-collapse: collapse; margin-top: 0.5rem; } td { padding: 0 0.75rem 0 0; font-size: 0.85rem; }
.bar { background: #3b6ea5; height: 0.6rem; } code { background: #f1f1f1; padding: 0 0.25rem; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e6e6e6; } figcaption { color: #aaa; }
code { background: #2a2a2a; } }
"""


def draw_slices(inspection: Inspection, weights_THW: np.ndarray) -> list[Image.Image]:
    """Return a picture for each time slice: its middle frame, with each token's cell covered by its weight.

    The colours of all slices are on one scale, on which the largest weight covers most.
    """
    most = float(weights_THW.max()) or 1.0
    pictures = []
    for frames, weights_HW in zip(inspection.frames_of, weights_THW, strict=True):
        picture_HWC = inspection.pictures_THWC[frames[len(frames) // 2]]
        pictures.append(_covered(picture_HWC, weights_HW / most))
    return pictures


def draw_sound_weights(inspection: Inspection, weights_TF: np.ndarray) -> Image.Image:
    """Return a picture of the sound, with each token's patch covered by its weight, on a scale of its own."""
    assert inspection.fbank_TF is not None  # there would be no weights
    levels_FT = inspection.fbank_TF.T[::-1]
    lowest, highest = float(levels_FT.min()), float(levels_FT.max())
    greys_FT = ((levels_FT - lowest) * (255 / ((highest - lowest) or 1.0))).astype(np.uint8)
    most = float(weights_TF.max()) or 1.0
    return _covered(np.repeat(greys_FT[..., None], 3, axis=-1), weights_TF.T[::-1] / most, SOUND_WIDTH)


def sheet(inspection: Inspection) -> Image.Image:
    """Return one picture with the time slices and the sound in a row, coloured by the mean weights of all steps."""
    pictures = draw_slices(inspection, inspection.weights_THW)
    if inspection.sound_TF is not None:
        pictures.append(draw_sound_weights(inspection, inspection.sound_TF))
    width = sum(each.width + GAP for each in pictures) - GAP
    whole = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole


def to_html(inspection: Inspection) -> str:
    """Return the content of the HTML file."""
    time, rows, columns = inspection.steps[0].weights_THW.shape
    grid = f"{time} time slices of {rows} x {columns} tokens, made by {inspection.connector}"
    steps = "".join(_step(inspection, number, step) for number, step in enumerate(inspection.steps, start=1))
    title = html.escape(f"{inspection.question} - {inspection.answer}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(inspection.question)}</h1>
<p><b>{html.escape(inspection.answer)}</b></p>
<p>{html.escape(inspection.source)}: {len(inspection.pictures_THWC)} frames, {html.escape(grid)}{_heard(inspection)}.
Red marks the tokens to which the words of the answer are most sensitive (gradient times input, arXiv 1605.01713).</p>
<h2>The whole answer</h2>{_slices(inspection, inspection.weights_THW)}{_sound(inspection, inspection.sound_TF)}
{steps}
</body></html>
"""


def _heard(inspection: Inspection) -> str:
    if inspection.sound_TF is None:
        return ""
    notes = "".join(f" ({html.escape(note)})" for note in inspection.notes)
    return f", and {inspection.sound_TF.size} tokens of its sound{notes}"


def _sound(inspection: Inspection, weights_TF: np.ndarray | None) -> str:
    if weights_TF is None:
        return ""
    caption = f"the sound: {weights_TF.sum():.0%} of the weight of all tokens"
    return f'<div class="slices">{_figure(draw_sound_weights(inspection, weights_TF), "the sound", caption)}</div>'


def _step(inspection: Inspection, number: int, step: Step) -> str:
    own_class = f"<p>Class token: {step.class_weight:.1%} of the weight.</p>" if step.class_weight else ""
    head = f"<h2>Step {number}: <code>{html.escape(step.text)}</code></h2>"
    shown = _slices(inspection, step.weights_THW) + _sound(inspection, step.sound_TF)
    return f"{head}{shown}{own_class}<table>{_rows(step.candidates)}</table>"


def _slices(inspection: Inspection, weights_THW: np.ndarray) -> str:
    figures = []
    shares = weights_THW.sum(axis=(1, 2)) / (weights_THW.sum() or 1.0)
    for picture, frames, share in zip(draw_slices(inspection, weights_THW), inspection.frames_of, shares, strict=True):
        name = f"frame {frames[0] + 1}" if len(frames) == 1 else f"frames {frames[0] + 1} to {frames[-1] + 1}"
        figures.append(_figure(picture, name, f"{name}: {share:.0%}"))
    return f'<div class="slices">{"".join(figures)}</div>'


def _figure(picture: Image.Image, name: str, caption: str) -> str:
    data = _png(picture)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{name}"><figcaption>{caption}</figcaption></figure>'


def _rows(candidates: Sequence[tuple[str, float]]) -> str:
    return "".join(
        f"<tr><td><code>{html.escape(text)}</code></td><td>{share:.1%}</td>"
        f'<td><div class="bar" style="width: {12 * share:.2f}rem"></div></td></tr>'
        for text, share in candidates
    )


def _covered(picture_HWC: np.ndarray, weights_HW: np.ndarray, width: int | None = None) -> Image.Image:
    """Return a picture whose cells are covered by :data:`HEAT`, as much as their weights from 0 to 1 say.

    Args:
        width: of the result in pixels; by default the one that keeps the shape of the picture.
    """
    width = width or max(1, round(picture_HWC.shape[1] * HEIGHT / picture_HWC.shape[0]))
    picture = Image.fromarray(picture_HWC).resize((width, HEIGHT), Image.Resampling.BILINEAR)
    cover = Image.fromarray((weights_HW * MOST_COVER * 255).astype(np.uint8)).resize(
        (width, HEIGHT), Image.Resampling.NEAREST
    )
    return Image.composite(Image.new("RGB", picture.size, HEAT), picture, cover)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
