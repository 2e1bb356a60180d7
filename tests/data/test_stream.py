"""Streams: every record once a pass, an order that depends on the seed alone, and problems that are told."""

import json
from collections import Counter
from itertools import islice

import pytest

from tests.data.helpers import dialogue
from videollama2.data.stream import RecordFiles, StreamOrder
from videollama2.errors import DataError


@pytest.fixture
def files(tmp_path):
    """Files of seven and of three records without media."""
    for name, count in (("a", 7), ("b", 3)):
        rows = [{"id": f"{name}{i}", "conversations": dialogue(("Hi", f"{name} {i}"))} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def names(order, count):
    return [record.id for record in islice(order, count)]


@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_a_pass_has_every_record_once(files, buffer):
    drawn = names(StreamOrder(RecordFiles(files), buffer=buffer), 30)
    passes = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(each) == sorted(passes[0]) and len(set(each)) == 10 for each in passes)
    assert drawn == names(StreamOrder(RecordFiles(files), buffer=buffer), 30)
    if buffer == 1:
        assert passes == [[f"a{i}" for i in range(7)] + [f"b{i}" for i in range(3)]] * 3
    else:
        assert passes[0] != passes[1]
        assert drawn != names(StreamOrder(RecordFiles(files), buffer=buffer, seed=1), 30)


def test_weights_are_shares_of_the_stream(files):
    drawn = names(StreamOrder(RecordFiles(files), weights=[1, 3], buffer=20), 2000)
    shares = Counter(name[0] for name in drawn)
    assert shares["b"] / 2000 == pytest.approx(0.75, abs=0.05)
    counts = Counter(name for name in drawn if name.startswith("b"))
    assert len(counts) == 3 and max(counts.values()) - min(counts.values()) <= 20


def test_bad_records_are_told_or_left_out(files, tmp_path):
    with open(files[1], "a") as file:
        file.write('\n{"id": "bad", "conversations": []}\n')
    with pytest.raises(DataError, match=r"b.jsonl: record 'bad': 'conversations'"):
        names(StreamOrder(RecordFiles(files), buffer=1), 11)
    told = []
    assert len(set(names(StreamOrder(RecordFiles(files), buffer=1, problem=told.append), 10))) == 10
    (tmp_path / "none.json").write_text('[{"id": "bad", "conversations": []}]')
    with pytest.raises(DataError, match="there is no usable record"):
        names(StreamOrder(RecordFiles([str(tmp_path / "none.json")]), problem=told.append), 1)
    assert "'bad'" in told[-1]


def test_a_record_whose_video_is_missing_keeps_its_place(files, tmp_path):
    """It may be missing on one machine only, and all must have the same records in each batch."""
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    rows[1] |= {"video": "gone.mp4", "conversations": dialogue(("<video>\nHi", "b"))}
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = []
    found = list(islice(StreamOrder(RecordFiles(files), buffer=1, problem=told.append), 10))
    assert [place for place, each in enumerate(found) if isinstance(each, DataError)] == [8] and told == []
    assert "'b1'" in str(found[8]) and "gone.mp4" in str(found[8])


def test_empty_files_are_passed_over(files, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "none.json").write_text("[]")
    empty = [str(tmp_path / "empty.jsonl"), str(tmp_path / "none.json")]
    source = RecordFiles([empty[0], *files, empty[1]])
    assert source.empty() == empty
    assert sorted(names(StreamOrder(source, buffer=4), 10)) == sorted(names(StreamOrder(RecordFiles(files)), 10))
    with pytest.raises(DataError, match="no record in any of these files"):
        names(StreamOrder(RecordFiles(empty)), 1)
    with pytest.raises(DataError, match=r"empty\.jsonl: there is no record"):
        names(StreamOrder(source, weights=[1, 1, 1, 1]), 30)
