"""lmms-eval asks the model: the answers and likelihoods of the package's own functions, by a task of this test.

Runs where lmms-eval is installed; docs/evaluate.md says how.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own (docs/evaluate.md)")

from tests.conftest import ROOT
from videollama2 import Engine, model_init
from videollama2.engines.lmms_eval import manifest

pytestmark = pytest.mark.lmms_eval

DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = str(DEMO / "moving_shapes.mp4"), str(DEMO / "shapes.png")
QUESTIONS = [
    {"media": [CLIP], "question": "Which colour does the square change to?"},
    {"media": [PICTURE], "question": "How many objects can be seen?"},
    {"media": [PICTURE, CLIP], "question": "How many objects can be seen?"},
]
TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.json}}}}
test_split: test
doc_to_visual: !function media.visuals
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
"""
GENERATE = """
task: shapes_generate
output_type: generate_until
generation_kwargs: {max_new_tokens: 16, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
task: shapes_choose
output_type: multiple_choice
doc_to_choice: [yellow, three, triangle]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
VISUALS = """
from PIL import Image

def visuals(doc):
    return [Image.open(path).convert("RGB") if path.endswith("png") else path for path in doc["media"]]
"""


def own_answers() -> list[str]:
    model, processor, _ = model_init("videollama2-tiny", device="cpu")
    answers = []
    with Engine(model, processor) as engine:
        for row in QUESTIONS:
            media = [{"type": "video" if path == CLIP else "image", "path": path} for path in row["media"]]
            content = [*media, {"type": "text", "text": row["question"]}]
            answers.append(engine.submit([{"role": "user", "content": content}], max_new_tokens=16).result().text)
    return answers


def test_the_entry_point_names_the_class() -> None:
    from lmms_eval.models import get_model

    assert get_model("videollama2").__module__ == manifest().simple_class_path.rpartition(".")[0]


@pytest.mark.slow
def test_a_local_task(tmp_path: Path) -> None:
    answers = own_answers()
    rows = [{**row, "answer": answer} for row, answer in zip(QUESTIONS, answers, strict=True)]
    (tmp_path / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "media.py").write_text(VISUALS)
    for name, own in (("generate", GENERATE), ("choose", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(folder=tmp_path) + own)
    command = [sys.executable, "-m", "lmms_eval", "--model", "videollama2", "--batch_size", "4", "--device", "cpu"]
    command += ["--model_args", "pretrained=videollama2-tiny,dtype=float32", "--include_path", str(tmp_path)]
    command += ["--tasks", "shapes_generate,shapes_choose", "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    found = json.loads(results.read_text())["results"]
    assert found["shapes_generate"]["exact_match,none"] == 1.0
    wanted = sum(answer in ("yellow", "three", "triangle") for answer in answers) / len(answers)
    assert found["shapes_choose"]["acc,none"] == pytest.approx(wanted, abs=0.34)
    (samples,) = (tmp_path / "out").rglob("*samples_shapes_generate.jsonl")
    given = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert [text[0] if isinstance(text, list) else text for text in given] == answers
