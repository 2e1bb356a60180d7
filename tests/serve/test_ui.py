"""The page's parts without a browser: conversation, log of votes, frames, words for errors, and pacing."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the web page needs gradio (the extra serve)")

from tests.serve.page_fixtures import CLIP, PICTURE, Served, served, tiny  # noqa: F401 - fixtures
from videollama2.errors import ConfigError, MediaError, PromptError, QueueFullError, RequestTooLongError
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import kind_of_upload
from videollama2.serve.page.conversation import Conversation, Medium, literal
from videollama2.serve.page.errors import explain
from videollama2.serve.page.events import Events
from videollama2.serve.page.examples import examples
from videollama2.serve.page.layout import PageSettings, Widgets
from videollama2.serve.page.pacing import paced
from videollama2.serve.page.thumbnails import EDGE, Thumbnails, clock, data_url
from videollama2.serve.page.votes import LogFullError, VoteLog
from videollama2.serve.settings import MediaPolicy
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.replies import _times
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.web.errors import ApiError, model_not_found, no_worker

VIDEO = Medium("video", str(CLIP), {"num_frames": 4})


def answered(conversation: Conversation, question: str, answer: str, *media: Medium, outcome: str = "done") -> None:
    turn = conversation.begin(question, media)
    turn.answer, turn.outcome, turn.model = answer, outcome, "m"
    turn.options = {"temperature": 0.0, "top_p": 0.9, "max_new_tokens": 512}


# --------------------------------------------------------------------------------------------------------- conversation


def test_media_stay_in_the_turn_where_they_were_given() -> None:
    conversation = Conversation()
    answered(conversation, "first", "one", VIDEO)
    conversation.begin("second", ())
    assert conversation.messages() == [
        {
            "role": "user",
            "content": [
                {"type": "video", "path": str(CLIP), "num_frames": 4},
                {"type": "text", "text": "first"},
            ],
        },
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
    ]


def test_an_unanswered_question_is_replaced_and_its_media_go_along() -> None:
    conversation = Conversation()
    answered(conversation, "first", "", VIDEO, outcome="failed")
    assert conversation.begin("second", ()).media == (VIDEO,)
    assert [turn.question for turn in conversation.turns] == ["second"]


def test_media_at_fault_are_not_carried_over() -> None:
    conversation = Conversation()
    answered(conversation, "first", "", VIDEO, outcome="failed")
    conversation.turns[-1].media_failed = True
    assert conversation.begin("second", ()).media == ()


def test_an_answer_that_was_stopped_counts_once_it_has_words() -> None:
    conversation = Conversation()
    answered(conversation, "first", "half an", outcome="stopped")
    conversation.begin("second", ())
    assert [message["role"] for message in conversation.messages()] == ["user", "assistant", "user"]
    assert [turn.question for turn in conversation.turns] == ["first", "second"]


def test_regenerating_keeps_question_and_media() -> None:
    conversation = Conversation()
    answered(conversation, "first", "one", VIDEO)
    turn = conversation.again()
    assert (turn.question, turn.media, turn.answer, turn.outcome) == ("first", (VIDEO,), "", "")


@pytest.mark.parametrize("text", ["<img src=x>", "# heading", "![a](b)", "a\n\nb", "- list", "1. list", "https://a.b"])
def test_questions_are_drawn_as_they_stand(text: str) -> None:
    drawn = literal(text)
    assert drawn.startswith('<div class="vl-literal">')
    assert "<img" not in drawn
    assert "\n" not in drawn


def test_notes_stay_one_block_of_html() -> None:
    conversation = Conversation()
    answered(conversation, "q", "", outcome="failed")
    conversation.turns[-1].notice = "odd\n\n![a](b) <b>"
    note = conversation.shown()[-1]["content"][0]["text"]
    assert "odd ![a](b) &lt;b&gt;</div>" in note
    assert "\n" not in note


def test_plain_questions_stay_plain() -> None:
    assert literal("Which object, the white or the red one?") == "Which object, the white or the red one?"


# -------------------------------------------------------------------------------------------------------------- the log


def test_a_vote_is_one_line_and_names_no_file(tmp_path: Path) -> None:
    conversation = Conversation()
    answered(conversation, "what is\nit?", "a cross", VIDEO)
    answered(conversation, "and ü?", "red")
    log = VoteLog(tmp_path / "new" / "votes.jsonl")
    log.write("down", conversation, 1)
    log.write("flag", conversation, 0)
    text = log.path.read_text(encoding="utf-8")
    assert CLIP.name not in text
    down, flag = map(json.loads, text.splitlines())
    assert set(down) == {
        *("version", "time", "kind", "conversation", "turn", "model", "options", "outcome", "messages"),
    }
    assert (down["version"], down["kind"], down["turn"], down["model"]) == (1, "down", 1, "m")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", down["time"])
    digest = sha256(CLIP.read_bytes()).hexdigest()
    medium = {"kind": "video", "sha256": digest, "bytes": CLIP.stat().st_size, "num_frames": 4}
    assert down["messages"] == [
        {"role": "user", "text": "what is\nit?", "media": [medium]},
        {"role": "assistant", "text": "a cross"},
        {"role": "user", "text": "and ü?", "media": []},
        {"role": "assistant", "text": "red"},
    ]
    assert len(flag["messages"]) == 2
    assert down["conversation"] == flag["conversation"] == conversation.id


def test_the_log_is_on_the_disk_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), real(handle)))
    conversation = Conversation()
    answered(conversation, "q", "a")
    log = VoteLog(tmp_path / "votes.jsonl", max_bytes=600)
    log.write("up", conversation, 0)
    assert len(synced) == 1
    with pytest.raises(LogFullError):
        for _ in range(3):
            log.write("up", conversation, 0)
    assert log.path.stat().st_size <= 600


def test_a_log_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        VoteLog(tmp_path)


# --------------------------------------------------------------------------------------------------------------- frames


def test_thumbnails_are_the_frames_asked_for() -> None:
    async def draw() -> list[str]:
        sandbox = Sandbox(MediaPolicy(decode_processes=1))
        try:
            thumbnails = Thumbnails(sandbox)
            clip = Medium("video", str(CLIP), {"num_frames": 3, "start": 0.5, "end": 1.5})
            return [
                await thumbnails.strip(Medium("video", str(CLIP)), 8),
                await thumbnails.strip(clip, 8),
                await thumbnails.strip(Medium("image", str(PICTURE)), 8),
            ]
        finally:
            sandbox.close()

    whole, clip, picture = asyncio.run(draw())
    assert [strip.count("<img") for strip in (whole, clip, picture)] == [8, 3, 1]
    assert "8 frames from the whole video" in whole
    assert "3 frames from 0.5 s to 1.5 s" in clip
    assert "1 picture" in picture


def test_a_thumbnail_tells_when_its_frame_is_shown() -> None:
    """The times are those that a plain decoder finds in the file."""
    with av.open(str(CLIP)) as container:
        shown = [float(frame.time) for frame in container.decode(video=0)]
    (decoded, strip) = asyncio.run(_timed_strip())
    assert len(decoded.times) == 8
    assert all(min(abs(time - other) for other in shown) < 1e-3 for time in decoded.times)
    assert list(decoded.times) == sorted(decoded.times)
    captions = re.findall("<figcaption>(.*?)</figcaption>", strip)
    assert captions == [f"{time:.1f} s" for time in decoded.times]


async def _timed_strip() -> tuple[Any, str]:
    sandbox = Sandbox(MediaPolicy(decode_processes=1))
    try:
        decoded = await sandbox.read_timed("video", CLIP, {"num_frames": 8})
        return decoded, await Thumbnails(sandbox).strip(Medium("video", str(CLIP)), 8)
    finally:
        sandbox.close()


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
    import base64
    import io

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


def test_every_model_has_examples_of_what_it_takes() -> None:
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


def test_two_questions_of_one_visitor_at_the_same_moment_are_not_both_answered() -> None:
    widgets = Widgets(**{each.name: each.name for each in fields(Widgets)})
    backend, conversation = OneWord(), Conversation()
    events = Events(backend, PageSettings(), widgets)
    values = dict.fromkeys(widgets.inputs) | {
        "conversation": conversation,
        "model": "m",
        "question": "what?",
        "files": [str(PICTURE)],
    }
    visitor = SimpleNamespace(session_hash="visitor")

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
