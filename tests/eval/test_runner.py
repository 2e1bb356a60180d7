"""Running for real, with the built-in model: nothing depends on batches, processes or interruptions."""

import copy
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.conftest import on_a_terminal
from tests.eval.reference import benchmarks_dir
from tests.forked import run_python
from videollama2 import mm_infer, model_init
from videollama2.checkpoints.files import resolve_name
from videollama2.checkpoints.fingerprint import model_revision
from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.clips import ClipReader, by_clip, decode_threads, share_of_process
from videollama2.eval.items import Item
from videollama2.eval.run import EvaluationPlan, ModelChoice, items_digest, run_evaluation
from videollama2.eval.runner import AnswerOptions, Runner, open_evaluation_engine
from videollama2.eval.store import configuration_hash
from videollama2.inference.engine import Engine

RESULTS = ("samples.jsonl", "results.json", "results.md", "results.png", "mvbench.jsonl")


def contents(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def item(name, media, start=None):
    return Item(name, media, "?", "?", start=start)


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


@pytest.mark.parametrize(
    "changes", [{"options": AnswerOptions(max_new_tokens=16, num_frames=4)}, {"max_new_tokens": 15}, {"limit": 2}]
)
def test_another_configuration_never_reuses_answers(evaluate, tmp_path, changes):
    evaluate(tmp_path / "out", limit=3)
    with pytest.raises(ConfigError, match="holds answers of another configuration"):
        evaluate(tmp_path / "out", **{"limit": 3, **changes})


def test_everything_that_changes_an_answer_is_in_the_hash_and_nothing_else(world, tmp_path):
    found = benchmark("moving_shapes")
    plan = EvaluationPlan(found, world, tmp_path, ModelChoice("videollama2-tiny", options={"device": "cpu"}))
    items = plan.items()

    def hashed(**changes):
        changed = replace(plan, **changes)
        return configuration_hash(changed.configuration(changed.items() if "benchmark" in changes else items))

    def model(**options):
        return {"model": ModelChoice("videollama2-tiny", options={"device": "cpu", **options})}

    other = [
        model(device="cuda:1"),
        model(attn_implementation="eager"),
        model(load_4bit=True),
        model(load_8bit=True),
        {"model": ModelChoice("videollama2-tiny", dtype="bfloat16", options={"device": "cpu"})},
        {"benchmark": found.configure(prompt="options")},
        {"benchmark": benchmark("mvbench"), "data": benchmarks_dir() / "mvbench"},
    ]
    settings = {"num_frames": 4, "video_backend": "pyav", "max_new_tokens": 9, "temperature": 0.2, "top_p": 0.5}
    other += [{"options": AnswerOptions(**{name: value})} for name, value in {**settings, "seed": 1}.items()]
    hashes = [hashed(), *(hashed(**changes) for changes in other)]
    assert len(set(hashes)) == len(hashes)
    same = [
        model(device="cpu", attn_implementation="sdpa"),
        {"batch_size": 3},
        {"rank": 1, "world": 2},
        {"protocol": "strict"},
        {"strict_data": True},
        {"output": tmp_path},
        {"retry_failed": True},
    ]
    assert {hashed(**changes) for changes in same} == {hashed()}
    assert {"project_version", "model_revision"} <= set(plan.configuration(items))


def test_a_model_is_told_by_its_files_and_those_it_builds_on(tmp_path):
    tiny = Path(resolve_name("videollama2-tiny"))
    assert model_revision("videollama2-tiny") == model_revision(str(tiny))
    whole, bare, tower = (shutil.copytree(tiny, tmp_path / name) for name in ("whole", "bare", "tower"))
    (bare / "config.json").write_text('{"model_type": "qwen2"}')
    adapter, connector = tmp_path / "adapter", tmp_path / "connector"
    adapter.mkdir()
    connector.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(whole)}))
    (connector / "mm_projector.bin").write_bytes(b"w")
    fields = {"model_type": "videollama2", "_name_or_path": str(bare), "mm_vision_tower": str(tower)}
    (connector / "config.json").write_text(json.dumps(fields))

    def revisions():
        return [model_revision(str(path)) for path in (whole, adapter, connector)]

    before = revisions()
    assert model_revision(str(adapter), str(whole)) == before[1]  # named by it, or given
    for path, changed in ((whole, [0, 1]), (bare, [2]), (tower, [2])):
        with (path / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
        now = revisions()
        assert [index for index in range(3) if now[index] != before[index]] == changed
        before = now


@pytest.mark.slow
def test_other_subtitles_are_other_questions(evaluate, copied, tmp_path):
    pytest.importorskip("pyarrow")
    data = copied("videomme")
    found = benchmark("videomme").configure(subtitles="seen")
    evaluate(tmp_path / "out", "videomme", data, found=found, limit=3)
    evaluate(tmp_path / "plain", "videomme", data, limit=3)
    file = data / "subtitles" / f"{found.load(data)[0].group}.srt"
    file.write_text(file.read_text().replace("Blue", "Green"))
    with pytest.raises(ConfigError, match=r"another configuration \(texts: "):
        evaluate(tmp_path / "out", "videomme", data, found=found, limit=3)
    evaluate(tmp_path / "plain", "videomme", data, limit=3)  # asked without them


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


def test_items_tell_whether_the_questions_are_the_same():
    items = [item("a", "1.mp4"), item("b", "1.mp4")]
    assert items_digest(items) == items_digest(list(items))
    assert items_digest(items) != items_digest(items[::-1])
    assert items_digest(items) != items_digest([item("a", "1.mp4", 0.5), item("b", "1.mp4")])


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_batches_either(evaluate, tmp_path):
    sampled = AnswerOptions(max_new_tokens=8, temperature=2.0, seed=3)
    for name, batch in (("a", 1), ("b", 5)):
        evaluate(tmp_path / name, batch_size=batch, options=sampled, limit=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    evaluate(tmp_path / "c", options=AnswerOptions(max_new_tokens=8, temperature=2.0, seed=4), limit=8)
    texts = [[row["output"] for row in rows_of(tmp_path / name)] for name in ("a", "c")]
    assert texts[0] != texts[1]


def test_limit_and_offset(evaluate, world, tmp_path):
    evaluate(tmp_path / "out", limit=3, offset=2)
    ids = [each.id for each in benchmark("moving_shapes").load(world)]
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ids[2:5]
    with pytest.raises(DataError, match="none is left"):
        evaluate(tmp_path / "none", offset=10**6)


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
