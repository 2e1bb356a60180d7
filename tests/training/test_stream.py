"""Streamed runs: the same batches whatever the form of the files, and exactly resumed within a row group."""

import json
import tarfile

import pytest

from videollama2 import train
from videollama2.errors import DataError
from videollama2.training.data import RunData

from .helpers.runs import copy_checkpoint, difference, flags

STREAMED = {
    "streaming": True,
    "shuffle_buffer": 5,
    "max_steps": 4,
    "per_device_train_batch_size": 3,
    "save_strategy": "steps",
    "save_steps": 2,
}


def as_parquet(world, file):
    """The records of the world with the content of their media, in row groups of five."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = json.loads((world / "mixed.json").read_text())
    cells = [
        {
            **row,
            **{
                key: {"bytes": (world / row[key]).read_bytes(), "path": row[key]}
                for key in ("video", "image")
                if key in row
            },
        }
        for row in rows
    ]
    names = ("id", "video", "image", "conversations")
    pq.write_table(
        pa.Table.from_pylist([{name: cell.get(name) for name in names} for cell in cells]), file, row_group_size=5
    )
    return file


@pytest.mark.slow
def test_batches_do_not_depend_on_the_form_and_resume_exactly(run, world, tmp_path):
    whole = run(**STREAMED)
    file = as_parquet(world, tmp_path / "mixed.parquet")
    resumed = tmp_path / "resumed"
    tables = run(data_path=file, dataloader_num_workers=1, **STREAMED)
    assert difference(whole.weights, tables.weights) == 0
    copy_checkpoint(tables.folder / "checkpoint-2", resumed / "checkpoint-2")
    # Two records of the second row group were used after six records.
    again = run(folder=resumed, data_path=file, **STREAMED)
    assert [row["step"] for row in again.log] == [1, 2, 3, 4]
    assert difference(whole.weights, again.weights) == 0
    assert whole.losses == again.losses
    report = (again.folder / "report.md").read_text()
    assert "read as a stream" in report and "| `--streaming` | True |" in report and "num_train_epochs" not in report


@pytest.mark.slow
def test_two_processes_share_a_stream_beyond_its_end(run, launch, world, tmp_path):
    """Twenty-four samples of a file with fewer records: the batches are those of a single process."""
    assert len(json.loads((world / "mixed.json").read_text())) < 24
    alone = run(**{**STREAMED, "per_device_train_batch_size": 6, "save_strategy": "no", "save_steps": None})
    options = {**STREAMED, "save_strategy": "no", "save_steps": None, "dataloader_num_workers": 1}
    together = launch(2, **options)
    assert together.losses == pytest.approx(alone.losses, rel=1e-5)
    assert difference(together.weights, alone.weights) < 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streaming": True, "max_steps": -1}, "--streaming needs --max_steps"),
        ({"streaming": True, "packing": 500}, "--packing needs all records"),
        ({"shuffle_buffer": 5}, "--shuffle_buffer 5 has no effect without --streaming True"),
        ({"streaming": True, "data_path": "gone.json"}, "gone.json"),
    ],
)
def test_contradictions(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def empty(tmp_path):
    """Files of all forms without any row."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [tmp_path / name for name in ("a.jsonl", "b.json", "c.tar", "d.parquet")]
    files[0].touch()
    files[1].write_text("[]")
    with tarfile.open(files[2], "w"):
        pass
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "video": pa.array([], pa.binary())}), files[3])
    return files


@pytest.mark.parametrize("streaming", [True, False])
def test_empty_files_are_passed_over_with_a_warning(world, parts, tmp_path, empty, capsys, streaming):
    def data(*files, **changes):
        cache = {} if streaming else {"records_cache": tmp_path / "cache"}
        options = {"streaming": streaming, "data_path": list(files), **cache, **changes}
        _, data_args, training_args = train.parse_arguments(flags(world, parts, tmp_path / "out", **options))
        return RunData(data_args, training_args)

    found = data(*empty[:2], world / "mixed.json", *empty[2:])
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in warnings] == [["warning", str(file)] for file in empty]
    alone = data(world / "mixed.json")
    assert [len(records) for records in found.sets] == ([] if streaming else [0, 0, len(alone.sets[0]), 0, 0])
    with pytest.raises(DataError, match=r"a\.jsonl and 3 more: there is no record in any of these files"):
        data(*empty)
    with pytest.raises(DataError, match=r"c\.tar: there is no record in this file, but --data_weights"):
        data(world / "mixed.json", empty[2], data_weights=[1, 1])


@pytest.mark.slow
def test_an_empty_file_changes_nothing(run, world, empty):
    options = {**STREAMED, "save_strategy": "no", "save_steps": None, "max_steps": 1, "shuffle_buffer": 1}
    assert run(**options).losses == run(data_path=[world / "mixed.json", empty[2]], **options).losses
    indexed = run(data_path=[empty[0], world / "mixed.json"], max_steps=1, num_frames=2)
    assert "a.jsonl" not in (indexed.folder / "report.md").read_text().partition("## Curves")[0].partition("## Rec")[2]
