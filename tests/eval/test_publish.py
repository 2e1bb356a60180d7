"""Good results are never lost to bad ones: a judge that fails, videos that are gone, a disk that is full."""

import json
import resource
from dataclasses import replace

import pytest

from tests.eval.helpers.reference import benchmarks_dir
from tests.eval.helpers.samples import HEADER, ROWS, row, sample
from tests.eval.helpers.tiny_sets import MODEL
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.coverage import QuestionCount, Supplement
from videollama2.eval.report.document import compare_with_paper
from videollama2.eval.report.metrics import summarise
from videollama2.eval.report.publish import publish
from videollama2.eval.samples import Verdict


@pytest.mark.slow
def test_a_judge_that_fails_is_an_exit_code_and_costs_no_results(judge_server, tmp_path, capsys):
    judge = ("--judge-model", "m", "--judge-url", judge_server.url, "--rubric", "own", "--judge-retries", "0")
    asked = ["--data", str(benchmarks_dir() / "MSVD_Zero_Shot_QA"), "--output"]
    judge_server.script = {"": [("status", 503, {})]}
    assert main(["run", "msvd_qa", *asked, str(tmp_path), *MODEL, *judge]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "videollama2 eval: the judge gave no reply to 6 of 6 questions; the same command asks only these again"
    )
    assert json.loads((tmp_path / "results.json").read_text())["metrics"][0]["counts"]["judge_failed"] == 6

    judge_server.script = {}
    again = ["score", str(tmp_path), *judge, "--no-progress"]
    assert main(again) == 0
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    judge_server.script = {"": [("status", 503, {})]}
    colder = [*again, "--judge-temperature", "0"]
    assert main(colder) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == good
    error = capsys.readouterr().err.splitlines()[-1]
    assert "results.json is kept: it has 24 verdicts, and now there are 0" in error and "--force takes them" in error
    beside = json.loads((tmp_path / "results-not-taken" / "results.json").read_text())
    assert beside["metrics"][0]["counts"]["judge_failed"] == 6

    assert main([*colder, "--force"]) == 1
    assert json.loads((tmp_path / "results.json").read_text())["metrics"][0]["overall"]["n"] == 0
    assert main(again) == 0  # what was paid for is still there
    assert (tmp_path / "results.json").read_bytes() == good["results.json"]


def test_nothing_scored_is_an_exit_code(copied, tmp_path, capsys):
    data = copied("egoschema")
    for path in (data / "good_clips_git").iterdir():
        path.unlink()
    assert main(["run", "egoschema", "--data", str(data), "--output", str(tmp_path / "out"), *MODEL]) == 1
    error = capsys.readouterr().err
    assert "none of 4 questions is scored (4 with missing or unreadable media, 0 failed, 0 without" in error


def test_a_test_split_has_nothing_to_score_and_is_a_success(tmp_path):
    unknown = [row(number, None, answer=None) for number in range(3)]
    published = publish(tmp_path, HEADER, unknown, [summarise(unknown, "published")], print)
    assert published.problem == ""


def test_replies_that_cannot_be_read_are_counted_and_no_failure_of_the_judge(tmp_path):
    unread, read = Verdict(raw="?", error="unreadable reply: no score"), Verdict("yes", 4.0, "4")
    assert (unread.unanswered, read.unanswered) == (False, False)
    assert Verdict(error="HTTP 503 after 1 attempt: x").unanswered


def test_a_full_disk_leaves_what_was_there(tmp_path):
    metrics = [summarise(ROWS, "published")]
    publish(tmp_path, HEADER, ROWS, metrics, print)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, former[1]))
        with pytest.raises(DataError, match=r"samples\.jsonl: cannot be written \(File too large\)"):
            publish(tmp_path, replace(HEADER, revision="new"), ROWS, metrics, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


JUDGE = {
    "kind": "openai-compatible",
    "rubric": {"version": "published"},
    "temperature": 0.7,
    "top_p": 0.95,
    "max_tokens": 800,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"questions": QuestionCount(3, 4000)}, ["3 of 4,000 questions"]),
        ({"questions": QuestionCount(3, 40, 7, 4000)}, ["3 of 4,000 questions, after the first 7"]),
        ({"questions": QuestionCount(4000, 4000, 0, 4000)}, []),
        ({"frames": 16}, ["16 frames instead of 8"]),
        ({"frames": None}, ["an unknown number of frames instead of 8"]),
        ({"dtype": "float32"}, ["computed in float32 instead of float16"]),
        ({"quantization": "4bit"}, ["weights quantised to 4bit"]),
        ({"generation": {"temperature": 0.2, "max_new_tokens": 2048}}, ["temperature 0.2 instead of 0"]),
        ({"generation": {"max_new_tokens": 16}}, ["answers of at most 16 tokens instead of 2,048"]),
        ({"generation": None}, ["it is not known how answers were generated"]),
        ({"settings": {"split": "valid"}}, ["split valid"]),
        ({"settings": {"prompt": "options"}}, ["prompt options"]),
        ({"benchmark": "videomme", "settings": {"subtitles": "published"}}, []),
        ({"benchmark": "videomme", "settings": {"subtitles": "seen"}}, ["subtitles seen"]),
        (
            {
                "benchmark": "videomme",
                "settings": {"subtitles": "published"},
                "supplements": [Supplement("subtitles", 3, 900, usual=744 / 900)],
            },
            ["subtitles for 3 of 900 videos"],
        ),
        ({"supplements": [Supplement("subtitles", 744, 900, usual=744 / 900)]}, []),
        ({"benchmark": "msvd_qa", "judge": JUDGE}, ["the paper's judge is GPT-3.5"]),
        (
            {"benchmark": "msvd_qa", "judge": {**JUDGE, "temperature": 0.0, "top_p": None}},
            [
                "the paper's judge is GPT-3.5",
                "the judge's temperature is 0.0 instead of 0.7",
                "the judge's top_p is None instead of 0.95",
            ],
        ),
    ],
)
def test_every_difference_from_the_papers_measurement_is_named(changes, said):
    rows = [row(number, True) for number in range(3)]
    compared = compare_with_paper(replace(HEADER, **changes), summarise(rows, "published"))
    assert compared.differs == said


def test_samples_survive_being_written(tmp_path):
    one = sample(breakdowns={"domain": "Sports"}, judges={"detail": Verdict(None, 4.0, "4"), "context": None})
    assert type(one).from_json(json.loads(json.dumps(one.to_json()))) == one
