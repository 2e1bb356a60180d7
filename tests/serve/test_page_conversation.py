"""A conversation of the page, and the log of votes: what the model is told, what is shown, and what is written."""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from pathlib import Path

import pytest

from tests.serve.helpers.pages import CLIP
from videollama2.errors import ConfigError
from videollama2.serve.page.conversation import Conversation, Medium, literal
from videollama2.serve.page.votes import LogFullError, VoteLog

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
