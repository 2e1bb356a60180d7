"""The strict reading, where it differs from the published one, and the corners of the published ones."""

import pytest

from videollama2.eval.items import Parsed
from videollama2.eval.reading.answers import (
    published_egoschema,
    published_mvbench,
    published_perception_test,
    published_videomme,
    strict_option,
)

OPTIONS = ("walks left", "runs right", "sits down", "stands up", "jumps")


@pytest.mark.parametrize(
    ("output", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(b)", 1),
        ("**C**", 2),
        ("\nA\n", 0),
        ("E.", 4),
        ("(E) jumps", 4),
        ("B. runs right", 1),
        ("The best answer is: A", 0),
        ("answer is (C)", 2),
        ("Answer: B", 1),
        ("Option C", 2),
        ("The answer is D.", 3),
        ("It is C", 2),
        ("Definitely B, because", 1),
        ("runs right", 1),
        ("The person runs right.", 1),
        ("I think the person walks left", 0),
        ("The answer is D, not A.", 3),
        ("[B]", 1),
        ("，B", 1),
        ("The man is a Doctor. (A)", 0),
        # A published reading finds a letter in these.
        ("Based on the video", None),
        ("Both A and B", None),
        ("A cat is here", None),
        ("Answer", None),
        ("", None),
        ("none of these", None),
        ("F", None),
        ("walks left or runs right", None),
        ("Because of Dan", None),
        ("a red ball", None),
        ("(A) or (B)", None),
        ("I'd say so", None),
    ],
)
def test_strict_reading(output, index):
    assert strict_option(output, OPTIONS) == Parsed(index)


def test_a_letter_that_is_no_option_is_not_read():
    assert strict_option("(E) jumps", OPTIONS[:3]) == Parsed(None)
    assert strict_option("E", OPTIONS[:3]) == Parsed(None)


def test_the_longer_option_is_what_was_said():
    assert strict_option("It turns right.", ("right", "turns right", "left")) == Parsed(1)
    assert strict_option("copyright", ("right", "left")) == Parsed(None)


def test_the_camera_wearer_is_no_option():
    assert strict_option("C, the cook, washes up.", OPTIONS, {"C"}) == Parsed(None)
    assert strict_option("C", OPTIONS, {"C"}) == strict_option("(C)", OPTIONS, {"C"}) == Parsed(2)
    assert published_egoschema("C walks to the door") == Parsed(2)


def test_a_published_guess_is_told_from_a_published_reading():
    for read in (published_mvbench, published_egoschema, published_perception_test):
        assert read("nothing of it", OPTIONS[:3]) == Parsed(2, guessed=True)
        assert read("It is C", OPTIONS[:3]) == Parsed(2, guessed=False)
    # A comma that stays on makes the letter unknown.
    assert published_mvbench("B, because", OPTIONS) == Parsed(2, guessed=True)


def test_published_perception_test_reads_a_whole_option():
    options = ("I don't know", "moving", "static or shaking")
    assert published_perception_test("Moving", options) == Parsed(1)
    assert published_perception_test("it is moving", options) == Parsed(2, guessed=True)
    assert published_perception_test("((B))", options) == Parsed(1)
    assert published_perception_test("Because", options) == Parsed(1)


def test_published_videomme_loses_the_last_character_of_an_option():
    assert published_videomme("twelve", ["A. 1", "B. 2.", "C. 12.", "D. 9."]) == Parsed(0)  # "" is in every answer
    assert published_videomme("there are two", ["A. 1.", "B. 2.", "C. 12.", "D. 9."]) == Parsed(1)
    assert published_videomme("nothing", ["A. 1.", "no letter", "C. 12.", "D. 9."]) == Parsed(2, guessed=True)
