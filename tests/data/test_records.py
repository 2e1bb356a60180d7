"""Annotation files: what is accepted, and that what is not names file, record and rule."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.data.helpers import dialogue
from videollama2.data import records as records_module
from videollama2.data.record import parse_record
from videollama2.data.records import read_records, read_sets
from videollama2.errors import DataError


def write(folder: Path, rows: object, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


GOOD = {"id": "a", "video": "v.mp4", "conversations": dialogue(("<video>\nWhat?", "this"))}


def test_reads_lists_and_lines_of_several_files(media, tmp_path):
    text_only = {"id": 7, "conversations": dialogue(("Hi", "hello"))}
    first = write(tmp_path, [GOOD, text_only], "a.json")
    second = write(tmp_path, "\n".join(map(json.dumps, [GOOD, text_only])) + "\n\n", "b.jsonl")
    records = read_records([first, second], media)
    assert [r.id for r in records] == ["a", "7", "a", "7"]
    assert records[0].kinds == ["video"]
    assert records[0].media[0].path == str(media / "v.mp4")
    assert records[1].media == ()
    assert str(second) in records[2].name


def test_paths_are_relative_to_the_annotation_file_by_default(media):
    assert read_records([write(media, [GOOD])])[0].media[0].path == str(media / "v.mp4")


def test_the_file_decides_what_it_is(media, tmp_path):
    """The README's example has an image under 'video'."""
    row = {**GOOD, "video": "i.png"}
    assert read_records([write(tmp_path, [row])], media)[0].kinds == ["image"]


def test_several_media_follow_their_tags(media, tmp_path):
    listed = {
        "id": "l",
        "image": ["i.png", "i.png"],
        "conversations": dialogue(("<image>\n<image>\nSame?", "yes")),
    }
    both = {
        "id": "b",
        "image": "i.png",
        "video": ["v.mp4", "v.mp4"],
        "conversations": dialogue(("<video> or", "a"), ("<image> or <video>?", "b")),
    }
    records = read_records([write(tmp_path, [listed, both])], media)
    assert records[0].kinds == ["image", "image"]
    assert records[1].kinds == ["video", "image", "video"]


BAD = {
    "missing file": ({**GOOD, "video": "gone.mp4"}, "gone.mp4"),
    "empty file": ({**GOOD, "video": "empty.mp4"}, "empty.mp4"),
    "surplus tag": ({**GOOD, "conversations": dialogue(("<video><video> What?", "this"))}, "2 media tag"),
    "no tag": ({**GOOD, "conversations": dialogue(("What?", "this"))}, "0 media tag"),
    "tag without file": ({"id": "a", "conversations": dialogue(("<image> What?", "this"))}, "1 media tag"),
    "odd turns": ({**GOOD, "conversations": GOOD["conversations"] + GOOD["conversations"][:1]}, "alternate"),
    "two questions": ({"id": "a", "conversations": dialogue(("x", "y"))[:1] * 2}, "alternate"),
    "no turns": ({**GOOD, "conversations": []}, "conversations"),
    "no conversations": ({"id": "a", "video": "v.mp4"}, "conversations"),
    "turn is text": ({"id": "a", "conversations": ["hello"]}, "'from' and 'value'"),
    "unknown speaker": ({"id": "a", "conversations": [{"from": "me", "value": "x"}]}, "'me'"),
    "value is no text": ({"id": "a", "conversations": [{"from": "human", "value": 3}]}, "3"),
    "path is a number": ({**GOOD, "video": 3}, "'video'"),
    "empty list of paths": ({**GOOD, "video": []}, "'video'"),
    "both keys, path without tag": (
        {**GOOD, "image": "i.png", "conversations": dialogue(("<video> What?", "this"))},
        "<image>",
    ),
    "both keys, surplus tag": (
        {**GOOD, "image": "i.png", "conversations": dialogue(("<video><image><image> What?", "this"))},
        "<image>",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_record_is_named(media, tmp_path, case):
    row, word = BAD[case]
    path = write(tmp_path, [{"id": "fine", "conversations": dialogue(("Hi", "hello"))}, row])
    with pytest.raises(DataError) as error:
        read_records([path], media)
    message = str(error.value)
    assert message.startswith(f"{path}: record 'a': ")
    assert word in message


def test_a_record_without_id_is_named_by_its_place(tmp_path):
    path = write(tmp_path, [{"conversations": dialogue(("Hi", "hello"))}, ["not", "an", "object"]])
    with pytest.raises(DataError, match="record '#1'.*list"):
        read_records([path])


def test_all_problems_are_told_up_to_a_number(media, tmp_path):
    path = write(tmp_path, [{**GOOD, "id": f"r{i}", "video": "gone.mp4"} for i in range(14)])
    with pytest.raises(DataError) as error:
        read_records([path], media)
    lines = str(error.value).splitlines()
    assert len(lines) == 11
    assert "'r9'" in lines[9]
    assert lines[10] == "and 4 more"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"id": 1},\n {"id": }]', ["line 2", "column 9"]),
        ('{"id": 1}\n{"id": ', ["line 2"]),
        ('[{"id": 1},\n {"id": 2}', ["line 2", "column 11"]),
        ('[{"id": 1}\n {"id": 2}]', ["line 2", "column 2"]),
        ('[{"id": 1},\n]', ["line 2", "column 1"]),
        ('[{"id": 1}]\n{"id": 2}', ["line 1", "column 12", "Extra data"]),
        ("[" * 100_000, ["nested deeper"]),
        ('{"id": ' + "[" * 100_000, ["nested deeper"]),
        ("", ["no record"]),
        (" [ ] ", ["no record"]),
    ],
)
def test_bad_file_is_named_with_the_place(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_records([path])
    for word in [str(path), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("join", [lambda rows: f"[{','.join(rows)}]", "\n".join], ids=["list", "lines"])
def test_texts_may_hold_separators_that_json_allows(tmp_path, join):
    """Web captions hold them: separators of lines and paragraphs, next line. And the mark that Windows writes first."""
    text = "one\u2028two\u2029three\x85four\x0cfive"
    rows = [json.dumps({"id": i, "conversations": dialogue((text, text))}, ensure_ascii=False) for i in range(3)]
    path = tmp_path / "data"
    path.write_text(join(rows), encoding="utf-8-sig")
    records = read_records([path])
    assert [record.id for record in records] == ["0", "1", "2"]
    assert all(turn["value"] == text for record in records for turn in record.conversations)


@pytest.mark.parametrize("far", [False, True])
def test_many_records_keep_their_order_and_so_do_their_problems(media, tmp_path, monkeypatch, far):
    """Files that are far away are opened by several threads at once."""
    monkeypatch.setattr(records_module, "_mostly_waited", lambda begin, end: far)
    count, bad = 5000, [3, 64, 2999, 4999]
    rows = [{**GOOD, "id": i, "video": "gone.mp4" if i in bad else "v.mp4"} for i in range(count)]
    problems: list[str] = []
    (records,) = read_sets([write(tmp_path, rows)], media, problems)
    assert [record.id for record in records] == [str(i) for i in range(count) if i not in bad]
    assert [problem.split("'")[1] for problem in problems] == [str(i) for i in bad]


def test_packed_records_come_back_as_they_were(media, tmp_path):
    row = {"id": "ü", "image": ["i.png"] * 2, "conversations": dialogue(("<image> or <image>?", "no"), ("So", "…"))}
    path = write(tmp_path, [GOOD, row])
    (records,) = read_sets([path], media)
    assert list(records) == [parse_record(raw, 0, str(path), media) for raw in (GOOD, row)]
    assert list(pickle.loads(pickle.dumps(records))) == list(records)  # what a spawned loader worker gets
    with pytest.raises(IndexError):
        records[2]


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json"):
        read_records([tmp_path / "gone.json"])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"binary\.json"):
        read_records([tmp_path / "binary.json"])


def test_bounds_of_a_record_reach_the_reader(media, tmp_path):
    """They survive packing, and the samples are the frames between them."""
    from tests.conftest import golden_dir
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.processing import VideoLlama2Processor

    row = {**GOOD, "video": str(golden_dir() / "media" / "landscape_30fps_90f.mp4")}
    ((whole, part),) = read_sets([write(tmp_path, [row, {**row, "start": 1, "end": 2.5}])])
    assert whole.media[0].bounds == {}
    assert part.media[0].bounds == {"start": 1, "end": 2.5}
    processor = VideoLlama2Processor.from_pretrained(golden_dir() / "models" / "qwen2-stc_connector-clip")
    pixels = [VideoInstructionDataset([r], processor, 4096)[0]["media"][0][1] for r in (whole, part)]
    assert torch.equal(pixels[1], processor.load_video(row["video"], start=1, end=2.5))
    assert not torch.equal(*pixels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": 3, "end": 1}, "start 3 s is after end 1 s"),
        ({"start": "1:30"}, "start '1:30' is not a number of seconds"),
        ({"video": "i.png", "start": 1}, "'start' bound a video or a sound, and this record has none"),
        ({"videos": "v.mp4"}, "'video' and 'videos' mean the same"),
        ({"audio_path": "a.wav"}, "'audio_path' is not used"),
        ({"system_prompt": "Be brief.", "system": "Be long."}, "'system' and 'system_prompt' mean the same"),
        ({"system": 7}, "a text 'value', got"),
        (
            {"conversations": [{"from": "user", "value": "<video>What?"}, {"from": "assistant", "value": ""}]},
            "is empty",
        ),
        ({"conversations": dialogue(("<video>What?", " \n"))}, "answer 1 is empty"),
    ],
)
def test_keys_that_would_change_what_is_learned(media, tmp_path, change, words):
    with pytest.raises(DataError, match="record 'a'") as error:
        read_records([write(tmp_path, [{**GOOD, **change}])], media)
    assert words in str(error.value)


def test_names_that_other_programs_use(media, tmp_path):
    """Empty values of keys that would be refused are none; keys in the plural mean the same."""
    talk = dialogue(("<image><video>What?", "this"))
    row = {"id": "b", "images": ["i.png"], "videos": ["v.mp4"], "system": "", "audio": None, "conversations": talk}
    text_only = {"id": "c", "images": [], "conversations": dialogue(("Hi", "hello"))}
    both, none = read_records([write(tmp_path, [row, text_only])], media)
    assert both.kinds == ["image", "video"] and none.media == ()
