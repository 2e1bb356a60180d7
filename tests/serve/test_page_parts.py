"""The page's parts without a browser: frames, examples, words for errors, pacing, and one question at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.serve.helpers.pages import CLIP, PICTURE, needs_gradio
from videollama2.errors import MediaError, PromptError, QueueFullError, RequestTooLongError
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import kind_of_upload
from videollama2.serve.page.conversation import Conversation, Medium
from videollama2.serve.page.errors import explain
from videollama2.serve.page.pacing import paced
from videollama2.serve.page.thumbnails import EDGE, Thumbnails, clock, data_url
from videollama2.serve.settings import MediaPolicy
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.replies import _times
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.web.errors import ApiError, model_not_found, no_worker

# --------------------------------------------------------------------------------------------------------------- frames


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    found = Sandbox(MediaPolicy(decode_processes=1))
    yield found
    found.close()


@pytest.mark.slow
def test_thumbnails_are_the_frames_asked_for(sandbox: Sandbox) -> None:
    async def draw() -> list[str]:
        thumbnails = Thumbnails(sandbox)
        clip = Medium("video", str(CLIP), {"num_frames": 3, "start": 0.5, "end": 1.5})
        return [
            await thumbnails.strip(Medium("video", str(CLIP)), 8),
            await thumbnails.strip(clip, 8),
            await thumbnails.strip(Medium("image", str(PICTURE)), 8),
        ]

    whole, clip, picture = asyncio.run(draw())
    assert [strip.count("<img") for strip in (whole, clip, picture)] == [8, 3, 1]
    assert "8 frames from the whole video" in whole
    assert "3 frames from 0.5 s to 1.5 s" in clip
    assert "1 picture" in picture


def test_a_thumbnail_tells_when_its_frame_is_shown(sandbox: Sandbox) -> None:
    """The times are those that a plain decoder finds in the file."""
    with av.open(str(CLIP)) as container:
        shown = [float(frame.time) for frame in container.decode(video=0)]

    async def read() -> tuple[Any, str]:
        decoded = await sandbox.read_timed("video", CLIP, {"num_frames": 8})
        return decoded, await Thumbnails(sandbox).strip(Medium("video", str(CLIP)), 8)

    decoded, strip = asyncio.run(read())
    assert len(decoded.times) == 8
    assert all(min(abs(time - other) for other in shown) < 1e-3 for time in decoded.times)
    assert list(decoded.times) == sorted(decoded.times)
    captions = re.findall("<figcaption>(.*?)</figcaption>", strip)
    assert captions == [f"{time:.1f} s" for time in decoded.times]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (3.46, "3.5 s"), (59.9, "59.9 s"), (60.0, "1:00"), (125.7, "2:05"), (3725.0, "1:02:05")],
)
def test_times_are_written_as_players_do(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("told", [None, "1", ["a"], [1.0, None], [1e300], [True]])
def test_times_of_a_process_in_a_clients_hands_are_not_taken(told: Any) -> None:
    assert _times({"times": told}) == ()


@pytest.mark.parametrize("shape", [(8, 8, 3), (1080, 1920, 3), (1, 3000, 3), (3000, 1, 3)])
def test_thumbnails_are_small(shape: tuple[int, ...]) -> None:
    url = data_url(np.zeros(shape, np.uint8))
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert min(picture.size) <= EDGE
    assert max(picture.size) <= 4 * EDGE


def test_kinds_are_told_by_content(tmp_path: Path) -> None:
    disguised = tmp_path / "clip.jpg"
    disguised.write_bytes(CLIP.read_bytes())
    assert (kind_of_upload(CLIP), kind_of_upload(PICTURE), kind_of_upload(disguised)) == ("video", "image", "video")
    for name, content in {"a.txt": b"words", "b.mp4": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=name):
            kind_of_upload(tmp_path / name)


@needs_gradio
def test_every_model_has_examples_of_what_it_takes() -> None:
    from videollama2.serve.page.examples import examples

    seen, heard = examples(("image", "video")), examples(("audio",))
    assert examples() == seen
    assert examples(("image", "video", "audio")) == [*seen, *heard]
    assert [(kind_of_upload(each.path), each.kind) for each in seen] == [("video",) * 2, ("video",) * 2, ("image",) * 2]
    assert [(kind_of_upload(each.path), each.kind) for each in heard] == [("video", "audio")]


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (no_worker("m"), page_errors.NO_MODEL),
        (model_not_found("m"), page_errors.GONE),
        (QueueFullError("full"), page_errors.BUSY),
        (ApiError(429, "x", code="queue_full"), page_errors.BUSY),
        (ApiError(503, "x", code="unreachable"), page_errors.UNREACHABLE),
        (ApiError(413, "x", code="request_too_large"), page_errors.TOO_LARGE),
        (ApiError(400, "x", code="context_length_exceeded"), page_errors.TOO_LONG),
        (RequestTooLongError("x"), page_errors.TOO_LONG),
    ],
)
def test_known_errors_have_their_words(error: Exception, words: str) -> None:
    assert explain(error).text == words
    assert not explain(error).media_failed


def test_errors_of_media_say_what_to_try_and_name_no_path() -> None:
    told = explain(RefusedMediaError("the video is longer than 60 s"))
    assert "the video is longer than 60 s" in told.text
    assert told.media_failed
    assert explain(ApiError(400, "too slow.", code="media_timeout")).media_failed
    assert "/secret" not in explain(MediaError("/secret/place: damaged")).text


def test_what_was_asked_wrongly_is_repeated() -> None:
    assert "odd tag" in explain(PromptError("odd tag")).text


# --------------------------------------------------------------------------------------------------------------- pacing


def test_pieces_are_drawn_together_and_the_end_is_not_lost() -> None:
    async def pieces() -> AsyncIterator[str]:
        for word in ("a", "b", "c", "d"):
            yield word

    async def run() -> list[str]:
        return [text async for text in paced(pieces(), asyncio.Event())]

    texts = asyncio.run(run())
    assert texts[-1] == "abcd"


def test_stopping_closes_the_source_and_keeps_the_text() -> None:
    closed = []

    async def pieces(more: asyncio.Event) -> AsyncIterator[str]:
        try:
            yield "begun"
            await more.wait()
        finally:
            closed.append(True)

    async def run() -> list[str]:
        stop, texts = asyncio.Event(), []
        async for text in paced(pieces(asyncio.Event()), stop):
            texts.append(text)
            stop.set()
        return texts

    assert asyncio.run(run()) == ["begun"]
    assert closed == [True]


def test_errors_come_after_the_text_before_them() -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "begun"
        raise QueueFullError("full")

    async def run(texts: list[str]) -> None:
        async for text in paced(pieces(), asyncio.Event()):
            texts.append(text)

    texts: list[str] = []
    with pytest.raises(QueueFullError):
        asyncio.run(run(texts))
    assert texts == ["begun"]


# -------------------------------------------------------------------------------------------------------- one at a time


class OneWord:
    """A back end that says one word, once :attr:`release` is set, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.release = 0, asyncio.Event()

    async def stream(
        self, model: str, messages: Sequence[dict[str, Any]], options: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        self.asked += 1
        if self.asked > 1:
            self.release.set()
        await self.release.wait()
        yield "yes"


@needs_gradio
def test_two_questions_of_one_visitor_at_the_same_moment_are_not_both_answered() -> None:
    import gradio as gr

    from videollama2.serve.page.events import Events
    from videollama2.serve.page.layout import PageSettings, Widgets

    widgets = Widgets(**{each.name: each.name for each in fields(Widgets)})
    backend, conversation = OneWord(), Conversation()
    events = Events(backend, PageSettings(), widgets)
    values = dict.fromkeys(widgets.inputs) | {
        "conversation": conversation,
        "model": "m",
        "question": "what?",
        "files": [str(PICTURE)],
    }
    visitor = gr.Request(session_hash="visitor")

    async def ask() -> list[str]:
        told = [str(getattr(update.get("notice"), "value", "")) async for update in events.ask(values, visitor)]
        backend.release.set()  # the one that was refused ends while the other is being answered
        return told

    async def both() -> list[list[str]]:
        return await asyncio.gather(ask(), ask())

    told = asyncio.run(both())
    assert backend.asked == 1
    assert [turn.answer for turn in conversation.turns] == ["yes"]
    assert sum("still being written" in "".join(texts) for texts in told) == 1
    assert events.running == {}
