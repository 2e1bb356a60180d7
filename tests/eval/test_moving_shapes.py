"""The built-in world as a benchmark: asked in two ways, and with shuffled frames to see whether time is used."""

import json
from pathlib import Path

import pytest

from tests.eval.helpers.reference import unpadded
from tests.eval.helpers.samples import sample
from videollama2 import mm_infer, model_init
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.benchmarks.moving_shapes import STATIC, TEMPORAL
from videollama2.eval.controls import shuffled_order
from videollama2.eval.items import Item
from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation
from videollama2.eval.running.runner import AnswerOptions
from videollama2.eval.samples import Reading
from videollama2.shapes.questions import STATIC_TYPES, TEMPORAL_TYPES

pytestmark = pytest.mark.usefixtures("without_charts")


def test_the_built_in_world_is_asked_in_two_ways(world):
    plain, lettered = benchmark("moving_shapes"), benchmark("moving_shapes").configure(prompt="options")
    first, second = plain.load(world)[0], lettered.load(world)[0]
    assert first.instruction == first.question == second.question
    assert second.instruction.startswith(f"Question: {first.question}\nOptions:\n(A) ")
    right = first.options[first.answer]
    for protocol in ("published", "strict"):
        assert plain.parse(first, f" {right.upper()}. ", protocol).value == first.answer
        assert plain.parse(first, f"It is {right}", protocol).value is None
        assert lettered.parse(second, "(B)", protocol).value == 1
    assert (world / first.media).exists()


def test_types_are_those_of_the_world():
    assert (STATIC, TEMPORAL) == (STATIC_TYPES, TEMPORAL_TYPES)


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_an_order_is_a_function_of_its_seed_and_no_identity(frames):
    order = shuffled_order(frames, "a.mp4")
    assert sorted(order) == list(range(frames))
    assert order == shuffled_order(frames, "a.mp4")
    assert frames == 1 or order != list(range(frames))


@pytest.fixture(scope="module")
def shuffled(world, tmp_path_factory):
    """An evaluation with shuffled frames: its samples by id, its report, what it said."""
    folder, said = tmp_path_factory.mktemp("shuffled"), []
    found = benchmark("moving_shapes").configure(shuffle_frames=True)
    choice = ModelChoice("videollama2-tiny", options={"device": "cpu"})
    run_evaluation(
        EvaluationPlan(found, world, folder, choice, AnswerOptions(max_new_tokens=16), progress=False), said.append
    )
    samples = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    report = json.loads((folder / "results.json").read_text())
    return {each["id"]: each for each in samples}, report, "\n".join(said)


def test_every_question_is_asked_with_and_without_shuffled_frames(shuffled, world):
    samples, report, said = shuffled
    straight = benchmark("moving_shapes").load(world)
    assert set(samples) == {each.id + end for each in straight for end in ("", "-shuffled")}
    names = [(metric["name"], metric["protocol"], metric["counts"]["total"]) for metric in report["metrics"]]
    asked = len(straight)
    assert names == [
        ("accuracy", "published", asked),
        ("accuracy", "strict", asked),
        ("accuracy, frames shuffled", "published", asked),
        ("accuracy, frames shuffled", "strict", asked),
    ]
    assert report["shuffle_frames"] is True
    assert "| type | questions | accuracy | chance | shuffled | drop |" in unpadded(said)


def test_answers_are_those_to_the_shuffled_frames(shuffled, world):
    samples, *_ = shuffled
    model, processor, tokenizer = model_init("videollama2-tiny", device="cpu")
    for each in benchmark("moving_shapes").load(world)[::5]:
        pixels_TCHW = processor["video"](world / each.media)
        order = shuffled_order(len(pixels_TCHW), Path(each.media).name)
        text = mm_infer(pixels_TCHW[order], each.instruction, model, tokenizer, max_new_tokens=16)
        assert samples[each.id + "-shuffled"]["output"] == text


def test_the_table_by_hand():
    found = benchmark("moving_shapes").configure(shuffle_frames=True)
    items, samples = [], []
    for number, (kind, right, mixed) in enumerate(
        [("count", True, True), ("count", False, False), ("speed", True, True), ("speed", True, False)]
    ):
        for end, correct in (("", right), ("-shuffled", mixed)):
            options = ("yes", "no") if kind == "speed" else ("a", "b", "c", "d")
            items.append(Item(f"{number}{end}", "a.mp4", "?", "?", options=options))
            reading = Reading(0, False, correct)
            samples.append(sample(id=f"{number}{end}", category=kind, reading=reading))
    rows = unpadded(found.own_table(items, samples, "strict")).splitlines()
    assert rows[-5:] == [
        "| count | 2 | 50.0 | 25.0 | 50.0 | 0.0 |",
        "| speed | 2 | 100.0 | 50.0 | 50.0 | 50.0 |",
        "| static | 2 | 50.0 | 25.0 | 50.0 | 0.0 |",
        "| temporal | 2 | 100.0 | 50.0 | 50.0 | 50.0 |",
        "| overall | 4 | 75.0 | 37.5 | 50.0 | 25.0 |",
    ]
    assert benchmark("moving_shapes").own_table(items, samples, "strict") == ""
