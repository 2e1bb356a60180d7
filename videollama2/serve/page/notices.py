"""Makes the short texts that the page shows around a conversation."""

from __future__ import annotations

from html import escape

import gradio as gr


def notice(text: str, kind: str = "failed") -> gr.HTML:
    """Return the line above the conversation; an empty text hides it."""
    role = "alert" if kind == "failed" else "status"
    return gr.HTML(f'<div class="vl-note vl-{kind}" role="{role}">{escape(text)}</div>', visible=bool(text))


def status(text: str) -> str:
    """Return what a screen reader announces about the answer. It is not drawn, as it only repeats what is visible."""
    return f'<div class="vl-unseen" role="status">{escape(text)}</div>'


def alert(text: str) -> str:
    """Return an error message to show in place of something that could not be drawn."""
    return f'<div class="vl-note vl-failed" role="alert">{escape(text)}</div>'
