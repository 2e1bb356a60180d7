"""The strict reading: what is clearly named is read, and never a wrong letter."""

import json
import time

import pytest

from tests.eval.reference import cases_dir
from videollama2.eval.answers import strict_option
from videollama2.eval.items import Parsed
from videollama2.eval.strict import after_thinking


def reference_cases():
    for file in ("answers.json", "answers_more.json"):
        content = json.loads((cases_dir() / file).read_text(encoding="utf-8"))
        for case in content["cases"]:
            yield pytest.param(content["options"], case["output"], case["meant"], id=repr(case["output"]))


@pytest.mark.parametrize(("options", "output", "meant"), list(reference_cases()))
def test_reference_cases(options, output, meant):
    assert strict_option(output, options) == Parsed(meant)


OPTIONS = ("A red car.", "A blue bus.", "Two dogs.", "Nothing happens.")
NAMED = [
    ("The answer is A? No, it's B.", 1),
    ("Not B but C", 2),
    ("It isn't A; it's C", 2),
    ("The wrong choice is A; the right choice is B", 1),
    ("A is wrong. B is right.", 1),
    ("A is possible but B is right", 1),
    ("A) no. B) yes.", 1),
    ("Since the car is not red, the answer is B.", 1),
    ("I do not know, but the answer is B", 1),
    ("There is no bus, so the answer is A", 0),
    ("B. A blue bus", 1),
    ("There is no red car, but two dogs", 2),
    ("Maybe B", 1),
    ("B?", 1),
    ("Answer: B.\n\nExplanation: Option A is wrong because...", 1),
    ("**Answer:** B", 1),
    ("### Answer\nB", 1),
    ("Answer\n\nB", 1),
    ("The correct answer is **(C) Two dogs.**", 2),
    ("The correct answer is:\n\n**C. Two dogs.**", 2),
    ("Final Answer: The final answer is $\\boxed{C}$", 2),
    ("\\boxed{\\text{C}}", 2),
    ("\\boxed{C. Two dogs}", 2),
    ("<answer> C </answer>", 2),
    ("<answer>(C) Two dogs</answer>", 2),
    ("<think>A</think><answer>B", 1),
    ("[ANSWER] C", 2),
    ("The answer is c", 2),
    ("the answer is a", 0),
    ("the answer is a blue bus", 1),
    ("The answer is A blue bus", 1),
    ("The answer is two dogs.", 2),
    ("The answer: D. Nothing happens.", 3),
    ("D. Nothing happens", 3),
    ("Nothing happens", 3),
    ("Nothing happens, so D.", 3),
    ("I pick (D).", 3),
    ("I'd go with B", 1),
    ("I'd say B.", 1),
    ("My answer would be C, since A and B are out", 2),
    ("Choice B", 1),
    ("Choose A, not C", 0),
    ("Between A and B, I choose B", 1),
    ("Both A and B are wrong, so C is correct", 2),
    ("B is the answer, not A", 1),
    ("La respuesta correcta es B", 1),
    ("La réponse est (B)", 1),
    ("Die Antwort ist B", 1),
    ("正确答案是 C", 2),
    ("답: C", 2),
    ("The man holds option papers. B", 1),
    ("a", 0),
    ("C (not A)", 2),
    ("B (blue bus)", 1),
    ("B: blue bus", 1),
    ("B\n\nThe video shows a red car.", 1),
    ("B\n\nBecause the bus is blue.", 1),
    ("Option B, because Option A does not fit.", 1),
    ("Answer = B", 1),
    ("Answer is option (B).", 1),
    ("Answer B is wrong, answer C is right", 2),
    ("The best answer is not A but C", 2),
    ("The answer is B, although A is tempting", 1),
    ("B, although it could be A", 1),
    ("I think it's A because the car is red", 0),
    ("I think A", 0),
    ("I think the answer is A", 0),
    ("I believe that (C) is correct.", 2),
    ("C is correct", 2),
    ("A is correct.", 0),
    ("the letter B", 1),
    ("Letter: B", 1),
    ("Response: B", 1),
    ("So, the answer is option D: Nothing happens", 3),
    ("Given the frames, it must be C.", 2),
    ("Therefore, B", 1),
    ("Therefore B is the answer.", 1),
    ("(A) is wrong, (B) is right", 1),
    ("The options are A, B, C and D. The answer is C.", 2),
    ("Out of A, B, C and D, C is right.", 2),
    ("The right option: (D) Nothing happens.", 3),
    ("A blue bus, not a red car", 1),
    ("Answer: Two dogs (C)", 2),
    ("two dogs (C)", 2),
    ("two dogs (A)", 0),
    ("Yes, B.", 1),
    ("No, B.", 1),
    ("Sure! The answer is B.", 1),
    ("Sure, here you go: B", 1),
    ("[B]", 1),
    ("B]", 1),
    ("«B»", 1),
    ("-B", 1),
    ("B-", 1),
    ("1. B", 1),
    ("Answer:B", 1),
    ("answer:(b)", 1),
    ("ans: b", 1),
    ("The answer isn't A, it's B", 1),
    ("D would be the best answer", 3),
]
NOT_NAMED = [
    "I don't think the answer is A.",
    "The answer is A. Wait, no, the answer is B.",
    "The answer is A. No, wait, C.",
    "Neither A nor B is correct.",
    "If A is correct then the bus is red.",
    "Wrong answer: A",
    "The incorrect option is A",
    "I would eliminate option A",
    "A is not shown, so B",
    "A seems right, but B is correct",
    "A: A red car\nB: A blue bus",
    "The vitamin C tablets",
    "He gets vitamin C.",
    "Person B walks",
    "B. A red car",
    "(B) A red car",
    "A.M. news",
    "D.C. is the capital",
    "C++ code",
    "The answer is E.",
    "The answer is E. two dogs",
    "It is not a blue bus",
    "The answer is (A) or (B)",
    "The answer is either A or B",
    "A and B, two dogs",
    "Answer: A, B",
    "Answer: A/B",
    "Answer: A and C",
    "The answer could be B",
    "I am unsure whether the answer is B.",
    "Could the answer be B?",
    "Is it B?",
    "<think>the answer is A",
    "Between A and B, B is better",
    "All of the above",
    "A, C",
    "A C",
    "AC",
    "A.C",
    "B is not correct; A is.",
    "Not A, not B, not C, so D",
    "答案不是B",
    "不选B",
    "Sorry, I can't answer",
    "I",
    "A dog",
    "A dog and B",
    "B\nA",
    "Options A and B are wrong.",
    "Option A or option B",
    "The answer B is wrong",
    "The answer is definitely not A",
    "Hmm, A. Actually B.",
    "A... no, B",
    "The answer is B however it might be C.",
    "Answer: The car is red.",
    "A is right-handed",
    "(A) is wrong",
    "It's a",
    "B or not",
    "Question: ... (A) x (B) y. Which? (B)",
    "The scene shows two dogs and a blue bus",
    "a blue bus rather than a red car",
    "The answer's B",
    "The correct answer's C.",
    "It cannot be determined; none of A, B, C, D",
    "The answer is not B",
    "A is the least likely answer",
]


@pytest.mark.parametrize(("output", "index"), NAMED)
def test_what_is_named_is_read(output, index):
    assert strict_option(output, OPTIONS) == Parsed(index)


@pytest.mark.parametrize("output", NOT_NAMED)
def test_what_is_denied_doubted_asked_joined_or_somebody_is_not(output):
    assert strict_option(output, OPTIONS) == Parsed(None)


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


@pytest.mark.parametrize(
    "unit", ["answer ", "option that is ", "A, ", "(", "\\boxed{", "<answer>", "it is the ", "A. no "]
)
def test_a_long_hostile_answer_is_read_in_time(unit):
    started = time.process_time()
    strict_option(unit * (100_000 // len(unit)), OPTIONS)
    assert time.process_time() - started < 10
