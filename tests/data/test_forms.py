"""Records in the forms of other programs become those of the published form."""

import json

import pytest

from tests.conftest import ROOT
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.record import parse_record, unread_keys
from videollama2.data.records import read_sets
from videollama2.errors import DataError
from videollama2.processing import VideoLlama2Processor

PUBLISHED = {
    "id": "1",
    "video": "v.mp4",
    "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "This."}],
}
ANSWER = {"role": "assistant", "content": "This."}
OPENAI = {
    "id": "1",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "file://v.mp4"}},
                {"type": "text", "text": "What?"},
            ],
        },
        ANSWER,
    ],
}
LLAMA_FACTORY = {"id": "1", "messages": [{"role": "user", "content": "<video>\nWhat?"}, ANSWER], "videos": ["v.mp4"]}
MS_SWIFT = {"id": "1", "messages": [{"role": "user", "content": "What?"}, ANSWER], "videos": [{"path": "v.mp4"}]}
TRL = {
    "id": "1",
    "messages": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}, ANSWER],
    "videos": ["v.mp4"],
}
TRL_PROMPT = {"id": "1", "prompt": TRL["messages"][:1], "completion": [ANSWER], "videos": ["v.mp4"]}
TRL_TEXTS = {"id": "1", "prompt": "What?", "completion": "This.", "videos": ["v.mp4"]}
MESSAGES_AS_TURNS = {"id": "1", "conversations": LLAMA_FACTORY["messages"], "videos": ["v.mp4"]}
QUERY = {"id": "1", "query": "What?", "response": "This.", "videos": ["v.mp4"]}

DATA = "data:image/png;base64," + "A" * 5000
SOUND = {"type": "input_audio", "input_audio": {"data": "A" * 5000, "format": "wav"}}


def conversation(record):
    return [(turn["from"].replace("user", "human").replace("assistant", "gpt"), turn["value"]) for turn in record]


@pytest.mark.parametrize(
    "raw",
    [OPENAI, LLAMA_FACTORY, MS_SWIFT, TRL, TRL_PROMPT, TRL_TEXTS, MESSAGES_AS_TURNS, QUERY],
    ids=["openai", "factory", "swift", "trl", "trl prompt", "trl texts", "messages as turns", "query"],
)
def test_forms_are_equal(media, raw):
    published, other = (parse_record(row, 0, "data.json", media) for row in (PUBLISHED, raw))
    assert conversation(other.conversations) == conversation(published.conversations)
    assert other.media == published.media


def test_parts_keep_their_order_among_kinds_and_turns(media):
    parts = [{"type": "text", "text": "a"}, {"type": "image", "image": "i.png"}, {"type": "video", "video": "v.mp4"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "?"}]},
        ANSWER,
        {"role": "user", "content": parts},
        ANSWER,
    ]
    record = parse_record({"messages": messages}, 0, "data.json", media)
    assert record.kinds == ["video", "image", "video"]
    assert record.conversations[3]["value"] == "a<image>\n<video>\n"
    history = parse_record({"query": "b", "response": "B", "history": [["a", "A"]], "images": "i.png"}, 0, "f", media)
    assert [turn["value"] for turn in history.conversations] == ["<image>\na", "A", "b", "B"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({**PUBLISHED, **OPENAI}, "'conversations' and 'messages' all hold the conversation"),
        ({"messages": []}, "'messages' must be a list with at least one message, got []"),
        ({"messages": [{"role": "user"}]}, "a message must be an object with 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "a text, an image, a video or a sound, got"),
        (
            {"messages": [{"role": "user", "content": [SOUND]}, ANSWER]},
            "'input_audio' holds a sound as text: write it to",
        ),
        ({**MS_SWIFT, "videos": [DATA]}, "'videos' holds a medium as text, 'data:image/png;base64,AAA"),
        ({**PUBLISHED, "video": DATA}, "'video' holds a medium as text, 'data:image/png;base64,AAA"),
        ({**PUBLISHED, "video": {"bytes": DATA}}, "'video' must be a path or a list of paths, got {'bytes': 'data:"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a turn needs 'from' (human or gpt)"),
        ({"messages": [{**ANSWER, "loss": False}]}, "'loss' of a message is not used: every answer is learned alike"),
        ({"messages": [{**ANSWER, "weight": 0}]}, "'weight' of a message is not used"),
        ({**PUBLISHED, "conversations": [{"from": "gpt", "value": "a", "weight": 0}]}, "'weight' of a turn is"),
        ({**LLAMA_FACTORY, "kto_tag": False}, "'kto_tag' or 'label' false marks a bad answer"),
        ({**TRL_PROMPT, "label": False}, "'kto_tag' or 'label' false marks a bad answer"),
        ({"messages": [{**ANSWER, "tool_calls": [{"id": "1"}]}]}, "'tool_calls' of a message is not used"),
        ({**PUBLISHED, "tools": [{"name": "f"}]}, "'tools' is not used: tools are not described"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4", "fps": 2}]}, ANSWER]},
            "'fps' of a part is not used: 'start', 'end' and 'num_frames' stand beside the messages",
        ),
        ({"prompt": 5}, "'prompt' must be a text or a list of messages, got 5"),
        ({**QUERY, "videos": "https://example.org/v.mp4"}, "'videos' must be a path of a file, got 'https://ex"),
        ({**QUERY, "videos": "A" * 9000}, "AAA...: cannot be opened (File name too long)"),
        ({**QUERY, "response": None}, "the pairs of 'history' must be texts, got ('What?', None)"),
        ({**QUERY, "videos": [{"bytes": "x"}]}, "must be a path or a list of paths"),
        ({**PUBLISHED, "num_frames": 0}, "num_frames"),
        ({"query": "a", "response": "b", "num_frames": 3}, "'num_frames' counts the frames of a video"),
    ],
)
def test_rows_that_are_refused(media, raw, words):
    with pytest.raises(DataError) as told:
        parse_record(raw, 0, "data.json", media)
    assert words in str(told.value) and len(str(told.value)) < 400


def test_keys_that_say_nothing_else_are_no_error(media, tmp_path):
    """Tables have whole numbers as floats and empty lists of tools; a prompt beside a conversation is a remark."""
    row = {**PUBLISHED, "id": None, "num_frames": 4.0, "tools": "[]", "label": False, "prompt": "a remark"}
    record = parse_record(row, 7, "data.json", media)
    assert (record.id, record.media[0].num_frames) == ("#7", 4)
    assert unread_keys(row) == {"label", "prompt"} and not unread_keys(TRL_PROMPT)
    assert not unread_keys(MESSAGES_AS_TURNS)
    named = tmp_path / "a clip.mp4"
    named.write_bytes((media / "v.mp4").read_bytes())
    parts = [{"type": "video_url", "video_url": {"url": named.as_uri()}}, {"type": "text", "text": "What?"}]
    record = parse_record({"messages": [{"role": "user", "content": parts}, ANSWER]}, 0, "data.json", media)
    assert record.media[0].path == str(named)


def test_frames_of_each_record(media, tmp_path):
    """Tokens, lengths and pixels of a record follow its own number of frames; too few are refused with the file."""
    rows = [{**PUBLISHED, "id": str(count), "num_frames": count} for count in (4, 2)] + [PUBLISHED]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (records,) = read_sets([tmp_path / "data.json"], data_folder=media)
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    config = processor.model_config
    dataset = VideoInstructionDataset(records, processor, 2048)
    for index, frames in enumerate((4, 2, config.num_frames)):
        sample = dataset[index]
        assert sample["media"][0][1].shape[0] == frames
        assert sample["input_ids"].count(config.video_token_id) == dataset.media_lengths[index]
    assert dataset.media_lengths[0] < dataset.media_lengths[2]
    (tmp_path / "one.json").write_text(json.dumps([{**PUBLISHED, "num_frames": 1}]))
    (one,) = read_sets([tmp_path / "one.json"], data_folder=media)
    with pytest.raises(DataError, match=r"record '1': .*v.mp4: 'num_frames' 1: .* makes no visual token from 1 frame"):
        VideoInstructionDataset(one, processor, 2048)[0]
