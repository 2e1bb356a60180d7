"""A conversation that a browser keeps: what is written comes back, and nothing else is taken."""

import json
from pathlib import Path

import pytest

from videollama2.serve.page.conversation import Conversation, Medium, Turn
from videollama2.serve.page.persistence import MAX_KEPT_BYTES, from_kept, served_from, to_kept, transcript


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "uploads" / "clip.mp4"
    path.parent.mkdir()
    path.write_bytes(b"a clip")
    return path


@pytest.fixture
def conversation(clip: Path) -> Conversation:
    medium = Medium("video", str(clip), {"num_frames": 4, "start": 0.5})
    turns = [
        Turn("What?", (medium,), model="tiny", answer="A circle.", outcome="done"),
        Turn("Where?", model="tiny", outcome="failed", notice="The model is busy."),
    ]
    return Conversation(turns=turns, id="0123")


def test_what_is_kept_comes_back(conversation: Conversation, clip: Path) -> None:
    back = from_kept(to_kept(conversation), served_from(clip.parent))
    assert back is not None
    assert (back.id, back.turns) == (conversation.id, conversation.turns)
    assert back.messages() == conversation.messages()


def test_an_unfinished_turn_and_an_empty_conversation_are_not_kept(conversation: Conversation) -> None:
    conversation.turns.append(Turn("And then?"))
    assert len(json.loads(to_kept(conversation))["turns"]) == 2
    assert json.loads(to_kept(Conversation()))["turns"] == []


def test_of_a_long_conversation_the_last_turns_are_kept() -> None:
    turns = [Turn(f"question {n}", answer="word " * 20_000, outcome="done") for n in range(5)]
    text = to_kept(Conversation(turns=turns, id="x"))
    assert len(text) <= MAX_KEPT_BYTES + 100
    kept = [turn["question"] for turn in json.loads(text)["turns"]]
    assert kept == ["question 3", "question 4"]


def test_a_file_that_is_gone_or_never_was_a_visitors_is_not_taken(conversation: Conversation, clip: Path) -> None:
    text = to_kept(conversation)
    clip.unlink()
    assert from_kept(text, served_from(clip.parent)) is None
    outside = clip.parent.parent / "secret.mp4"
    outside.write_bytes(b"no upload")
    for path in (
        str(outside),
        str(clip.parent / ".." / "secret.mp4"),
        "/etc/passwd",
        "\0",
        "https://example.com/x.mp4",
    ):
        assert from_kept(text.replace(str(clip), path), served_from(clip.parent)) is None, path


@pytest.mark.parametrize(
    "forged",
    [
        None,
        7,
        "",
        "[]",
        "{",
        '{"id": "x"}',
        '{"id": 1, "turns": []}',
        '{"id": "x", "turns": [{"question": "q"}]}',
        '{"id": "x", "turns": 5}',
        "[" * 100_000,
    ],
)
def test_forged_texts_are_no_conversation(forged: object) -> None:
    assert from_kept(forged, lambda path: True) is None


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "new"},
        {"answer": ["a"]},
        {"media": [{"kind": "smell", "path": "x", "options": {}}]},
        {"media": [{"kind": "video", "path": "x", "options": {"backend": "decord"}}]},
        {"media": [{"kind": "video", "path": "x", "options": {"num_frames": "8"}}]},
        {"media": [{"kind": "video", "path": "x", "options": {"num_frames": True}}]},
    ],
)
def test_a_forged_turn_is_not_taken(conversation: Conversation, change: dict) -> None:
    document = json.loads(to_kept(conversation))
    document["turns"][0].update(change)
    assert from_kept(json.dumps(document), lambda path: True) is None


def test_the_transcript_names_everything(conversation: Conversation) -> None:
    text = transcript(conversation)
    for words in ("What?", "clip.mp4", "A circle.", "tiny", "Where?", "(no answer)", "The model is busy."):
        assert words in text
    assert "uploads" not in text  # a place on the server is nobody's business
