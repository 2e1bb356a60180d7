"""What is judged of benchmarks with sound, against the published scorer: requests, replies and scores."""

import json

import pytest

from tests.eval.helpers.reference import AUDIO_SETS, expected_of_sounds
from videollama2.eval.__main__ import main
from videollama2.eval.items import PUBLISHED, STRICT
from videollama2.eval.judging.aspects import JudgedAspect
from videollama2.eval.judging.reply import ReplyError, parse_reply
from videollama2.eval.judging.rubrics import rubric
from videollama2.eval.samples import Sample, Verdict

pytestmark = pytest.mark.usefixtures("without_charts")

JUDGED = expected_of_sounds("judge.json")
MENDED = {"```python\n{'binary_pred': 'yes', 'score': 2}\n```", "{'binary_pred': true, 'score': 2}"}
"""Replies over which the published scorer stops, and which can be read."""


@pytest.mark.parametrize("case", [case for case in JUDGED if case.get("messages")], ids=lambda case: case["benchmark"])
def test_the_judge_is_asked_as_published(case):
    name = {"AVSD": "audio_video_qa", "AVSSD": "audio_video_qa"}.get(case["benchmark"], case["benchmark"])
    asked, reference = case["input"], case["input"]["answer"]
    reference = reference[0] if isinstance(reference, list) else reference
    sample = Sample("0", "all", "0", asked["question"], reference, asked["pred"])
    assert rubric(name).messages(sample) == case["messages"]


@pytest.mark.parametrize("case", [case for case in JUDGED if "reply" in case], ids=lambda case: case["reply"])
def test_single_verdicts_are_read_as_published(case):
    result = case.get("result", {})
    if case["reply"] not in MENDED and not {"binary_pred", "score"} <= result.keys():
        with pytest.raises(ReplyError):
            parse_reply(case["reply"], True)
        return
    grade = parse_reply(case["reply"], True)
    verdict, aspect = Verdict(grade.pred, grade.score, case["reply"]), JudgedAspect("score", True, [], [], True)
    if case["reply"] in MENDED:
        assert (grade.pred, grade.score) == ("yes", 2)
        return
    assert aspect.is_yes(verdict, PUBLISHED) == (result["binary_pred"] == "yes")
    assert aspect.is_yes(verdict, STRICT) == (result["binary_pred"].lower() == "yes")
    assert int(grade.score) == int(float(result["score"]))


def judged(server, path, name, output, *more):
    """Metrics by name and protocol."""
    options = ("--judge-model", "grader", "--judge-url", server.url, "--judge-retries", "0", "--no-progress")
    code = main(["score", str(path), "--benchmark", name, "--output", str(output), *options, *more])
    metrics = json.loads((output / "results.json").read_text())["metrics"]
    return code, {(metric["name"], metric["protocol"]): metric for metric in metrics}


@pytest.mark.parametrize("case", [case for case in JUDGED if "whole_file" in case], ids=lambda case: case["benchmark"])
def test_judged_files_have_the_published_scores(case, judge_server, tmp_path):
    path = AUDIO_SETS / "expected" / case["whole_file"]
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    for answer, reply in zip(answers, case["replies_in_order"], strict=False):
        judge_server.script[f"Predicted Answer: {answer['pred']}\n"] = [reply]
    lines = path.read_text().splitlines()[: len(case["replies_in_order"])]
    (tmp_path / "merge.json").write_text("\n".join(lines) + "\n")
    code, metrics = judged(judge_server, tmp_path / "merge.json", case["benchmark"], tmp_path / "out")
    printed = dict(line.split(" for correctness: ") for line in case["printed"])
    assert code == 0
    # The published scorer sums a score without a yes or no; here that is no verdict, and counts as wrong in the bound.
    lone = [int(reply[len("{'score': ")]) for reply in case["replies_in_order"] if "binary_pred" not in reply]
    assert metrics["score", PUBLISHED]["counts"]["judge_failed"] == len(lone)
    average = float(printed["Average score"]) - sum(lone) / len(lines)
    assert metrics["score", PUBLISHED]["overall"]["lower_bound"] == pytest.approx(average, abs=1e-5)
    accuracy = 100 * float(printed["Accuracy"])
    assert metrics["accuracy", PUBLISHED]["overall"]["lower_bound"] == pytest.approx(accuracy, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in JUDGED if "replies" in case], ids=lambda case: str(case["replies"]))
def test_captions_of_sounds_are_compared_with_one_reference_at_a_time(case, judge_server, tmp_path):
    aspect = case["benchmark"].removeprefix("clotho_")
    for reference, reply in zip(case["input"]["answer"], case["replies"], strict=True):
        judge_server.script[f"Correct Answer: {reference}\n"] = [reply]
    (tmp_path / "merge.json").write_text(json.dumps(case["input"]) + "\n")
    _, metrics = judged(judge_server, tmp_path / "merge.json", "clotho", tmp_path / "out")
    if case["published_error"]:  # one comparison has no verdict, so that there is no mean of five
        assert metrics[aspect, STRICT]["counts"]["judge_failed"] == 1
        return
    assert metrics[aspect, STRICT]["overall"]["value"] == pytest.approx(case["result"]["score"])
    assert metrics[aspect, PUBLISHED]["overall"]["value"] == int(case["result"]["score"])
    (system, user) = judge_server.seen[0][3]["messages"]
    assert len(judge_server.seen) == 10 and system["role"] == "system" and user["content"].count("Correct Answer") == 1
