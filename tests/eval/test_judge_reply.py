"""How judges write, and what is no verdict."""

import json

import pytest

from tests.eval.helpers.reference import cases_dir
from videollama2.eval.judging.reply import ReplyError, chooses_option, parse_reply


@pytest.mark.parametrize(
    "text",
    [
        "{'pred': 'yes', 'score': 4}",
        '{"pred": "yes", "score": 4}',
        '{"pred": "Yes", "score": "4"}',
        "{''pred'': ''yes'', ''score'': 4}",
        "```python\n{'pred': 'yes',\n 'score': 4.0}\n```",
        "Sure! Here is my evaluation: {'pred': 'YES', 'score': 4/5}. The meaning matches.",
        "pred: yes, score: 4",
        "**Pred:** yes\n**Score:** 4",
        "pred = yes; score = 4.",
        "{'score': 4, 'pred': 'yes'",
        '{"pred": true, "score": 4}',
        "{'pred': 'yes', 'score': 4} {'pred': 'yes', 'score': 4}",
        "prediction: yes\nscore is 4",
    ],
)
def test_readable_whatever_the_dress(text):
    assert parse_reply(text, wants_pred=True) == ("yes", 4.0)


@pytest.mark.parametrize("case", json.loads((cases_dir() / "judge_replies.json").read_text()))
def test_what_a_judge_thinks_aloud_is_not_its_verdict(case):
    assert parse_reply(case["reply"], wants_pred=True) == (case["pred"], case["score"])


def test_a_thought_without_an_end_is_no_verdict():
    with pytest.raises(ReplyError, match="no score"):
        parse_reply("<think>{'pred': 'yes', 'score': 4}", wants_pred=True)


_SCORES = [("{''score': 4.8}", 4.8), ("3", 3), ("**2**", 2), ("4/5", 4), (" 0.\n", 0)]


@pytest.mark.parametrize(("text", "score"), _SCORES)
def test_score_alone(text, score):
    assert parse_reply(text, wants_pred=False) == (None, score)


def test_no_is_not_found_inside_another_word():
    assert parse_reply("{'pred': 'no', 'score': 1} since yesterday is not now", wants_pred=True) == ("no", 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no score"),
        ("I cannot evaluate this.", "no score"),
        ("{'pred': 'yes'}", "no score"),
        ("{'score': 4}", "no pred"),
        ("yes, 4", "no score"),
        ("{'pred': 'maybe', 'score': 4}", "neither yes nor no"),
        ("{'pred': 'yes/no', 'score': 4}", "neither yes nor no"),
        ("{'pred': 'yes', 'score': 4} or {'pred': 'no', 'score': 4}", "several values of pred: no, yes"),
        ("{'pred': 'yes', 'score': 4} or {'pred': 'yes', 'score': 2}", "several values of score"),
        ("{'pred': 'yes', 'score': 8}", "score 8 is outside 0..5"),
        ("{'pred': 'yes', 'score': -1}", "score -1 is outside"),
        ("{'pred': 'yes', 'score': 4/10}", "no score"),
        ("{'pred': 'yes', 'score': 4.5/10}", "no score"),
        ("{'pred': 'yes', 'score': 45}", "score 45 is outside"),
        ("{'pred': 'yes', 'score': INTEGER}", "no score"),
        ("{'pred': 'yes', 'score': nan}", "no score"),
        ("{'pred': 'yes', 'underscored': 4}", "no score"),
        ("__import__('os').abort()", "no score"),
    ],
)
def test_no_verdict_is_a_failure_that_says_why(text, message):
    with pytest.raises(ReplyError, match=message):
        parse_reply(text, wants_pred=True)


def test_a_long_hostile_reply_is_read_in_time():
    """Nested optional parts in a pattern could take minutes on this."""
    with pytest.raises(ReplyError):
        parse_reply("score" + "' *" * 50_000 + "pred" + " '`" * 50_000, wants_pred=True)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Reasoning: it does.\nAnswer: B. dunking", True),
        ("Answer: B. dunking\nReasoning: it does.", True),
        ("B. dunking", True),
        ("<think>\nAnswer: A. running</think>\nAnswer: B. dunking", True),
        ("Answer: B", False),  # the official rule wants the full stop
        ("Answer: B. dunking or C. passing", False),
        ("Answer: A. running", False),
        ("Answer: None of the choices are correct", False),
    ],
)
def test_the_option_that_a_judge_chose(text, right):
    assert chooses_option(text, "B. dunking a basketball") == right
