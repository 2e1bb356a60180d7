"""The benchmarks of asking and hearing: they run, compare equal work, and their rules can be broken."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.helpers.forked import run_python
from videollama2.model.encoders.beats import BeatsModel
from videollama2.shapes.pretrain_hearing import audio_config

SCRIPT = ROOT / "benchmarks" / "ask.py"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ask():
    return load("ask")


@pytest.fixture(scope="module")
def hear():
    return load("hear")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SCRIPT.parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_file_finds_what_it_imports(path):
    done = run_python([path, "--help"])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_prints_every_stage_with_its_share(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--only", "tiny", "--repeat", "1", "--new-tokens", "2", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    # What is counted must hold; what is timed depends on what else the machine does.
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert all("vision time of a still image" in line for line in broken), done.stdout
    assert done.returncode == bool(broken), done.stdout + done.stderr
    stages = ("import", "load", "preprocessing", "vision encoder", "connector", "prefill", "decoding, 2 more tokens")
    lines = done.stdout.splitlines()
    shares = {"command": 0, "answer": 0}
    for stage in stages:
        (line,) = [line for line in lines if line.startswith(f"  {stage}")]
        percent = [int(word[:-1]) for word in line[40:69].split() if word.endswith("%")]
        shares["command"] += percent[0]
        shares["answer"] += percent[1] if len(percent) > 1 else 0
    assert all(96 <= share <= 104 for share in shares.values()), shares  # each is rounded
    for row in ("time to first token", "tokens per second", "peak memory"):
        assert row in done.stdout
    assert "frames encoded: 8, for a second question about the clip 0" in done.stdout


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"image work": 0.3}, [False, True, True]),
        ({"image vision": 3.0}, [True, False, True]),
        ({"image vision": 3.0, "limit vision": 1.0}, [True, None, True]),
        ({"frames second": 8}, [True, True, False]),
    ],
)
def test_rules_that_can_be_broken(ask, change, verdicts):
    row = {
        "image work": 0.13,
        "image vision": 2.0,
        "vision": 10.0,
        "limit vision": 6.0,
        "frames": 8,
        "frames first": 8,
        "frames second": 0,
    }
    assert [is_met for is_met, _ in ask.rules(row | change)] == verdicts


@pytest.mark.slow
def test_the_parts_of_the_gpu_script_run_on_a_cpu_at_tiny_shapes(tmp_path, python_of_forks):
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out"), "--smoke"],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHON": str(python_of_forks)},
    )
    out = tmp_path / "out"
    logs = "".join(path.read_text()[-2000:] for path in out.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert [line.split(",")[0] for line in (out / "summary.txt").read_text().splitlines()] == [
        "golden: exit code 0",
        "engine: exit code 0",
        "train-lora: exit code 0",
        "feeding: exit code 0",
    ]
    rows = {line.split()[0]: line.split() for line in (out / "golden.txt").read_text().splitlines() if line}
    equal, count = int(rows["float32"][3]), int(rows["float32"][5])
    assert equal == count > 20 and float(rows["float32"][2]) < 1e-3 < float(rows["bfloat16"][2])
    steps = (out / "engine.txt").read_text().split("rows of a step")[1].splitlines()[1:6]
    assert [int(line.split()[0]) for line in steps] == [1, 2, 4, 8, 16]
    ways = [line.split() for line in (out / "train-lora.txt").read_text().splitlines()[-2:]]
    assert [(way[0], way[-1]) for way in ways] == [("padded", "sdpa"), ("packed", "sdpa_by_record")]
    # The same records in both, and none of a packed row is padding.
    assert float(ways[0][3].rstrip("%")) > 0 == float(ways[1][3].rstrip("%"))
    assert "reading is " in (out / "feeding.txt").read_text().splitlines()[-1]


def test_the_gpu_script_refuses_what_it_does_not_know(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--smok"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "unknown option --smok" in done.stderr


def test_the_published_formulation_of_the_encoder_gives_the_same_features(hear):
    torch.manual_seed(0)
    model = BeatsModel(audio_config()).eval()
    with torch.no_grad():
        # Biases and gates are zero or one in a new encoder, and would hide how they are used.
        for weight in (model.encoder.layers[0].self_attn.relative_attention_bias.weight, model.layer_norm.bias):
            weight.normal_()
        for layer in model.encoder.layers:
            layer.self_attn.grep_a.uniform_(0.5, 2)
        fbank_BTF = torch.randn(2, 396, 32) * 6 + 15
        expected_BLD = model(fbank_BTF).last_hidden_state
        torch.testing.assert_close(hear.published_encoder(model)(fbank_BTF), expected_BLD, atol=1e-5, rtol=1e-5)


MEASURED = {
    "published": 3.0,
    "ours": 2.0,
    "difference": 1e-6,
    "memory published": 100.0,
    "memory ours": 50.0,
    "decode": 0.1,
    "answer": 4.0,
    "first token": 3.0,
    "second token": 0.2,
}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, None),
        ({"difference": 0.1}, "largest difference"),
        ({"ours": 2.5}, "speed of the encoder 1.20"),
        ({"memory ours": 80.0}, "memory of a pass 0.80"),
        ({"decode": 0.3}, "7.5% of an answer"),
        ({"second token": 0.5}, "6 times sooner"),
    ],
)
def test_rules_of_hearing(hear, change, broken):
    verdicts = hear.rules({**MEASURED, **change})
    assert len(verdicts) == 5
    assert [text for is_met, text in verdicts if not is_met and broken not in text] == []
    assert sum(not is_met for is_met, _ in verdicts) == (broken is not None)


def test_a_door_without_text_has_a_row_that_says_so(capsys):
    """Random weights may end an answer before its first letter."""
    doors = load("doors").Doors(2, ["first.mp4", "second.mp4", "third.mp4", "fourth.mp4"])
    doors.measure("silent", lambda clip, question, is_turn: None)
    doors.measure("slow", lambda clip, question, is_turn: 1.0)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert "no answer had text" in rows[0]
    assert rows[1].split()[:2] == ["slow", "1.000"] and "1.0x sooner" in rows[1]
    assert not doors.is_met
