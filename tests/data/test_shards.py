"""Tar shards: the same records as from an annotation file, in any order, with media that stay in the shard."""

import json
import tarfile

import pytest
import torch

from tests.conftest import ROOT
from tests.data.helpers import dialogue, write_shard
from videollama2.data.caches.index import file_digest
from videollama2.data.check import check_files
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.formats.contents import content_of
from videollama2.data.records import read_sets
from videollama2.errors import DataError, MediaError
from videollama2.processing import VideoLlama2Processor


@pytest.fixture
def members(media):
    video, image = (media / "v.mp4").read_bytes(), (media / "i.png").read_bytes()
    asked = {kind: dialogue((f"<{kind}>\nWhat?", "This.")) for kind in ("video", "image")}
    both = {"video": "b.mp4", "image": "png", "conversations": dialogue(("<image>\n<video>\nWhat?", "Both."))}
    return [
        ("part/a.json", json.dumps({"conversations": asked["video"]}).encode()),
        ("part/a.mp4", video),
        ("part/b.png", image),
        ("part/b.json", json.dumps(both).encode()),
        ("part/b.mp4", video),
        ("part/c.jpg", image),
        ("part/c.json", json.dumps({"id": "c", "conversations": asked["image"]}).encode()),
        ("part/d.json", json.dumps({"conversations": dialogue(("Hello?", "Yes."))}).encode()),
    ]


@pytest.fixture
def shard(tmp_path, members):
    write_shard(tmp_path / "shard-0.tar", members)
    return tmp_path / "shard-0.tar"


def test_samples_are_those_of_an_annotation_file(media, shard, tmp_path):
    rows = [
        {"video": "v.mp4", "conversations": dialogue(("<video>\nWhat?", "This."))},
        {"video": "v.mp4", "image": "i.png", "conversations": dialogue(("<image>\n<video>\nWhat?", "Both."))},
        {"image": "i.png", "conversations": dialogue(("<image>\nWhat?", "This."))},
        {"conversations": dialogue(("Hello?", "Yes."))},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    packed, plain = read_sets([shard, tmp_path / "data.json"], data_folder=media)
    assert [record.id for record in packed] == ["part/a", "part/b", "c", "part/d"]
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    datasets = [VideoInstructionDataset(records, processor, 2048) for records in (packed, plain)]
    for index in (2, 0, 3, 1):
        ours, theirs = (dataset[index] for dataset in datasets)
        assert (ours["input_ids"], ours["labels"]) == (theirs["input_ids"], theirs["labels"])
        for (kind, pixels), (other, expected) in zip(ours["media"], theirs["media"], strict=True):
            assert kind == other
            assert torch.equal(pixels, expected)


def test_members_in_any_order_and_writing(shard, members, tmp_path):
    """As tar archives a folder, on a camera card too: unsorted, with capital endings and files of no record."""
    (expected,) = read_sets([shard])
    apart = sorted(members, key=lambda member: member[0].endswith(".json"))
    odd = [(name[:-4] + name[-4:].upper(), content.replace(b"b.mp4", b"b.MP4")) for name, content in apart]
    write_shard(tmp_path / "odd.TAR", [("part/._a.mp4", b"?"), ("README", b"?"), *odd])
    (records,) = read_sets([tmp_path / "odd.TAR"])
    assert {record.id: record.conversations for record in records} == {r.id: r.conversations for r in expected}
    contents = [
        {record.id: [content_of(medium.path) for medium in record.media] for record in each}
        for each in (records, expected)
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("how", ["open", "decode"])
def test_members_are_checked(shard, members, tmp_path, how):
    assert not check_files([shard], media=how).problems
    broken = [(name, b"\0\0\0\x20ftypisom" + bytes(200) if name == "part/a.mp4" else c) for name, c in members]
    write_shard(tmp_path / "broken.tar", broken)
    (problem,) = check_files([tmp_path / "broken.tar"], media=how).problems
    assert "record 'part/a'" in problem


def test_identity_is_that_of_records_and_members(shard, members, tmp_path):
    write_shard(tmp_path / "again.tar", members)
    assert file_digest(tmp_path / "again.tar") == file_digest(shard)
    other = [(name, content.replace(b"Hello", b"Hallo")) for name, content in members]
    write_shard(tmp_path / "other.tar", other)
    assert file_digest(tmp_path / "other.tar") != file_digest(shard)


def test_what_is_no_shard_is_refused(shard, members, tmp_path):
    write_shard(tmp_path / "bare.tar", members[1:])
    with pytest.raises(DataError, match=r"bare.tar: part/a has no member part/a.json that describes it"):
        read_sets([tmp_path / "bare.tar"])
    write_shard(tmp_path / "odd.tar", [("a.json", b"{")])
    with pytest.raises(DataError, match=r"odd.tar: a.json is not JSON"):
        read_sets([tmp_path / "odd.tar"])
    write_shard(tmp_path / "twice.tar", [*members, members[1]])
    with pytest.raises(DataError, match=r"twice.tar: part/a.mp4 stands in it twice"):
        read_sets([tmp_path / "twice.tar"])
    write_shard(tmp_path / "deep.tar", [("a.json", b"[" * 100_000)])
    with pytest.raises(DataError, match=r"deep.tar: a.json is not JSON \(maximum recursion depth"):
        read_sets([tmp_path / "deep.tar"])
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz") as archive:
        archive.add(shard, "a.json")
    with pytest.raises(DataError, match=r"small.tar.gz: cannot be read as an uncompressed tar archive"):
        read_sets([tmp_path / "small.tar.gz"])
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(DataError, match=r"text.tar: cannot be read as an uncompressed tar archive"):
        read_sets([tmp_path / "text.tar"])


def test_members_that_messages_name_and_members_that_are_no_media(media, tmp_path):
    """Parts of messages name members too; a text beside a record is no medium, and damage stays one record's."""
    video = (media / "v.mp4").read_bytes()
    part = {"type": "video_url", "video_url": {"url": "somewhere/a.mp4"}}
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "This."},
    ]
    asked = json.dumps({"conversations": dialogue(("<video>\nWhat?", "This."))}).encode()
    members = [
        ("a.mp4", video),
        ("a.json", json.dumps({"messages": messages}).encode()),
        ("b.txt", b"a text"),
        ("b.mp4", video),
        ("b.json", asked),
        ("c.mp4", b""),
        ("c.json", asked),
    ]
    write_shard(tmp_path / "shard.tar", members)
    problems: list[str] = []
    (records,) = read_sets([tmp_path / "shard.tar"], skipped=problems)
    assert [content_of(record.media[0].path) for record in records] == [video, video]
    assert len(problems) == 1 and "record 'c': " in problems[0] and "the file is empty" in problems[0]


def test_a_shard_that_shrank_is_told(shard):
    (records,) = read_sets([shard])
    shard.write_bytes(shard.read_bytes()[:2000])
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    with pytest.raises(DataError, match=r"record 'part/a': .*a.mp4: the shard ends within this file") as told:
        VideoInstructionDataset(records, processor, 2048)[0]
    assert isinstance(told.value.__cause__, MediaError)
