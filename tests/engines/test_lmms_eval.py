"""lmms-eval asks the model: the answers and likelihoods of the package's own functions, by a task of this test.

Runs where lmms-eval is installed: ``bash scripts/test_harnesses.sh lmms_eval``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own (scripts/test_harnesses.sh)")

from tests.conftest import ROOT, golden_audio_dir
from videollama2 import Engine, model_init
from videollama2.engines.lmms_eval import manifest

pytestmark = pytest.mark.lmms_eval

DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE, SOUNDING = (str(DEMO / name) for name in ("moving_shapes.mp4", "shapes.png", "sounding_shapes.mp4"))
SOUND = str(golden_audio_dir() / "media" / "speech_mono_16k.wav")
MODEL = "videollama2-tiny-av"
QUESTIONS = [
    {"media": [CLIP], "question": "Which colour does the square change to?"},
    {"media": [PICTURE], "question": "How many objects can be seen?"},
    {"media": [PICTURE, CLIP], "question": "How many objects can be seen?"},
    {"media": [SOUND], "question": "What made the noise?"},
    {"media": [CLIP, SOUND, PICTURE], "question": "What made the noise?"},
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
import wave
import numpy as np
from PIL import Image

def visual(path):
    if path.endswith("png"):
        return Image.open(path).convert("RGB")
    if path.endswith("mp4"):
        return path
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        return {"array": samples, "sampling_rate": file.getframerate()}

def visuals(doc):
    return [visual(path) for path in doc["media"]]

def messages(doc):
    parts = [{"type": "video", "url": path} for path in doc["media"]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]
"""


def own_answers(questions: list[dict[str, Any]], **of_videos: object) -> list[str]:
    model, processor, _ = model_init(MODEL, device="cpu", dtype="float32")
    answers = []
    with Engine(model, processor) as engine:
        for row in questions:
            kinds = {".mp4": "video", ".png": "image", ".wav": "audio"}
            media = [{"type": kinds[path[-4:]], "path": path} for path in row["media"]]
            media = [{**part, **of_videos} if part["type"] == "video" else part for part in media]
            content = [*media, {"type": "text", "text": row["question"]}]
            answers.append(engine.submit([{"role": "user", "content": content}], max_new_tokens=16).result().text)
    return answers


def test_the_entry_point_names_the_class() -> None:
    from lmms_eval.models import get_model

    assert get_model("videollama2").__module__ == manifest().simple_class_path.rpartition(".")[0]


def evaluate(folder: Path, rows: list[dict[str, Any]], task: str, *flags: str) -> list[str]:
    """Run lmms-eval's command with a task of these rows, which must score 1; returns the answers."""
    (folder / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "media.py").write_text(VISUALS)
    (folder / "generate.yaml").write_text(TASK.format(folder=folder) + GENERATE + task)
    command = [sys.executable, "-m", "lmms_eval", *flags, "--include_path", str(folder), "--tasks", "shapes_generate"]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Error during evaluation" not in told, told[-4000:]
    (results,) = (folder / "out").rglob("*results.json")
    found = json.loads(results.read_text())["results"]
    assert found["shapes_generate"]["exact_match,none"] == 1.0
    (samples,) = (folder / "out").rglob("*samples_shapes_generate.jsonl")
    given = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    return [text[0] if isinstance(text, list) else text for text in given]


@pytest.mark.slow
def test_a_local_task(tmp_path: Path) -> None:
    """Pictures, videos, sounds, and several of them, in one batch."""
    answers = own_answers(QUESTIONS)
    rows = [{**row, "answer": answer} for row, answer in zip(QUESTIONS, answers, strict=True)]
    flags = ["--model", "videollama2", "--batch_size", "4", "--device", "cpu"]
    assert evaluate(tmp_path, rows, "", *flags, "--model_args", f"pretrained={MODEL},dtype=float32") == answers


@pytest.mark.slow
def test_its_client_of_openai_against_the_api(tmp_path: Path) -> None:
    """Videos go to the server as addresses of files, with ``media_io_kwargs``: eight of eight are answered."""
    pytest.importorskip("fastapi")
    from tests.helpers.ports import free_port
    from tests.serve.helpers.processes import running

    asked = ("Which colour does the square change to?", "How many objects can be seen?", "What moves?", "What happens?")
    questions = [{"media": [path], "question": question} for question in asked for path in (CLIP, SOUNDING)]
    answers = own_answers(questions, num_frames=10)
    rows = [{**row, "answer": answer} for row, answer in zip(questions, answers, strict=True)]
    ports = {name: free_port() for name in ("api", "controller", "worker")}
    serve = [
        "videollama2",
        "serve",
        "--no-page",
        "--model-path",
        MODEL,
        "--dtype",
        "float32",
        "--media-root",
        str(DEMO),
    ]
    serve += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    log = tmp_path / "log"
    with running(serve, log, lambda: "Ctrl-C ends all." in log.read_text()):
        address = f"http://127.0.0.1:{ports['api']}/v1"
        model = (
            f"model_version={MODEL},base_url={address},api_key=none,pass_video_url=True,max_frames_num=10,timeout=300"
        )
        task = "doc_to_messages: !function media.messages\n"
        assert evaluate(tmp_path, rows, task, "--model", "openai", "--model_args", model) == answers


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
    asked = ({"do_sample": True}, {"do_sample": True, "temperature": 0}, {"do_sample": False, "temperature": 1}, {})
    asked += ({"temperature": 0, "top_p": 0, "num_beams": 1}, {"do_sample": True, "top_p": 0}, {"temperature": "0.5"})
    assert [model._request("Hi", [], options).options.temperature for options in asked] == [1, 0, 0, 0, 0, 0, 0.5]
    sampled = model._request("Hi", [], {"do_sample": True, "top_p": 0.9, "top_k": 0, "min_p": None}).options
    assert (sampled.top_p, sampled.top_k) == (0.9, model._request("Hi", [], {}).options.top_k)
    model.clean()
    assert is_greedy and not is_other_greedy and unlikely < likely < 0
