"""Parquet files, folders of Hugging Face datasets and addresses: the same samples as from JSON and files beside it."""

import json
import pickle
import sys

import fsspec
import pytest
import torch

from tests.conftest import ROOT
from tests.data.helpers import dialogue, write_shard
from videollama2.data.caches.index import file_digest
from videollama2.data.check import check_files
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.formats import tables
from videollama2.data.formats.contents import content_of
from videollama2.data.formats.rows import read_rows
from videollama2.data.records import read_sets
from videollama2.errors import DataError, MediaError, MissingDependencyError
from videollama2.processing import VideoLlama2Processor

ROWS = [
    {"id": "a", "video": "v.mp4", "conversations": dialogue(("<video>\nWhat?", "This."))},
    {"id": "b", "image": ["i.png", "i.png"], "conversations": dialogue(("<image>\n<image>\nWhat?", "Both."))},
    {"id": "c", "conversations": dialogue(("Hello?", "Yes."))},
    {"id": "d", "image": ["i.png"], "conversations": dialogue(("<image>\nWhat?", "That."))},
]


@pytest.fixture(scope="module")
def processor():
    return VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")


@pytest.fixture
def json_file(media):
    (media / "rows.json").write_text(json.dumps(ROWS))
    return media / "rows.json"


def table(folder, inside):
    """The rows as a table: ``inside`` with the content of media as ``datasets`` stores it, else with paths."""
    pa = pytest.importorskip("pyarrow")

    def cell(name):
        return {"bytes": (folder / name).read_bytes(), "path": f"/elsewhere/{name}"} if inside else str(folder / name)

    rows = [
        {
            "id": row["id"],
            "video": cell(row["video"]) if "video" in row else None,
            "image": [cell(name) for name in row["image"]] if "image" in row else None,
            "conversations": row["conversations"],
        }
        for row in ROWS
    ]
    return pa.Table.from_pylist(rows)


def parquet(folder, file, inside=True):
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(table(folder, inside), file, row_group_size=3)
    return file


def saved_dataset(folder, place):
    """What ``Dataset.save_to_disk`` writes, as far as it is read."""
    pa = pytest.importorskip("pyarrow")
    place.mkdir()
    with pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as sink:
        whole = table(folder, True)
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole, max_chunksize=3)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return place


def same_samples(records, expected, processor):
    ours, theirs = (VideoInstructionDataset(each, processor, 2048) for each in (records, expected))
    for index in (3, 0, 2, 1):
        one, other = ours[index], theirs[index]
        assert (one["input_ids"], one["labels"]) == (other["input_ids"], other["labels"])
        for (kind, pixels), (other_kind, other_pixels) in zip(one["media"], other["media"], strict=True):
            assert kind == other_kind
            assert torch.equal(pixels, other_pixels)


@pytest.mark.parametrize("form", ["parquet", "parquet of paths", "dataset"])
def test_samples_are_those_of_json(media, json_file, processor, tmp_path, form):
    if form == "dataset":
        file = saved_dataset(media, tmp_path / "saved")
    else:
        file = parquet(media, tmp_path / "data.parquet", inside=form == "parquet")
    records, expected = read_sets([file, json_file])
    assert [record.id for record in records] == [row["id"] for row in ROWS]
    same_samples(pickle.loads(pickle.dumps(records)), expected, processor)
    assert not check_files([file]).problems


@pytest.mark.parametrize("form", ["json", "tar", "parquet"])
def test_addresses_are_read_like_files(media, json_file, processor, tmp_path, form):
    store = fsspec.filesystem("memory")
    name = f"/{tmp_path.name}-{form}"
    if form == "json":
        store.pipe({f"{name}/{file.name}": file.read_bytes() for file in media.iterdir() if file.stat().st_size})
        file = f"memory:/{name}/rows.json"
    elif form == "tar":
        members = []
        for row in ROWS:
            paths = row.get("image", [row["video"]] if "video" in row else [])
            members.append((f"{row['id']}.json", json.dumps(row).encode()))
            members += [(f"{row['id']}.{path}", (media / path).read_bytes()) for path in dict.fromkeys(paths)]
        write_shard(tmp_path / "rows.tar", members)
        store.pipe(f"{name}/rows.tar", (tmp_path / "rows.tar").read_bytes())
        file = f"memory:/{name}/rows.tar"
    else:
        store.pipe(f"{name}/rows.parquet", parquet(media, tmp_path / "rows.parquet").read_bytes())
        file = f"memory:/{name}/rows.parquet"
    records, expected = read_sets([file, json_file])
    assert all(medium.path.startswith("memory://") for record in records for medium in record.media)
    same_samples(records, expected, processor)
    store.rm(name, recursive=True)
    with pytest.raises(DataError, match="rows"):
        read_sets([file])
    tables._column.cache_clear()
    tables._kept_parquet.cache_clear()
    with pytest.raises(DataError, match=r"record 'a'.*cannot be opened"):
        VideoInstructionDataset(records, processor, 2048)[0]


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nostore://x/y.json: cannot be opened"):
        read_sets(["nostore://x/y.json"])
    with pytest.raises(DataError, match="https://x/y.json: web pages are not read; download the file"):
        read_sets(["https://x/y.json"])


@pytest.mark.parametrize("form", ["parquet", "dataset"])
def test_identity_is_that_of_the_content(media, tmp_path, form):
    def write(name):
        if form == "parquet":
            return parquet(media, tmp_path / f"{name}.parquet")
        return saved_dataset(media, tmp_path / name)

    first = file_digest(write("one"))
    assert file_digest(write("two")) == first
    answer = ROWS[2]["conversations"][1]
    answer["value"] = "Yes!"
    try:
        assert file_digest(write("three")) != first
    finally:
        answer["value"] = "Yes."


def test_turns_as_an_object_of_lists(tmp_path):
    """``Sequence({"from": ..., "value": ...})`` of ``datasets`` is stored so."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    turns = {"from": ["human", "gpt"], "value": ["Hello?", "Yes."]}
    pq.write_table(pa.Table.from_pylist([{"conversations": turns}]), tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet")) == [{"conversations": dialogue(("Hello?", "Yes."))}]


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "t.parquet"
    for content in (b"a", b"other", b"the last of them"):
        pq.write_table(pa.table({"image": [content]}), file)
        assert tables.parquet_content(str(file), 0, 0, "image", None) == content


def test_columns_that_are_no_records_are_told(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    turns = {"from": ["human", "gpt"], "value": ["Hello?"]}
    pq.write_table(pa.Table.from_pylist([{"conversations": turns}]), tmp_path / "uneven.parquet")
    with pytest.raises(DataError, match=r"record '#0': 'conversations' must be a list of turns"):
        read_sets([tmp_path / "uneven.parquet"])
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["video", "video"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice.parquet: has several columns 'video'"):
        read_sets([tmp_path / "twice.parquet"])


def test_what_cannot_be_read_is_told(media, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "odd.parquet").write_text("no table")
    with pytest.raises(DataError, match="odd.parquet: cannot be read"):
        read_sets([tmp_path / "odd.parquet"])
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="several splits; name one of them: .*splits/train or .*splits/test"):
        read_sets([tmp_path / "splits"])
    (tmp_path / "splits" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match="splits: cannot be read as a saved dataset"):
        read_sets([tmp_path / "splits"])
    file = parquet(media, tmp_path / "data.parquet")
    with pytest.raises(MediaError, match="no longer has this row"):
        content_of(f"{file}::0.7::video/v.mp4")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"data.parquet: reading it needs pyarrow: pip install 'video"):
        read_sets([file])
