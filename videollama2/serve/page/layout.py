"""Draws the widgets of the web page. Its event handlers are in :mod:`videollama2.serve.page.events`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from videollama2.serve.page.conversation import Conversation
from videollama2.serve.page.examples import DEMO, shown_examples
from videollama2.serve.page.persistence import served_from
from videollama2.serve.page.thumbnails import EMPTY
from videollama2.serve.page.uploads import RecordedSound, RecordedVideo, UploadedFiles
from videollama2.serve.page.votes import VOTES, VoteLog

TITLE = "VideoLLaMA 2"

HEADER = f"""
<div class="vl-head">
  <span class="vl-logo" aria-hidden="true"></span>
  <div><h1>{TITLE}</h1><p>Ask a video, a picture or a sound.</p></div>
</div>
"""

WELCOME = """
<div class="vl-welcome">
  <h2>What would you like to know?</h2>
  <p>Add a video, a picture or a sound, then ask about it. Or begin with one of these:</p>
</div>
"""

TERMS = """
By using this page you agree to the following. The service is offered for research and for trying out the model, as it
is and without any warranty. Answers are made by a machine: they can be wrong, incomplete or offensive, and are no
advice. Upload nothing that you have no right to use, that shows people who do not want it, or that is private; do not
use the page for anything illegal, harmful, violent, racist or sexual.

What you upload is kept on the server for about a day so that the conversation works; questions and answers are not
stored. Only when you press **Good**, **Bad** or **Flag** is the conversation written to a log, with a fingerprint of
the media in place of the files, so that the model can be made better.
"""

TINY_NOTE = "This small built-in model knows moving shapes and nothing else: try the examples."

_CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
"""A resolution above what any model looks at, yet quick to upload."""

MAX_QUESTION = 8000
"""Maximum number of characters of a question, and of a system text."""

SEE_AND_HEAR, SEE_ONLY, HEAR_ONLY = SENSES = ("See and hear", "See only", "Hear only")
"""What a model that sees and hears does with a video."""

NO_OTHER = "none"
"""The choice that compares with no second model."""


@dataclass(frozen=True)
class PageSettings:
    """Settings of the page.

    Args:
        log: log for votes; None hides the buttons.
        concurrency: number of questions answered at the same time; further ones wait.
        max_queue: number of questions that may wait; further visitors are asked to try again later.
        max_media: maximum number of media of one question.
        max_frames: maximum number of frames of one video.
        extra_options: options of every request that have no widget on the page.
        uploads: folder of the visitors' uploads. A conversation restored from a browser may use only files from this
            folder and the examples.
    """

    log: VoteLog | None = None
    concurrency: int = 16
    max_queue: int = 64
    max_media: int = 8
    max_frames: int = 64
    extra_options: dict[str, Any] = field(default_factory=dict)
    uploads: Path | None = None

    def is_served(self, path: str) -> bool:
        """Return whether a path is a file that this page shows to its visitors."""
        return served_from(DEMO, *(() if self.uploads is None else (self.uploads,)))(path)


@dataclass(frozen=True)
class Widgets:
    """All widgets of the page that an event reads or changes."""

    conversation: gr.State
    other_conversation: gr.State
    kept: gr.BrowserState
    model: gr.Dropdown
    other: gr.Dropdown
    system: gr.Textbox
    seed: gr.Textbox
    files: gr.File
    camera: gr.Video
    microphone: gr.Audio
    microphone_tab: gr.Tab
    senses: gr.Radio
    frames: gr.HTML
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider
    num_frames: gr.Slider
    start: gr.Textbox
    end: gr.Textbox
    notice: gr.HTML
    status: gr.HTML
    chat: gr.Chatbot
    other_chat: gr.Chatbot
    saved: gr.Textbox
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    regenerate: gr.Button
    edit: gr.Button
    up: gr.Button
    down: gr.Button
    flag: gr.Button
    save: gr.Button
    clear: gr.Button

    @property
    def inputs(self) -> set[Any]:
        """The widgets whose values make up a question."""
        return {
            *(self.conversation, self.model, self.files, self.question, self.senses),
            *(self.temperature, self.top_p, self.max_tokens, self.num_frames, self.start, self.end),
            *(self.seed, self.system, self.other, self.other_conversation),
        }


def draw_page(settings: PageSettings) -> Widgets:
    """Draw the page into the current Gradio block, and return its widgets."""
    gr.HTML(HEADER)
    with gr.Row(elem_id="vl-main", equal_height=False):
        side = _side(settings)
        talk = _talk(settings)
    with gr.Accordion("Terms of use", open=False, elem_id="vl-terms"):
        gr.Markdown(TERMS)
    return Widgets(
        conversation=gr.State(Conversation(), time_to_live=86400),
        other_conversation=gr.State(Conversation(), time_to_live=86400),
        kept=gr.BrowserState("", storage_key="videollama2-conversation"),
        **side,
        **talk,
    )


def _side(settings: PageSettings) -> dict[str, Any]:
    with gr.Column(scale=1, min_width=300, elem_id="vl-side"):
        model = gr.Dropdown([], label="Model", elem_id="vl-model", filterable=False)
        with gr.Tabs(elem_id="vl-media"):
            with gr.Tab("Upload"):
                files = UploadedFiles(
                    file_count="multiple",
                    file_types=["video", "image", "audio"],
                    label="Videos, pictures and sounds",
                    height=150,
                    elem_id="vl-files",
                    show_label=False,
                )
            with gr.Tab("Camera"):
                camera = RecordedVideo(
                    sources=["webcam"],
                    label="Record a video",
                    include_audio=False,
                    height=240,
                    elem_id="vl-camera",
                    webcam_options=gr.WebcamOptions(mirror=False, constraints=_CAMERA),
                    show_label=False,
                    buttons=[],
                )
            with gr.Tab("Microphone", visible=False) as microphone_tab:
                microphone = RecordedSound(
                    sources=["microphone"],
                    label="Record a sound",
                    format="wav",
                    elem_id="vl-microphone",
                    show_label=False,
                    buttons=[],
                )
        senses = gr.Radio(
            list(SENSES), value=SEE_ONLY, label="Use of videos", visible=False, elem_id="vl-senses", container=False
        )
        frames = gr.HTML(EMPTY, elem_id="vl-frames")
        advanced = _advanced(settings)
    return {
        "model": model,
        "files": files,
        "camera": camera,
        "microphone": microphone,
        "microphone_tab": microphone_tab,
        "senses": senses,
        "frames": frames,
        **advanced,
    }


def _advanced(settings: PageSettings) -> dict[str, Any]:
    """Build the widgets for reading media, for sampling, and for further options of a question."""
    with gr.Accordion("Advanced", open=False, elem_id="vl-advanced"):
        frames = gr.Slider(
            0, settings.max_frames, 0, step=1, label="Frames", info="0: the model's own number", elem_id="vl-num-frames"
        )
        with gr.Row():
            start = _optional_number("Clip from (s)", "start", "vl-start")
            end = _optional_number("Clip to (s)", "end", "vl-end")
        return {"num_frames": frames, "start": start, "end": end, **_sampling(), **_around()}


def _sampling() -> dict[str, Any]:
    return {
        "temperature": gr.Slider(
            0, 2, 0, step=0.05, label="Temperature", info="0: the most likely answer", elem_id="vl-temperature"
        ),
        "top_p": gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", info="For temperatures above 0", elem_id="vl-top-p"),
        "max_tokens": gr.Slider(
            16, 2048, 512, step=16, label="Longest answer", info="In tokens", elem_id="vl-max-tokens"
        ),
        "seed": _optional_number("Seed", "a new one each time", "vl-seed"),
    }


def _around() -> dict[str, Any]:
    """Build the system text, and the choice of a model to compare with, which is shown if there are several."""
    return {
        "system": gr.Textbox(
            "",
            label="System text",
            lines=2,
            max_lines=6,
            max_length=MAX_QUESTION,
            placeholder="the model's own",
            elem_id="vl-system",
        ),
        "other": gr.Dropdown(
            [NO_OTHER],
            value=NO_OTHER,
            label="Compare with",
            info="A second model answers the same questions",
            filterable=False,
            visible=False,
            elem_id="vl-other",
        ),
    }


def _talk(settings: PageSettings) -> dict[str, Any]:
    with gr.Column(scale=3, min_width=320, elem_id="vl-talk"):
        notice = gr.HTML(visible=False, elem_id="vl-notice")
        status = gr.HTML(elem_id="vl-status")
        with gr.Row(elem_id="vl-chats", equal_height=True):
            chat = _chatbot("vl-chat", placeholder=WELCOME, examples=shown_examples())
            other_chat = _chatbot("vl-other-chat", visible=False)
        saved = gr.Textbox(visible=False)
        with gr.Row(elem_id="vl-composer", equal_height=True):
            # There is no autofocus: a phone would open its keyboard and scroll to the middle of the page.
            question = gr.Textbox(
                label="Question",
                show_label=False,
                container=False,
                placeholder="Ask a question",
                lines=1,
                max_lines=6,
                scale=8,
                max_length=MAX_QUESTION,
                elem_id="vl-question",
                min_width=160,
            )
            send = gr.Button("Send", variant="primary", scale=0, min_width=88, elem_id="vl-send")
            stop = gr.Button("Stop", variant="stop", scale=0, min_width=88, elem_id="vl-stop", visible=False)
        with gr.Row(elem_id="vl-actions"):
            actions = {name: _action(name, text, settings) for name, text in _ACTIONS.items()}
    return {
        "notice": notice,
        "status": status,
        "chat": chat,
        "other_chat": other_chat,
        "saved": saved,
        "question": question,
        "send": send,
        "stop": stop,
        **actions,
    }


def _optional_number(label: str, placeholder: str, elem_id: str) -> gr.Textbox:
    """Return a box for an optional number. Gradio's own number box sends 0 if nothing was typed."""
    return gr.Textbox("", label=label, placeholder=placeholder, elem_id=elem_id, max_length=32, min_width=100)


def _chatbot(elem_id: str, **options: Any) -> gr.Chatbot:
    """Return a column that shows a conversation."""
    return gr.Chatbot(
        show_label=False,
        elem_id=elem_id,
        elem_classes="vl-chat",
        height=None,
        buttons=["copy"],
        feedback_options=None,
        allow_tags=False,
        allow_file_downloads=False,
        sanitize_html=True,
        layout="bubble",
        latex_delimiters=[],
        container=False,
        **options,
    )


_ACTIONS = {
    "regenerate": "Regenerate",
    "edit": "Edit",
    "up": "Good",
    "down": "Bad",
    "flag": "Flag",
    "save": "Save",
    "clear": "Clear",
}


def _action(name: str, text: str, settings: PageSettings) -> gr.Button:
    return gr.Button(
        text,
        size="sm",
        interactive=False,
        min_width=0,
        scale=0,
        elem_id=f"vl-{name}",
        elem_classes="vl-action",
        visible=settings.log is not None or name not in VOTES,
    )
