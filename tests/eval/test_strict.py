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


ACTIONS = ("walks left", "runs right", "sits down", "stands up")
ACTIONS_NAMED = [
    ("The correct answer is: (B) runs right.", 1),
    ("Based on the video, the answer is option B.", 1),
    ("Answer: (B) runs right\n\nExplanation: The person moves and option A is wrong.", 1),
    ("The person in the video runs right, so the answer is B.", 1),
    ("The man walks left at first, then runs right. So the answer is B.", 1),
    ("The best choice would be (B).", 1),
    ("It seems that the correct option is B.", 1),
    ("The correct answer might be B.", 1),
    ("The answer could be B", 1),
    ("Answer: **B** - runs right", 1),
    ("Final Answer\nB", 1),
    ("Option (B) is the correct answer.", 1),
    ("The option B is correct.", 1),
    ("My pick: B", 1),
    ("The answer should be B.", 1),
    ("Correct answer: B", 1),
    ("Correct: B", 1),
    ("b) runs right", 1),
    ("b. runs right", 1),
    ("b: runs right", 1),
    ("A\n\nThe man walks left", 0),
    ("(A)walks left", 0),
    ("A:walks left", 0),
    ("A walks left", 0),
    ("B runs right", 1),
    ("The answer is B. Option A is wrong since he moves.", 1),
    ("The answer is B. A is also possible", 1),
    ("Not sure, but B", 1),
    ("None of A, B, C; D", 3),
    ("A is incorrect, B is incorrect, C is correct", 2),
    ("It's not A or B, it's C", 2),
    ("The answer is B) runs right", 1),
    ("The answer is: \n\nB", 1),
    ("Answer:\n(B)", 1),
    ("答案选B", 1),
    ("选项B正确", 1),
    ("<answer>B. runs right</answer>", 1),
    ("<think><answer>A</answer></think>B", 1),
    ('{"answer": "B"}', 1),
    ("{'option': 'B'}", 1),
    ("\\(\\boxed{B}\\)", 1),
    ("\\boxed{\\textbf{(B)}}", 1),
    ("Answer: B<|endoftext|>", 1),
    ("B\u200b", 1),
    ("ASSISTANT: B", 1),
    ("I choose option (d).", 3),
    ("The answer is d.", 3),
    ("D, stands up", 3),
    ("stands up.", 3),
    ("He stands up.", 3),
    ("He does not sit down; he stands up.", 3),
    ("C", 2),
    ("c", 2),
    ("(c", 2),
    ("c)", 2),
    ("[c]", 2),
    ("C:", 2),
    ("Option C.", 2),
    ("It must be (C), he sits down", 2),
    ("The answer is definitely C!", 2),
    ("In my opinion, C.", 2),
    ("I would say C", 2),
    ("Probably C", 2),
    ("C, I think.", 2),
    ("C?", 2),
    ("The video shows that he sits down. Therefore, the correct answer is C. sits down", 2),
    ("Answer - C", 2),
    ("Answer -> C", 2),
    ("The letter is C", 2),
    ("The answer: c", 2),
    ("ANSWER:C", 2),
    ("A man in a blue shirt sits down and B is holding it", 2),
    ("He sits down. The answer is D.", 3),
    ("The answer is B because A, C and D are wrong", 1),
    ("Because it moves right, B.", 1),
    ("As he moves right, the answer is B.", 1),
    ("If I had to guess, B", 1),
    ("If I had to choose, I would choose B.", 1),
    ("I'd guess B.", 1),
    ("There is no doubt that the answer is B.", 1),
    ("Without a doubt, C.", 2),
    ("No doubt: B", 1),
]
ACTIONS_NOT_NAMED = [
    "The answer may be A or B.",
    "The answer might be A, but it could be B.",
    "C runs right",
    "Either B or C",
    "B or C",
    "B/C",
    "A & B",
    "选项B不正确",
    "A: B",
    "Q: which? A: B",
    "The person never walks left.",
    "No one sits down.",
    "Options: A, B, C, D",
    "The choices are A and B.",
    "C I think",
    "Answer => C",
    "A. walks left B. runs right C. sits down D. stands up",
    "The correct answer is not listed.",
    "There is no correct answer.",
    "I cannot determine the answer from A to D.",
    "Vitamin C",
    "Plan B",
    "My answer: B. My final answer: D.",
    "B. No wait, D.",
    "B -> D",
]


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
