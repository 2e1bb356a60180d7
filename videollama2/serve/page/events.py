"""Handles the events of the web page. Its widgets are defined in :mod:`videollama2.serve.page.layout`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from copy import deepcopy

import gradio as gr

from videollama2.errors import MediaError
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import PageBackend
from videollama2.serve.page.buttons import buttons
from videollama2.serve.page.choices import Choices, Updates, is_compared
from videollama2.serve.page.conversation import Conversation
from videollama2.serve.page.examples import examples
from videollama2.serve.page.frames import FrameStrips, Values
from videollama2.serve.page.layout import HEAR_ONLY, SEE_AND_HEAR, PageSettings, Widgets
from videollama2.serve.page.notices import notice, status
from videollama2.serve.page.persistence import from_kept, to_kept, transcript
from videollama2.serve.page.questions import answer_options, asked_again, question_problem
from videollama2.serve.page.side_by_side import Lane, answer_together
from videollama2.serve.page.thumbnails import EMPTY
from videollama2.serve.page.voting import vote_handler

_ANSWERS = {"concurrency_id": "answers", "api_visibility": "private", "show_progress": "minimal"}
# These events are not queued: a vote or an upload must not be refused because many questions are waiting.
_QUICK = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}

_MODEL_IS_MISSING = (page_errors.GONE, page_errors.NO_MODEL)

_RUNNING = "An answer is still being written. Stop it first, or wait for its end."

_DOWNLOAD = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/markdown"}));
  link.download = "conversation.md";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""

_SCROLL_TO_CHAT = """() => {
  const chat = document.querySelector("#vl-chat");
  const box = chat.getBoundingClientRect();
  if (box.top < 0 || box.bottom > window.innerHeight) chat.scrollIntoView({block: "start", behavior: "smooth"});
}"""
"""On a phone, open settings push the conversation below the screen, so the page scrolls to the answer."""


class Events:
    """The event handlers of one page. Each visitor's state is in the page; this object holds only running answers.

    Args:
        backend: back end that answers the questions.
        settings: settings of the page.
        widgets: widgets of the page.
    """

    def __init__(self, backend: PageBackend, settings: PageSettings, widgets: Widgets) -> None:
        self.backend, self.settings, self.widgets = backend, settings, widgets
        self.running: dict[str, asyncio.Event] = {}
        """Events by session; setting one stops the session's answer."""
        self.strips = FrameStrips(backend, widgets, settings.max_media)
        self.choices = Choices(backend, widgets)

    def connect(self, page: gr.Blocks) -> None:
        """Connect the handlers to the widgets."""
        w = self.widgets
        # The progress display shows the queue position of a waiting question.
        answers = {**_ANSWERS, "concurrency_limit": self.settings.concurrency, "show_progress_on": w.chat}
        everything = list(vars(w).values())
        page.load(self.load, {w.kept}, everything, **_QUICK)
        page.unload(self.leave)
        gr.on([w.question.submit, w.send.click], self.ask, w.inputs, everything, trigger_mode="once", **answers)
        w.chat.example_select(self.example, w.inputs, everything, trigger_mode="once", **answers)
        w.regenerate.click(self.regenerate, w.inputs, everything, trigger_mode="once", **answers)
        w.stop.click(self.stop, None, None, **_QUICK)
        w.edit.click(self.edit, w.inputs, everything, **_QUICK)
        w.clear.click(self.clear, None, everything, **_QUICK)
        # The browser writes the file, so nothing is stored on the server.
        saved = w.save.click(self.save, {w.conversation}, w.saved, **_QUICK)
        saved.then(None, w.saved, None, js=_DOWNLOAD)
        gr.on([w.question.submit, w.send.click], None, None, None, js=_SCROLL_TO_CHAT)
        w.other.change(self.choices.show_other, {w.other}, [w.other_chat, w.other_conversation], **_QUICK)
        gr.on(
            [w.other.change, w.model.change],
            self.choices.name_columns,
            {w.other, w.model},
            [w.chat, w.other_chat],
            **_QUICK,
        )
        for recorder in (w.camera, w.microphone):
            recorder.change(self.recorded, {recorder, w.files}, [recorder, w.files], **_QUICK)
        senses = [w.senses, w.microphone_tab, w.camera, w.chat]
        w.model.change(self.choices.show_senses, {w.model}, senses, **_QUICK)
        gr.on(
            [w.files.change, w.model.change, w.num_frames.change, w.start.change, w.end.change, w.senses.change],
            self.strips.show_frames,
            w.inputs,
            w.frames,
            trigger_mode="always_last",
            **{**_QUICK, "show_progress": "minimal"},
        )
        for kind, button in (("up", w.up), ("down", w.down), ("flag", w.flag)):
            button.click(vote_handler(kind, w, self.settings.log), {w.conversation}, [button, w.notice], **_QUICK)

    # ----------------------------------------------------------------------------------------------------------- page

    async def load(self, values: Values) -> Updates:
        """Show the list of models, and the conversation that this browser kept, when the page is opened."""
        return {**self._restored(values[self.widgets.kept]), **await self.choices.offer()}

    def _restored(self, kept: object) -> Updates:
        """Restore the conversation from before a reload, if there is one and its files still exist."""
        w = self.widgets
        conversation = from_kept(kept, self.settings.is_served)
        if conversation is None or not conversation.turns:
            return {}
        return {w.conversation: conversation, w.chat: conversation.shown(), **buttons(w, self.settings, conversation)}

    async def leave(self, request: gr.Request) -> None:
        """Stop the visitor's answer when the tab is closed."""
        self._halt(request)

    # ------------------------------------------------------------------------------------------------------- answers

    async def ask(self, values: Values, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Answer the question in the box, using the files beside it and the conversation so far."""
        w = self.widgets
        question = (values[w.question] or "").strip()
        problem = await self._problem(values, question, request)
        if problem:
            yield {w.notice: notice(problem)}
            return
        try:
            # Opening files takes a while, in which the visitor may have asked again from the same tab: see the check
            # below.
            media = await asyncio.to_thread(self.strips.media, values)
        except MediaError as error:
            yield {w.notice: notice(page_errors.bad_media(error))}
            return
        if self._is_running(request):  # this visitor asked another question in the meantime
            yield {w.notice: notice(_RUNNING)}
            return
        lanes = self._lanes(values)
        for lane in lanes:
            lane.conversation.begin(question, media)
        async with aclosing(self._answer(values, lanes, request)) as updates:
            async for update in updates:
                yield update

    async def example(self, values: Values, request: gr.Request, event: gr.SelectData) -> AsyncGenerator[Updates, None]:
        """Ask a bundled question. The browser sends only its number."""
        w = self.widgets
        kinds = await self.choices.kinds(values[w.model])
        known = examples(kinds)
        number = event.index if isinstance(event.index, int) else -1
        if not 0 <= number < len(known):
            return
        chosen = {**values, w.files: [str(known[number].path)], w.question: known[number].question}
        if known[number].kind == AUDIO:
            chosen[w.senses] = SEE_AND_HEAR if VIDEO in kinds else HEAR_ONLY
        async with aclosing(self.ask(chosen, request)) as updates:
            async for update in updates:
                yield update

    async def regenerate(self, values: Values, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Answer the last question again with the current model and options. The text in the box is left alone."""
        conversation: Conversation = values[self.widgets.conversation]
        if conversation.last is None:
            return
        problem = await self._problem(values, conversation.last.question, request)
        if not problem and self._is_running(request):
            problem = _RUNNING
        if problem:
            yield {self.widgets.notice: notice(problem)}
            return
        lanes = self._lanes(values)
        for lane in lanes:
            lane.conversation.again()
        async with aclosing(self._answer(values, lanes, request, keep_draft=True)) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request) -> None:
        """Stop this visitor's answer, including its generation in the engine."""
        self._halt(request)

    def _halt(self, request: gr.Request) -> None:
        running = self.running.get(request.session_hash or "")
        if running is not None:
            running.set()

    def _is_running(self, request: gr.Request) -> bool:
        return (request.session_hash or "") in self.running

    async def _problem(self, values: Values, question: str, request: gr.Request) -> str:
        """Return why the question cannot be asked now, or an empty text if it can."""
        w = self.widgets
        if self._is_running(request):
            return _RUNNING
        if not values[w.model]:
            # The question came before the list of models was loaded, so it goes to the first model of the list.
            names = await self.choices.models()
            if not names:
                return page_errors.NO_MODEL
            values[w.model] = names[0]
        return question_problem(values, w, question, self.settings.max_media)

    def _lanes(self, values: Values) -> list[Lane]:
        """Return the lane of the chosen model and, if another model is compared with it, that model's lane."""
        w = self.widgets
        conversation: Conversation = values[w.conversation]
        lanes = [Lane(conversation, values[w.model], w.conversation, w.chat)]
        if is_compared(values, w):
            other: Conversation = values[w.other_conversation]
            if not other.turns:
                # The model joins a conversation in progress, and continues from a copy of it.
                other = deepcopy(conversation)
            lanes.append(Lane(other, values[w.other], w.other_conversation, w.other_chat))
        return lanes

    async def _answer(
        self, values: Values, lanes: Sequence[Lane], request: gr.Request, keep_draft: bool = False
    ) -> AsyncGenerator[Updates, None]:
        """Answer the last turn of every lane and draw it as it grows. The first lane is the visitor's conversation."""
        w, session = self.widgets, request.session_hash or ""
        conversation, turn = lanes[0].conversation, lanes[0].turn
        options = answer_options(values, self.widgets)
        for lane in lanes:
            lane.turn.model, lane.turn.options = lane.model, {**options, "system": (values[w.system] or "").strip()}
        # Nothing was awaited since the check for a running answer, so no other question of this visitor can be here as
        # well.
        stop = self.running[session] = asyncio.Event()
        emptied: Updates = {} if keep_draft else {w.question: "", w.files: None, w.start: "", w.end: ""}
        try:
            yield {
                **_drawn(lanes),
                w.notice: notice(""),
                w.status: status("The model is answering."),
                **emptied,
                **buttons(w, self.settings, conversation, running=True),
            }
            drawing = answer_together(self.backend, lanes, {**options, **self.settings.extra_options}, stop)
            async with aclosing(drawing) as grown:
                async for lane in grown:
                    yield {lane.chat: lane.conversation.shown()}
        finally:
            self.running.pop(session, None)
        conversation.answered += 1
        # A model that has gone since the page was opened is still in its list, so the list is renewed with the answer.
        listed = await self.choices.offer_anew(turn) if turn.notice in _MODEL_IS_MISSING else {}
        yield {
            **listed,
            **_drawn(lanes),
            w.kept: to_kept(conversation),
            w.status: status(f"Answer {conversation.answered} is complete."),
            **buttons(w, self.settings, conversation),
        }

    # ---------------------------------------------------------------------------------------------------- other buttons

    async def edit(self, values: Values, request: gr.Request) -> Updates:
        """Move the last question back into the box, with its files and their options."""
        w = self.widgets
        conversation: Conversation = values[w.conversation]
        if conversation.last is None or self._is_running(request):
            return {w.notice: gr.skip()}
        lanes = self._lanes(values)
        turn, *_ = [lane.conversation.turns.pop() for lane in lanes]
        return {
            **_drawn(lanes),
            w.kept: to_kept(conversation),
            **asked_again(turn, w),
            w.notice: notice(""),
            **buttons(w, self.settings, conversation),
        }

    async def clear(self, request: gr.Request) -> Updates:
        """Start a new conversation."""
        w, conversation = self.widgets, Conversation()
        self._halt(request)
        return {
            w.conversation: conversation,
            w.chat: [],
            w.other_conversation: Conversation(),
            w.other_chat: [],
            w.kept: to_kept(conversation),
            w.question: "",
            w.files: None,
            w.start: "",
            w.end: "",
            w.frames: EMPTY,
            w.notice: notice(""),
            w.status: status(""),
            **buttons(w, self.settings, conversation),
        }

    async def save(self, values: Values) -> str:
        """Return the conversation as Markdown, which the browser then saves as a file."""
        return transcript(values[self.widgets.conversation])

    async def recorded(self, values: Values) -> Updates:
        """Add a recording to the files of the next question."""
        w = self.widgets
        recorder = w.camera if w.camera in values else w.microphone
        path = values[recorder]
        if not path:
            return {recorder: gr.skip()}
        return {recorder: None, w.files: [*(values[w.files] or ()), path]}


def _drawn(lanes: Sequence[Lane]) -> Updates:
    """Return updates that draw the current state of every lane."""
    shown: Updates = {}
    for lane in lanes:
        shown |= {lane.state: lane.conversation, lane.chat: lane.conversation.shown()}
    return shown
