"""``loss.png``: the losses of a run, drawn without a plotting library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

Curve = list[tuple[float, float]]
"""(step, loss) in the order of steps."""

_SIZE = (960, 540)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 30, 930, 490
_COLOURS = {"loss": "#9ec5e8", "loss, smoothed": "#1f5fa8", "eval_loss": "#d1495b"}
_TICKS = 5


def plot_losses(folder: str | Path) -> Path | None:
    """Draw what ``trainer_state.json`` in ``folder`` says into ``loss.png``; None where no loss was logged."""
    folder = Path(folder)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    curves = {name: [(row["step"], row[name]) for row in history if name in row] for name in ("loss", "eval_loss")}
    curves = {"loss": curves["loss"], "loss, smoothed": smoothed(curves["loss"]), "eval_loss": curves["eval_loss"]}
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None
    path = folder / "loss.png"
    draw(curves).save(path)
    return path


def smoothed(curve: Curve, share: float = 0.05) -> Curve:
    """Exponential moving average over about ``share`` of the points, corrected for its start."""
    decay = 1 - 1 / max(1.0, share * len(curve))
    mean, weight, result = 0.0, 0.0, []
    for step, value in curve:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append((step, mean / weight))
    return result


def draw(curves: dict[str, Curve]) -> Image.Image:
    """The picture: curves with axes and their names."""
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    steps = [step for curve in curves.values() for step, _ in curve]
    losses = [loss for curve in curves.values() for _, loss in curve]
    x_range, y_range = (min(steps), max(steps)), (min(0.0, *losses), max(losses) * 1.05)
    for tick in range(_TICKS + 1):
        step = x_range[0] + (x_range[1] - x_range[0]) * tick / _TICKS
        loss = y_range[0] + (y_range[1] - y_range[0]) * tick / _TICKS
        x, y = _scale(step, x_range, _LEFT, _RIGHT), _scale(loss, y_range, _BOTTOM, _TOP)
        pen.line([(_LEFT, y), (_RIGHT, y)], fill="#e4e4e4")
        pen.text((_LEFT - 8, y), f"{loss:.3g}", fill="black", anchor="rm")
        pen.text((x, _BOTTOM + 8), f"{step:.0f}", fill="black", anchor="mt")
    pen.line([(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], fill="black")
    pen.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 26), "step", fill="black", anchor="mt")
    for number, (name, curve) in enumerate(curves.items()):
        points = [(_scale(s, x_range, _LEFT, _RIGHT), _scale(v, y_range, _BOTTOM, _TOP)) for s, v in curve]
        _curve(pen, points, _COLOURS[name])
        pen.text((_RIGHT - 4, _TOP + 16 * number), name, fill=_COLOURS[name], anchor="rt")
    return image


def _curve(pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str) -> None:
    pen.line(points, fill=colour, width=2)
    if len(points) < 40:
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)


def _scale(value: float, bounds: tuple[float, float], low: float, high: float) -> float:
    extent = bounds[1] - bounds[0]
    return low if extent <= 0 else low + (value - bounds[0]) / extent * (high - low)
