"""The judge that compares texts, and what is missing without the client of the other."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.eval.helpers.samples import ask
from videollama2.eval.judging.judge import LocalJudge, normalise
from videollama2.eval.judging.rubrics import rubric
from videollama2.eval.samples import Verdict

QA = rubric("qa", "own")


@pytest.mark.parametrize(
    ("answer", "output", "how"),
    [
        ("red", "red", "exact match"),
        ("red", "A Red.", "normalised match"),
        ("2", "two", "normalised match"),
        ("red", "dark red", "no match"),
        ("red", "", "no match"),
        (["a cat", "one dog"], "The dog, 1", "no match"),
        (["a cat", "one dog"], "1 dog", "normalised match"),
    ],
)
def test_local_judge_says_what_it_does(answer, output, how):
    (after,) = LocalJudge().verdicts([ask(1, output, answer=answer)], QA)
    right = how != "no match"
    assert after == Verdict("yes" if right else "no", 5.0 * right, how)
    assert LocalJudge().describe() == {"kind": "local", "model": "exact or normalised match"}


def test_local_judge_of_pairs_and_failures():
    pairs = rubric("videochatgpt_consistency", "own")
    both = ask(1, ["red", "Red!"], question=["a?", "b?"])
    samples = [both, replace(both, output=["red", "blue"]), replace(both, output=None, error="failed: x")]
    judged = LocalJudge().verdicts(samples, pairs)
    assert [each and each.score for each in judged] == [5.0, 0.0, None]
    assert judged[0].pred is None
    assert LocalJudge().dry_run(samples, pairs)["calls"] == 0


def test_normalise():
    assert normalise("  The  Ten\tＲＥＤ cats!? ") == "10 red cats"


def test_missing_package_says_what_to_install(tmp_path):
    """In a process where importing openai fails; the local judge still works there."""
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from videollama2.eval.judging.judge import LocalJudge, OpenAIJudge\n"
        "from videollama2.errors import MissingDependencyError\n"
        "LocalJudge()\n"
        "try: OpenAIJudge('m')\n"
        "except MissingDependencyError as error: print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'videollama2[eval]'" in done.stdout
