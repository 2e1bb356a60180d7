"""Decides which buttons of the page can be pressed, depending on the state of the conversation."""

from __future__ import annotations

from typing import Any

import gradio as gr

from videollama2.serve.page.conversation import Conversation
from videollama2.serve.page.layout import PageSettings, Widgets


def buttons(
    w: Widgets, settings: PageSettings, conversation: Conversation, running: bool = False
) -> dict[Any, gr.Button]:
    """Return the state of all buttons. ``running``: an answer is being written."""
    last = conversation.last
    idle = last is not None and not running
    voted = set() if last is None else last.votes
    votes = {"up": w.up, "down": w.down, "flag": w.flag}
    can_vote = idle and last is not None and last.counts
    return {
        w.send: gr.Button(visible=not running),
        w.stop: gr.Button(visible=running),
        w.regenerate: gr.Button(interactive=idle),
        w.edit: gr.Button(interactive=idle),
        w.clear: gr.Button(interactive=idle),
        w.save: gr.Button(interactive=idle),
        **{
            button: gr.Button(interactive=can_vote and kind not in voted, visible=settings.log is not None)
            for kind, button in votes.items()
        },
    }
