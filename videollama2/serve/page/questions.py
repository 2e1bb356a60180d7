"""Reads a question from the page's widgets: what is wrong with it, and its options; and puts a question back there."""

from __future__ import annotations

from typing import Any

import gradio as gr

from videollama2.constants import MAX_SEED
from videollama2.media.kinds import VIDEO
from videollama2.serve.page.choices import Updates
from videollama2.serve.page.conversation import Turn
from videollama2.serve.page.frames import Values
from videollama2.serve.page.layout import HEAR_ONLY, MAX_QUESTION, SEE_AND_HEAR, SEE_ONLY, Widgets


def question_problem(values: Values, widgets: Widgets, question: str, max_media: int) -> str:
    """Return what a visitor has to change before the question can be asked, or an empty text if nothing is wrong."""
    if not question:
        return "Type a question first."
    if len(question) > MAX_QUESTION:
        return f"The question is longer than {MAX_QUESTION} characters. Shorten it."
    seed = (values[widgets.seed] or "").strip()
    if seed and not (seed.isascii() and seed.isdecimal() and int(seed) <= MAX_SEED):
        return f"Seed: {seed!r} is not a whole number from 0 to {MAX_SEED}."
    if len(values[widgets.files] or ()) > max_media:
        return f"One question can have at most {max_media} files. Remove some."
    return ""


def answer_options(values: Values, widgets: Widgets) -> dict[str, Any]:
    """Return the options of the answer, as the back ends take them."""
    w = widgets
    return {
        "temperature": float(values[w.temperature] or 0),
        "top_p": float(values[w.top_p] or 1),
        "max_new_tokens": int(values[w.max_tokens] or 512),
        **({"seed": int(values[w.seed])} if (values[w.seed] or "").strip() else {}),
    }


def asked_again(turn: Turn, widgets: Widgets) -> Updates:
    """Return updates that put the question of a turn back into the box, with its files and their options."""
    w = widgets
    options = next((medium.options for medium in turn.media if medium.options), {})
    return {
        w.question: turn.question,
        w.files: [medium.path for medium in turn.media] or None,
        w.num_frames: options.get("num_frames", 0),
        w.start: _text_of(options.get("start")),
        w.end: _text_of(options.get("end")),
        w.senses: _used_for(turn),
    }


def _used_for(turn: Turn) -> Any:
    """Return what a turn used its video for, one of :data:`videollama2.serve.page.layout.SENSES`; no change if none."""
    for medium in turn.media:
        if medium.options.get("of_video"):
            return HEAR_ONLY
        if medium.kind == VIDEO:
            return SEE_AND_HEAR if medium.options.get("use_audio") else SEE_ONLY
    return gr.skip()


def _text_of(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g}"
