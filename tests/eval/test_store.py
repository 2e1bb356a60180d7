"""What is on disk survives being cut anywhere, is never mixed up, and is checked when it is merged."""

import json
import os

import pytest

from tests.helpers.forked import start_together
from videollama2.errors import ConfigError, DataError
from videollama2.eval.samples import StoredAnswer
from videollama2.eval.store import AnswerStore, configuration_hash, read_run

CONFIGURATION = {"benchmark": "mvbench", "generation": {"num_frames": 8}}


def store(tmp_path, **changes):
    return AnswerStore(tmp_path / "out", {**CONFIGURATION, **changes}, {"data": "x"})


def answer(name, output="A", error=None):
    return StoredAnswer(name, output, error)


def fill(found, *answers, rank=0, world=1):
    with found.shard(rank, world) as writer:
        for each in answers:
            writer.append(each)


def test_answers_come_back_in_order_with_gaps_named(tmp_path):
    found = store(tmp_path)
    fill(found, answer("c"), answer("a", "ü\ud800\n"), rank=1, world=2)
    answers, gaps = store(tmp_path).merge(["a", "b", "c"])
    assert [each.id for each in answers] == ["a", "c"]
    assert gaps == ["b"]
    assert answers[0].output.startswith("ü")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_anywhere_is_asked_again(tmp_path, cut):
    found = store(tmp_path)
    fill(found, answer("a"), answer("b"))
    path = next(found.answers.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-cut])
    assert found.merge(["a", "b"])[1] == ["b"]
    fill(found, answer("b", "again"))
    answers, gaps = found.merge(["a", "b"])
    assert ([each.output for each in answers], gaps) == (["A", "again"], [])


def test_a_cut_line_in_the_file_of_a_process_that_is_no_more_is_not_read(tmp_path):
    found = store(tmp_path)
    fill(found, answer("a"), answer("b"), rank=2, world=3)
    path = next(found.answers.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-4])
    fill(found, answer("b"))
    assert found.merge(["a", "b"])[1] == []


def test_a_full_disk_is_named_and_keeps_what_was_written(tmp_path):
    resource = pytest.importorskip("resource")
    found = store(tmp_path)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, former[1]))
        with pytest.raises(DataError, match=r"rank-00000-of-00001\.jsonl: cannot be written \(File too large\)"):
            fill(found, *[answer(str(number)) for number in range(9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert found.merge(["0", "1", "2"])[1] == ["2"]  # its line is cut
    fill(found, answer("2"))
    assert found.merge(["0", "1", "2"])[1] == []


def test_doubles_are_mended_and_surplus_and_damage_are_found(tmp_path):
    found = store(tmp_path)
    fill(found, answer("a"), rank=0, world=2)
    fill(found, answer("a", "second"), rank=1, world=2)
    (kept,), gaps = found.merge(["a"])
    assert (kept.output, gaps) == ("A", [])  # the first one counts, and the folder is as good as any
    (found.answers / "rank-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match=r"not in this run: 'a'"):
        found.merge(["b"])
    (found.answers / "rank-00001-of-00002.jsonl").write_bytes(b"garbage\n")
    with pytest.raises(DataError, match=r"rank-00001-of-00002\.jsonl: line 1 is damaged"):
        found.merge(["a"])


def test_a_failure_is_replaced_by_a_later_answer(tmp_path):
    found = store(tmp_path)
    fill(found, answer("a", None, "MediaError: x"), answer("a", "B"))
    assert found.read()["a"].output == "B"


def test_a_run_without_an_answer_reserves_nothing(tmp_path):
    """It may have ended for a slip in its command, but not while it works."""
    former = store(tmp_path)
    with former.shard(0, 1), pytest.raises(ConfigError, match="answers of another configuration"):
        store(tmp_path, generation={"num_frames": 16})
    changed = store(tmp_path, generation={"num_frames": 16})
    fill(changed, answer("a"))
    assert read_run(tmp_path / "out")["configuration"]["generation"] == {"num_frames": 16}
    with pytest.raises(ConfigError, match="answers of another configuration"):
        store(tmp_path)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fill(store(tmp_path), answer("a"))
    with pytest.raises(ConfigError, match=r"generation: \{'num_frames': 8\} there, \{'num_frames': 16\} here"):
        store(tmp_path, generation={"num_frames": 16})
    assert read_run(tmp_path / "out")["configuration"] == CONFIGURATION


def test_an_answer_of_another_configuration_is_never_read(tmp_path):
    found = store(tmp_path)
    fill(found, answer("a"))
    path = next(found.answers.glob("*.jsonl"))
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, "config": configuration_hash({"other": 1})}) + "\n")
    with pytest.raises(DataError, match="line 1 is not of configuration"):
        found.read()


def test_a_file_has_one_writer(tmp_path):
    found = store(tmp_path)
    with found.shard(0, 1), pytest.raises(ConfigError, match="the same evaluation runs already"), found.shard(0, 1):
        pass
    with found.shard(0, 1):
        pass


def test_another_number_of_processes_waits_until_nobody_works_here(tmp_path):
    """Each would ask what the others ask, since the shares differ."""
    found = store(tmp_path)
    with found.shard(0, 3), found.shard(2, 3):
        with pytest.raises(ConfigError, match="an evaluation with 3 processes runs in this folder"), found.shard(0, 1):
            pass
        with found.shard(1, 3):
            pass
    with found.shard(0, 1), pytest.raises(ConfigError, match="with 1 process runs"), found.shard(1, 3):
        pass


def test_one_process_merges(tmp_path):
    found = store(tmp_path)
    with found.merging() as first, found.merging() as second:
        assert (first, second) == (True, False)


def _open(folder, told, barrier):
    barrier.wait()
    found = {AnswerStore(folder, CONFIGURATION, {"data": "x"}).hash for _ in range(2)}
    (told / str(os.getpid())).write_text(" ".join(found))


@pytest.mark.slow
def test_processes_that_begin_together_agree(tmp_path):
    told = tmp_path / "told"
    told.mkdir()
    start_together(4, _open, tmp_path / "out", told)
    (found,) = {path.read_text() for path in told.iterdir()}
    assert len(list(told.iterdir())) == 4 and found == AnswerStore(tmp_path / "out", CONFIGURATION, {"data": "x"}).hash
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers", "run.json"]


def test_a_folder_that_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder of an evaluation"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="is not the description of an evaluation"):
        read_run(tmp_path)
