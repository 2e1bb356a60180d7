"""Running for real, with the built-in model: nothing depends on batches, processes or interruptions."""

import copy
import json
import os
import re
import time

import pytest

from tests.eval.helpers.reference import benchmarks_dir
from tests.eval.helpers.samples import item
from tests.eval.helpers.terminal import on_a_terminal
from tests.helpers.forked import run_python
from videollama2 import mm_infer, model_init
from videollama2.errors import DataError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.running.clips import ClipReader, by_clip, decode_threads, share_of_process
from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation
from videollama2.eval.running.runner import AnswerOptions, Runner, open_evaluation_engine
from videollama2.inference.engine import Engine

RESULTS = ("samples.jsonl", "results.json", "results.md", "results.png", "mvbench.jsonl")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_share_together_is_everything_and_clips_stay_whole():
    items = [item(str(n), f"{n % 5}.mp4", start=n % 2) for n in range(40)]
    assert len(by_clip(items)) == 10
    for world in (1, 3, 7, 16):
        shares = [share_of_process(items, rank, world) for rank in range(world)]
        assert sorted(each.id for part in shares for each in part) == sorted(each.id for each in items)
        clips = [{each.clip for each in part} for part in shares]
        assert sum(map(len, clips)) == 10


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """One process, one question at a time."""
    folder = tmp_path_factory.mktemp("alone")
    choice = ModelChoice("videollama2-tiny", options={"device": "cpu"})
    options = AnswerOptions(max_new_tokens=16)
    plan = EvaluationPlan(benchmark("moving_shapes"), world, folder, choice, options, batch_size=1, progress=False)
    run_evaluation(plan, lambda text: None)
    return folder


def test_answers_are_those_of_mm_infer(alone, world):
    model, processor, tokenizer = model_init("videollama2-tiny", device="cpu")
    rows = {row["id"]: row for row in rows_of(alone)}
    for each in benchmark("moving_shapes").load(world)[::4]:
        pixels = processor["video"](world / each.media)
        text = mm_infer(pixels, each.instruction, model, tokenizer, max_new_tokens=16)
        assert rows[each.id]["output"] == text


@pytest.mark.slow
def test_a_bigger_batch_gives_the_same_files(alone, evaluate, tmp_path):
    evaluate(tmp_path / "out", batch_size=8)
    assert contents(tmp_path / "out") == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3, 11])
def test_more_processes_give_the_same_files(alone, evaluate, tmp_path, world_size):
    """11 are more than there are clips; they come in any order, and only the last one reports."""
    ranks = [*range(1, world_size), 0]
    results = [evaluate(tmp_path / "out", rank=rank, world=world_size) for rank in ranks]
    assert results[:-1] == [None] * (world_size - 1)
    assert contents(tmp_path / "out") == contents(alone)
    assert any("answers are still to come" in text for text in evaluate.said)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(alone, evaluate, tmp_path):
    evaluate(tmp_path / "out", rank=1, world=3)
    before = sorted((tmp_path / "out" / "answers").glob("rank-00001*"))
    kept = before[0].read_bytes()
    evaluate(tmp_path / "out")
    assert before[0].read_bytes() == kept
    assert contents(tmp_path / "out") == contents(alone)


@pytest.mark.slow
def test_a_finished_run_is_reported_again_and_nothing_asked(alone, evaluate, tmp_path):
    evaluate(tmp_path / "out")
    first = contents(tmp_path / "out")
    answers = {path: path.read_bytes() for path in (tmp_path / "out" / "answers").iterdir()}
    (tmp_path / "out" / "results.json").unlink()
    evaluate(tmp_path / "out")
    assert contents(tmp_path / "out") == first
    assert {path: path.read_bytes() for path in answers} == answers


@pytest.mark.slow
def test_a_killed_process_loses_only_what_was_under_way(alone, world, python_of_forks, tmp_path):
    options = ("--model-path", "videollama2-tiny", "--device", "cpu", "--max-new-tokens", "16", "--batch-size", "1")
    places = ("--data", str(world), "--output", str(tmp_path / "out"))
    asked = ["-m", "videollama2.eval", "run", "moving_shapes", *places, *options]
    with on_a_terminal([python_of_forks, *asked], dict(os.environ)) as (process, read):
        seen = b""
        while not re.search(rb" [1-9]\d*/\d+ \[", seen):  # the bar shows the first answer
            got = read()
            assert got, f"it ended by itself: {seen.decode()}"
            seen += got
        process.kill()
        while read():  # until the process has ended, and with it the last line that it writes
            pass
    total = len(rows_of(alone))
    saved = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out" / "answers").iterdir())
    assert 0 < saved < total
    done = run_python(asked)
    assert done.returncode == 0, done.stderr
    assert "| accuracy | published | %" in done.stdout
    assert contents(tmp_path / "out") == contents(alone)


def test_every_clip_is_decoded_and_encoded_once(world):
    model, processor, _ = model_init("videollama2-tiny", device="cpu")
    items = benchmark("moving_shapes").load(world)
    stored = []
    with Engine(model, processor, max_batch=4) as engine:
        runner = Runner(engine, benchmark("moving_shapes"), world, AnswerOptions(max_new_tokens=4))
        runner.run(items, stored.append)
        assert len(items) > len(by_clip(items)) == runner.work.clips == len(engine.media.cache)
    assert sorted(each.id for each in stored) == sorted(each.id for each in items)
    assert runner.work.answers == len(items)
    assert runner.work.tokens > 0


def test_a_run_tells_how_long_the_model_waited_for_clips(world):
    class SlowReader(ClipReader):
        def read(self, item):
            time.sleep(0.3)
            return super().read(item)

    model, processor, _ = model_init("videollama2-tiny", device="cpu")
    items = benchmark("moving_shapes").load(world)[:1]
    with Engine(model, processor, max_batch=1) as engine:
        runner = Runner(engine, benchmark("moving_shapes"), world, AnswerOptions(max_new_tokens=1))
        runner.clips = SlowReader(processor, world, runner.sampling, "auto")
        runner.run(items, lambda answer: None)
    assert 0.3 <= runner.work.starved_seconds <= runner.work.seconds
    waited = re.fullmatch(
        r"1 answers in .* \(.* per second\); the model waited for clips (\d+)% of the time", runner.work.text()
    )
    assert int(waited[1]) == round(100 * runner.work.starved_seconds / runner.work.seconds)


def test_reading_threads_are_shared_by_the_processes_of_a_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert decode_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert decode_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert decode_threads() == 2


@pytest.mark.slow
def test_two_parts_of_a_video_are_two_clips(evaluate, tmp_path):
    evaluate(tmp_path / "out", "mvbench")
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 40
    # This clip begins after the end of its video: counted as a medium that cannot be used, and named.
    failed = [row for row in rows.values() if row["error"]]
    assert [row["id"] for row in failed] == ["action_prediction-1"]
    assert failed[0]["error_kind"] == "media"
    assert "after the end of the video" in failed[0]["error"]
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [metric["protocol"] for metric in report["metrics"]] == ["published", "strict"]
    for metric in report["metrics"]:
        counts = metric["counts"]
        assert (counts["total"], counts["answered"], counts["missing_media"]) == (40, 39, 1)
        assert len(metric["categories"]) == 20
    assert report["metrics"][1]["counts"]["guessed"] == 0


@pytest.mark.slow
def test_missing_and_unreadable_videos_are_counted_named_and_can_be_supplied(evaluate, copied, tmp_path, capsys):
    data = copied("egoschema")
    lost, broken = sorted((data / "good_clips_git").iterdir())[:2]
    content = lost.read_bytes()
    lost.unlink()
    broken.write_bytes(b"this is no video")
    evaluate(tmp_path / "out", "egoschema", data)
    assert f"1 media files are missing below {data}: good_clips_git/{lost.name}" in capsys.readouterr().err
    rows = {row["group"]: row for row in rows_of(tmp_path / "out")}
    assert rows[lost.stem]["error"].startswith("MediaNotFoundError")
    assert rows[broken.stem]["error"].startswith("MediaError")
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["metrics"][0]["counts"]["missing_media"] == 2
    assert {problem["group"] for problem in report["problems"]} == {lost.stem, broken.stem}
    submitted = json.loads((tmp_path / "out" / "egoschema.json").read_text())
    assert set(submitted) == set(rows) - {lost.stem, broken.stem}

    lost.write_bytes(content)
    evaluate(tmp_path / "out", "egoschema", data)
    assert {row["group"] for row in rows_of(tmp_path / "out") if row["error"]} == {lost.stem, broken.stem}
    evaluate(tmp_path / "out", "egoschema", data, retry_failed=True)
    assert {row["group"] for row in rows_of(tmp_path / "out") if row["error"]} == {broken.stem}


@pytest.mark.parametrize("content", [None, b"this is no video"])
def test_strict_data_stops_and_names_the_file(evaluate, copied, tmp_path, content):
    data = copied("egoschema")
    path = next((data / "good_clips_git").iterdir())
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}.*strict-data"):
        evaluate(tmp_path / "out", "egoschema", data, strict_data=True)


def test_a_question_that_does_not_fit_fails_alone(evaluate, copied, tmp_path):
    data = copied("egoschema")
    questions = json.loads((data / "questions.json").read_text())
    questions[0]["question"] = "what " * 5000
    (data / "questions.json").write_text(json.dumps(questions))
    evaluate(tmp_path / "out", "egoschema", data)
    rows = rows_of(tmp_path / "out")
    assert rows[0]["error"].startswith("RequestTooLongError")
    assert rows[0]["error_kind"] == "failed"
    assert not any(row["error"] for row in rows[1:])


@pytest.mark.slow
def test_a_long_prompt_takes_of_the_answers_room(evaluate, copied, tmp_path):
    data = copied("egoschema")
    questions = json.loads((data / "questions.json").read_text())
    questions[0]["question"] = "what " * 500  # more than half of the model's 1,024 positions
    (data / "questions.json").write_text(json.dumps(questions))
    evaluate(tmp_path / "room", "egoschema", data, options=AnswerOptions(), limit=1)
    assert rows_of(tmp_path / "room")[0]["error"] is None
    assert json.loads((tmp_path / "room" / "results.json").read_text())["generation"]["max_new_tokens"] == 512
    evaluate(tmp_path / "asked", "egoschema", data, options=AnswerOptions(max_new_tokens=512), limit=1)
    assert rows_of(tmp_path / "asked")[0]["error"].startswith("RequestTooLongError")  # it was asked for


def test_slots_are_as_long_whatever_the_batch(world):
    model, processor, _ = model_init("videollama2-tiny", device="cpu")
    for batch in (1, 16):
        with open_evaluation_engine(model, processor, batch) as engine:
            assert (engine.max_batch, engine.max_length) == (batch, 1024)
    lengthened = copy.deepcopy(model)
    lengthened.config.text_config.max_position_embeddings = 32768
    with open_evaluation_engine(lengthened, processor) as engine:
        assert engine.max_length == 4096


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_batches_either(evaluate, tmp_path):
    sampled = AnswerOptions(max_new_tokens=8, temperature=2.0, seed=3)
    for name, batch in (("a", 1), ("b", 5)):
        evaluate(tmp_path / name, batch_size=batch, options=sampled, limit=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    evaluate(tmp_path / "c", options=AnswerOptions(max_new_tokens=8, temperature=2.0, seed=4), limit=8)
    texts = [[row["output"] for row in rows_of(tmp_path / name)] for name in ("a", "c")]
    assert texts[0] != texts[1]


@pytest.mark.slow
def test_limit_and_offset(evaluate, world, tmp_path):
    evaluate(tmp_path / "out", limit=3, offset=2)
    ids = [each.id for each in benchmark("moving_shapes").load(world)]
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ids[2:5]
    with pytest.raises(DataError, match="none is left"):
        evaluate(tmp_path / "none", offset=10**6)


@pytest.mark.slow
def test_subtitles_reach_the_model_and_the_file_names(evaluate, tmp_path):
    pytest.importorskip("pyarrow")
    found = benchmark("videomme").configure(subtitles="published")
    evaluate(tmp_path / "out", "videomme", found=found, limit=3)
    rows = rows_of(tmp_path / "out")
    assert all(row["instruction"].startswith("This video's subtitles are listed below:\nBlue") for row in rows)
    official = json.loads((tmp_path / "out" / "videomme_sub.json").read_text())
    reference = json.loads((benchmarks_dir() / "expected" / "videomme_responses.json").read_text())[0]
    assert {key: official[0][key] for key in official[0] if key != "questions"} == {
        key: value for key, value in reference.items() if key != "questions"
    }
    keys = [list(question) for question in reference["questions"]]
    assert [list(question) for question in official[0]["questions"]] == keys
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["subtitles"] == "published"
    assert set(report["metrics"][0]["breakdowns"]) == {"domain", "sub_category", "task_type"}
