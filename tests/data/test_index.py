"""Records and lengths kept by content: read once, shared by processes, and never something other than what was read."""

import json
import pickle

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import start_together
from videollama2.data import dataset as dataset_module
from videollama2.data.caches.index import Index
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_sets
from videollama2.errors import DataError
from videollama2.processing import VideoLlama2Processor


@pytest.fixture
def file(tmp_path):
    """Three good records, one with an emoji, and one without turns."""
    (tmp_path / "i.png").write_bytes((ROOT / "videollama2" / "assets" / "demo" / "shapes.png").read_bytes())
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a “shape”"}]
    rows = [{"id": f"r{i}", "image": "i.png", "conversations": turns} for i in range(2)]
    odd = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a \U0001f600"}]
    rows += [{"id": "odd", "conversations": odd}, {"id": "bad", "conversations": []}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json"


def read(file, index):
    skipped = []
    (records,) = read_sets([file], skipped=skipped, index=index)
    return records, skipped


def test_the_same_records_and_problems_without_looking_at_media_again(file, tmp_path):
    plain, problems = read(file, None)
    index = Index(tmp_path / "cache")
    first, first_problems = read(file, index)
    (tmp_path / "i.png").unlink()
    again, more = read(file, index)
    assert list(plain) == list(first) == list(again)
    assert problems == first_problems == more and "'bad'" in problems[0]
    assert list(pickle.loads(pickle.dumps(again))) == list(plain) == list(pickle.loads(pickle.dumps(plain)))
    with pytest.raises(DataError, match="'bad'"):
        read_sets([file], index=index)


def test_other_content_or_options_are_read_anew(file, tmp_path):
    index = Index(tmp_path / "cache")
    names = {read(file, index)[0].content}
    (heard,) = read_sets([file], skipped=[], va=[True], index=index)
    names.add(heard.content)
    file.write_text(file.read_text().replace("what?", "who?"))
    changed, _ = read(file, index)
    names.add(changed.content)
    assert "who?" in changed[0].conversations[0]["value"]
    assert len(names) == 3


def test_an_entry_that_failed_is_none(tmp_path):
    index = Index(tmp_path / "cache")

    def fail(folder):
        (folder / "half").touch()
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        index.entry("x", fail)
    place = index.entry("x", lambda folder: None)
    assert list(place.iterdir()) == []
    place.rmdir()
    (place.parent / f"unfinished-{place.name}-killed").mkdir()  # what a process leaves that is killed
    assert index.entry("x", lambda folder: None) == place
    assert {path.name for path in place.parent.iterdir()} == {place.name, f"{place.name}.lock"}
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--records_cache .*file/cache: cannot be written to"):
        Index(tmp_path / "file" / "cache").entry("x", fail)


def _enter(folder, barrier):
    barrier.wait()
    Index(folder).entry("y", lambda place: (folder / f"written-{place.name}").touch())


def test_one_process_writes_and_the_others_wait(tmp_path):
    start_together(4, _enter, tmp_path)
    assert len(list(tmp_path.glob("written-*"))) == 1


def test_lengths_are_counted_once(file, tmp_path):
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    index = Index(tmp_path / "cache")
    records, _ = read(file, index)
    plain = VideoInstructionDataset(records, processor, 2048)
    kept = VideoInstructionDataset(records, processor, 2048, index=index, contents=[records.content])
    assert list(kept.lengths) == list(plain.lengths)
    again = VideoInstructionDataset(records, processor, 2048, index=index, contents=[records.content])
    again._lengths = None  # counting would call it
    assert list(again.lengths) == list(plain.lengths)
    shorter = VideoInstructionDataset(records, processor, 5, index=index, contents=[records.content])
    assert max(shorter.lengths) == 5


def test_lengths_of_large_sets_are_estimated_by_shape_and_size(tmp_path, monkeypatch):
    """Of media exactly, of text to a few percent; the same from the index and by decoding every record."""
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": ""}]
    (tmp_path / "i.png").write_bytes((ROOT / "videollama2" / "assets" / "demo" / "shapes.png").read_bytes())
    rows = []
    for i in range(300):
        turns = [talk[0], {**talk[1], "value": "a red circle moves left and stops " * (1 + i % 40)}]
        text_only = [{**turns[0], "value": "what?"}, turns[1]]
        rows.append({"image": "i.png", "conversations": turns} if i % 3 else {"conversations": text_only})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    (records,) = read_sets([tmp_path / "rows.json"], index=Index(tmp_path / "cache"))
    exact = VideoInstructionDataset(records, processor, 1 << 20)
    decoded = VideoInstructionDataset(list(records), processor, 1 << 20)
    assert list(exact.media_lengths) == list(decoded.media_lengths)
    assert list(exact.lengths) == list(decoded.lengths)
    monkeypatch.setattr(dataset_module, "_EXACT", 100)
    monkeypatch.setattr(dataset_module, "_MEASURED", 60)
    estimated = VideoInstructionDataset(records, processor, 1 << 20).lengths
    assert estimated == pytest.approx(list(exact.lengths), rel=0.1, abs=12)
    assert len(set(records.shapes[1])) == 2
