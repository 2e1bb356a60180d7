"""The shipped checkpoint: opens by name, answers the demo, beats chance on scenes it has not seen."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import videollama2
from tests.conftest import ROOT
from videollama2 import mm_infer_batch, model_init
from videollama2.data.moving_shapes import write_set

FOLDER = Path(videollama2.__file__).parent / "assets" / "videollama2-tiny"


@pytest.fixture(scope="module")
def tiny():
    return model_init("videollama2-tiny")


def test_it_is_small_and_carries_no_foreign_path():
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= 15 * 2**20
    assert not re.search(r"/(root|home|work|tmp)/", (FOLDER / "config.json").read_text())


def test_accuracy_on_unseen_scenes(tiny, tmp_path):
    """Sixty questions of a seed of its own; the table of a thousand, and what it has not learnt, is in its README."""
    model, processor, tokenizer = tiny
    write_set(tmp_path, videos=60, seed=987654, balanced_questions=60)
    rows = json.loads((tmp_path / "questions.json").read_text())
    requests = [([processor["video"](tmp_path / row["video"])], row["question"], "video") for row in rows]
    answers = mm_infer_batch(requests, model, tokenizer, max_new_tokens=16)
    right = [row["type"] for answer, row in zip(answers, rows, strict=True) if answer == row["answer"]]
    chance = sum(1 / len(row["candidates"]) for row in rows)
    assert len(right) > chance + 3, (right, chance)
    assert right.count("count") >= 5, right


def test_demo_command():
    command = [sys.executable, "-m", "videollama2", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads((FOLDER.parent / "demo" / "questions.json").read_text())
    assert {row["file"] for row in rows} == {"moving_shapes.mp4", "shapes.png"}
    for row in rows:
        assert row["question"] in done.stdout
    assert re.search(rf"\d+ of {len(rows)} answers are right", done.stdout)
    assert max(map(len, done.stdout.splitlines())) < 120


def test_other_names_with_the_same_prefix_are_not_built_in():
    from videollama2.errors import CheckpointNotFoundError

    with pytest.raises(CheckpointNotFoundError, match="videollama2-tiny-2"):
        model_init("videollama2-tiny-2")
