"""A file of one's own questions as a benchmark: answered, scored again, judged, and refused by the line."""

import json
import shutil

import pytest

from tests.conftest import ROOT
from tests.eval.helpers.tiny_sets import MODEL, place
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark

pytestmark = pytest.mark.usefixtures("without_charts")


def questions(folder, *rows):
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_questions_is_answered_and_scored_again(tmp_path, capsys):
    place(tmp_path, "clips/a.mp4", "b.mp4")
    shutil.copy(ROOT / "videollama2" / "assets" / "demo" / "shapes.png", tmp_path / "c.png")
    each = {"question": "What?", "options": ["it rains", "it snows"]}
    path = questions(
        tmp_path,
        {"id": "q1", "video": "clips/a.mp4", "start": 0.5, "answer": "B", **each},
        {"id": 7, "video": ["clips/a.mp4", "b.mp4"], "answer": 0, "category": "x", **each},
        {"image": "c.png", "answer": "it snows", "prompt": "Say A or B.", **each},
    )
    items = benchmark(str(path)).load(tmp_path)
    assert [(item.id, item.answer, item.category) for item in items] == [
        ("q1", 1, "all"),
        ("7", 0, "x"),
        ("2", 1, "all"),
    ]
    assert items[0].instruction.startswith("Question: What?\nOptions:\n(A) it rains\n")
    assert items[2].instruction == "Say A or B."
    out = tmp_path / "out"
    assert main(["run", str(path), "--output", str(out), *MODEL]) == 0
    report = json.loads((out / "results.json").read_text())
    assert report["benchmark"] == "mine.jsonl" and report["metrics"][0]["counts"]["answered"] == 3
    before = (out / "results.json").read_bytes()
    assert main(["score", str(out)]) == 0
    assert (out / "results.json").read_bytes() == before


def test_open_questions_of_a_file_are_judged(tmp_path):
    place(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "question": "What colour?", "answer": ["red", "a red one"]}]
    path = questions(tmp_path, *rows, {"video": "a.mp4", "question": "How many?", "answer": 2})
    out = tmp_path / "out"
    assert main(["run", str(path), "--output", str(out), *MODEL, "--judge-model", "local"]) == 0
    names = {metric["name"] for metric in json.loads((out / "results.json").read_text())["metrics"]}
    assert names == {"accuracy", "score"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "field 'video': is missing, as are 'image' and 'audio'"),
        ({"video": "a.mp4"}, "field 'question': is missing"),
        ({"video": "../a.mp4", "question": "?"}, "inside the data folder"),
        (
            {"video": "a.mp4", "question": "?", "options": ["a", "b"], "answer": "C"},
            "expected a letter, a number from 0",
        ),
        ({"video": "a.mp4", "question": "?", "options": ["a", "b"], "answer": 2}, "expected a letter, a number from 0"),
        ({"image": "a.png", "question": "?", "start": 1}, "an image has no time"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=f"mine.jsonl: index 0.*{message}"):
        benchmark(str(questions(tmp_path, row)))


def test_a_file_holds_one_kind_of_questions(tmp_path):
    rows = [{"video": "a.mp4", "question": "?"}, {"video": "a.mp4", "question": "?", "options": ["a", "b"]}]
    with pytest.raises(DataError, match="with options and without"):
        benchmark(str(questions(tmp_path, *rows)))
    with pytest.raises(DataError, match="none.jsonl: is missing"):
        benchmark(str(tmp_path / "none.jsonl"))
