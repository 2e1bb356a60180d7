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
    (tmp_path / "generate.yaml").write_text(TASK.format(folder=tmp_path) + GENERATE)
    command = [sys.executable, "-m", "lmms_eval", "--model", "videollama2", "--batch_size", "4", "--device", "cpu"]
    command += ["--model_args", "pretrained=videollama2-tiny,dtype=float32", "--include_path", str(tmp_path)]
    command += ["--tasks", "shapes_generate", "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Error during evaluation" not in told, told[-4000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    found = json.loads(results.read_text())["results"]
    assert found["shapes_generate"]["exact_match,none"] == 1.0
    (samples,) = (tmp_path / "out").rglob("*samples_shapes_generate.jsonl")
    given = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert [text[0] if isinstance(text, list) else text for text in given] == answers


def test_likelihoods() -> None:
    """The model's own answer is what greedy choice gives, and likelier than another."""
    from lmms_eval.api.instance import Instance

    from videollama2.engines.lmms_eval.model import VideoLlama2

    model = VideoLlama2("videollama2-tiny", device="cpu", dtype="float32")
    model.task_dict = {"shapes": {"test": QUESTIONS}}

    def instance(target: str) -> Instance:
        arguments = (QUESTIONS[0]["question"], target, lambda doc: doc["media"], 0, "shapes", "test")
        metadata = {"task": "shapes", "doc_id": 0, "repeats": 1, "split": "test"}
        return Instance(request_type="loglikelihood", arguments=arguments, idx=0, metadata=metadata)

    (likely, is_greedy), (unlikely, is_other_greedy) = model.loglikelihood([instance("yellow"), instance("three")])
    model.clean()
    assert is_greedy and not is_other_greedy and unlikely < likely < 0
