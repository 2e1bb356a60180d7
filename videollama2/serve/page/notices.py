"""Short texts that the page shows around a conversation."""

from __future__ import annotations

from html import escape

import gradio as gr


def notice(text: str, kind: str = "failed") -> gr.HTML:
    """The line above the conversation; an empty text hides it."""
    role = "alert" if kind == "failed" else "status"
    return gr.HTML(f'<div class="vl-note vl-{kind}" role="{role}">{escape(text)}</div>', visible=bool(text))


def status(text: str) -> str:
    """What a screen reader says about the answer; drawn, it would only repeat what is seen."""
    return f'<div class="vl-unseen" role="status">{escape(text)}</div>'


def alert(text: str) -> str:
    """A fault, in place of what could not be drawn."""
    return f'<div class="vl-note vl-failed" role="alert">{escape(text)}</div>'
