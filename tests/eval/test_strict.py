"""The strict reading: what is clearly named is read, and never a wrong letter."""

import json
import time

import pytest

from tests.eval.helpers.reference import cases_dir
from tests.eval.helpers.strict_answers import ACTIONS, ACTIONS_NAMED, ACTIONS_NOT_NAMED, NAMED, NOT_NAMED, OPTIONS
from videollama2.eval.items import Parsed
from videollama2.eval.reading.answers import strict_option
from videollama2.eval.reading.strict import after_thinking


def reference_cases():
    for file in ("answers.json", "answers_more.json"):
        content = json.loads((cases_dir() / file).read_text(encoding="utf-8"))
        for case in content["cases"]:
            yield pytest.param(content["options"], case["output"], case["meant"], id=repr(case["output"]))


@pytest.mark.parametrize(("options", "output", "meant"), list(reference_cases()))
def test_reference_cases(options, output, meant):
    assert strict_option(output, options) == Parsed(meant)


@pytest.mark.parametrize(
    ("options", "output", "index"),
    [*((OPTIONS, *named) for named in NAMED), *((ACTIONS, *named) for named in ACTIONS_NAMED)],
)
def test_what_is_named_is_read(options, output, index):
    assert strict_option(output, options) == Parsed(index)


@pytest.mark.parametrize(
    ("options", "output"),
    [*((OPTIONS, output) for output in NOT_NAMED), *((ACTIONS, output) for output in ACTIONS_NOT_NAMED)],
)
def test_what_is_denied_doubted_asked_joined_or_somebody_is_not(options, output):
    assert strict_option(output, options) == Parsed(None)


WEARER = ("picks up a cup", "washes the dishes", "opens the door", "sits", "walks")


@pytest.mark.parametrize(
    ("output", "index"),
    [
        ("C washes the dishes", 1),
        ("C, the cook, washes up.", None),
        ("C is right there", None),
        ("C.", 2),
        ("(C)", 2),
        ("The answer is C", 2),
        ("C. opens the door", 2),
        ("C picks up a cup and C sits", None),
        ("It is C who walks", 4),
    ],
)
def test_a_letter_that_is_somebodys_name(output, index):
    assert strict_option(output, WEARER, {"C"}) == Parsed(index)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>A</think>B", "B"),
        ("A</think>B", "B"),
        ("<think>A", ""),
        ("[THINK]A[/THINK]B", "B"),
        ("◁think▷A◁/think▷B", "B"),
        ("analysis A<|channel|>final<|message|>B", "B"),
        ("<think>A</think>B<think>C</think>D", "D"),
        ("B", "B"),
    ],
)
def test_after_thinking(text, rest):
    assert after_thinking(text) == rest


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["answer ", "option that is ", "A, ", "(", "\\boxed{", "<answer>", "it is the ", "A. no "]
)
def test_a_long_hostile_answer_is_read_in_time(unit):
    started = time.process_time()
    strict_option(unit * (100_000 // len(unit)), OPTIONS)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("output", "index"),
    [
        *(
            (text, None)
            for text in ("Option A: runs right", "Answer: A. runs right", "It's (D) sits down", "(A) runs right")
        ),
        *((text, None) for text in ("The answer is A: runs right", "I choose A, runs right", "Answer: B - sits down")),
        *(
            (text, 1)
            for text in ("The correct answer is B: runs right.", "Answer: B (runs right)", "Option B runs right")
        ),
        *((text, 1) for text in ("B is correct: sits down is not shown", "Option B. Stands up is wrong.")),
        *((text, 0) for text in ("The answer is A because he runs right", "Option A, since he runs right")),
        *((text, None) for text in ("choose a car", "select a", "I didn't choose c.", "A is not my answer")),
        *(("choose c", 2), ("pick b.", 1), ("B is my answer.", 1), ("D is our choice", 3)),
        *(("Answer: \u202dB\u202c", 1), ("An\u00adswer: B", 1), ("\ufeffB\u200b", 1)),
    ],
)
def test_a_letter_beside_the_words_of_another_option_is_none_wherever_it_stands(output, index):
    assert strict_option(output, ACTIONS) == Parsed(index)
