"""The published scripts train: on two processes, on two nodes, and the model of the built-in world from nothing."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.forked import run_ranks
from tests.helpers.ports import reserved_port
from tests.helpers.timing import processor_seconds
from videollama2 import train
from videollama2.checkpoints import load_pretrained_model
from videollama2.eval.__main__ import main as evaluate
from videollama2.shapes.sets import write_set

from .helpers.hearing import write_beats, write_records, write_seeing
from .helpers.runs import difference
from .helpers.scripts import call


@pytest.fixture
def port():
    with reserved_port() as number:
        yield number


@pytest.mark.slow
def test_tiny_model_from_nothing_beats_chance_in_minutes(tmp_path, port, python_of_forks):
    """Data, parts, both stages on two processes. So soon it tells where things are and what comes or goes; which of
    several has a name takes an hour."""
    variables = {"RUN": tmp_path, "QUICK": 1, "NPROC_PER_NODE": 2, "WORLD_SIZE": 1, "MASTER_PORT": port}
    variables["PYTHON"] = python_of_forks
    begin = processor_seconds()
    once = ("--media_cache", tmp_path / "frames")  # most clips are met several times
    alone = ("--save_strategy", "no", "--report_to", "none", "--sample_answers", "0")
    done = call("shapes/train.sh", *alone, *once, timeout_s=800, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    # Three minutes of two quiet cores; where others use them, seconds of a core do less.
    assert processor_seconds() - begin < 2 * 360
    assert done.stdout.count("1 nodes x 2 processes x 4 samples x 1 steps = 8 samples") == 2
    files = (tmp_path / stage / "mm_projector.bin" for stage in ("start", "pretrain"))
    before, after = (torch.load(file, weights_only=True) for file in files)
    assert 0 < difference(before, after) < 1e-2
    result = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in after.items())  # the second stage began with them

    held_out = tmp_path / "held-out"
    write_set(held_out, videos=200, images=0, seed=20260, objects=1)
    folder = held_out / "mvbench" / "json"
    (folder / "count.json").write_text("[]")  # there is always one object, so to count is to say 'one'
    questions = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    output = tmp_path / "accuracy"
    options = ("--data", held_out, "--output", output, "--device", "cpu", "--no-progress", "--shuffle-frames")
    asked = ["run", "moving_shapes", "--model-path", tmp_path / "checkpoint", *options]
    assert evaluate(list(map(str, asked))) == 0
    straight, _, shuffled, _ = json.loads((output / "results.json").read_text())["metrics"]
    candidates = [len(question["candidates"]) for rows in questions.values() for question in rows]
    assert straight["overall"]["n"] == len(candidates) > 500
    chance = sum(1 / count for count in candidates) / len(candidates)
    assert straight["overall"]["value"] > 100 * chance + 15
    for kind in ("position", "appearance"):
        answers = Counter(question["answer"] for question in questions[kind])
        assert straight["categories"][kind]["value"] > 100 * max(answers.values()) / answers.total() + 30
    # It is read from the order.
    assert shuffled["categories"]["appearance"]["value"] < straight["categories"]["appearance"]["value"] - 20


@pytest.mark.slow
def test_both_stages_train_on_two_processes(world, parts, captions, tmp_path, port, python_of_forks):
    variables = {
        "NPROC_PER_NODE": 2,
        "WORLD_SIZE": 1,
        "GLOBAL_BATCH_SIZE": 8,
        "LOCAL_BATCH_SIZE": 2,
        "DEEPSPEED": "none",
        "OUTP_DIR": tmp_path,
        "MASTER_PORT": port,
        "PYTHON": python_of_forks,
        "OMP_NUM_THREADS": 1,
    }
    overrides = [
        "--model_path",
        parts / "llm",
        "--vision_tower",
        parts / "clip",
        "--num_frames",
        8,
        "--tf32",
        "False",
        "--data_folder",
        world,
        "--dataloader_num_workers",
        0,
        "--max_steps",
        2,
        "--model_max_length",
        400,
        "--report_to",
        "none",
    ]
    folder = tmp_path / "videollama2qwen2"
    done = call("vllava/pretrain.sh", *overrides, "--data_path", captions, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "pretrain_vllava_settings" / "mm_projector.bin").is_file()
    done = call("vllava/finetune.sh", *overrides, "--data_path", world / "mixed.json", **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is deprecated" not in done.stderr
    assert "Grad strides" not in done.stderr
    _, model, processor, _ = load_pretrained_model(folder / "finetune_vllava_settings", device="cpu")
    assert processor.model_config.mm_inference_aspect_ratio == "pad"
    assert {path.name for path in folder.iterdir()} == {"pretrain_vllava_settings", "finetune_vllava_settings"}


@pytest.mark.slow
def test_two_nodes_are_one_run(printed, world, tmp_path, port, python_of_forks):
    """Two launchers that find each other learn what two processes of one group do, and one result is written."""
    overrides = [
        "--model_path",
        "videollama2-tiny",
        "--vision_tower",
        "",
        "--pretrain_mm_mlp_adapter",
        "",
        "--num_frames",
        8,
        "--data_path",
        world / "mixed.json",
        "--data_folder",
        world,
        "--max_steps",
        2,
        "--model_max_length",
        400,
        "--dataloader_num_workers",
        0,
        "--report_to",
        "none",
        "--bf16",
        "False",
    ]
    variables = {"GLOBAL_BATCH_SIZE": 8, "LOCAL_BATCH_SIZE": 2, "DEEPSPEED": "none", "OMP_NUM_THREADS": 1}

    def losses(name):
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [line["loss"] for line in history if "loss" in line]

    def node(rank):
        settings = {"WORLD_SIZE": 2, "NPROC_PER_NODE": 1, "RANK": rank, "MASTER_PORT": port, "PYTHON": python_of_forks}
        output = ["--output_dir", tmp_path / "apart"]
        return call("custom/finetune.sh", *overrides, *output, **variables, **settings)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(node, range(2)):
            assert done.returncode == 0, done.stderr[-3000:]
    together = ["--output_dir", tmp_path / "together"]
    words = printed("custom/finetune.sh", *overrides, *together, **variables, WORLD_SIZE=1, NPROC_PER_NODE=2)
    log = tmp_path / "log"
    assert run_ranks(words[words.index("videollama2.train") + 1 :], 2, log) == 0, log.read_text()[-3000:]
    assert len(losses("apart")) == 2
    assert losses("apart") == pytest.approx(losses("together"), rel=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("apart", "together")]
    assert difference(*weights) <= 1e-6


@pytest.mark.slow
def test_the_stages_with_sound_go_on_from_one_another(printed, parts, tmp_path):
    """The scripts' own flags, train in this process: one finds the files of the one before."""
    sets = {name: json.loads(path.read_text()) for name, path in write_records(tmp_path).items()}
    layout = {
        "audio/stage1_pretrain.json": sets["audio"],
        "audio/stage2_audio_text.json": [*sets["audio"], sets["other"][2]],
        "joint/stage3_video_audio.json": sets["av"],
        "joint/stage2_audio_subset_new.json": sets["audio"],
        "joint/stage2_video_subset.json": sets["other"],
    }
    for name, rows in layout.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    variables = {
        "DATA_DIR": tmp_path / "data",
        "OUTP_DIR": tmp_path / "out",
        "AUDIO_TOWER": write_beats(tmp_path / "beats.pt"),
        "GLOBAL_BATCH_SIZE": 4,
        "LOCAL_BATCH_SIZE": 4,
        "NPROC_PER_NODE": 1,
        "DEEPSPEED": "none",
    }
    small = {
        "model_path": write_seeing(tmp_path / "seeing", parts),
        "num_frames": 4,
        "dataloader_num_workers": 0,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
    }
    overrides = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    for script in ("pretrain_audio.sh", "finetune_audio.sh", "va_joint.sh"):
        words = printed(f"custom/{script}", **variables)
        assert train.main([*words[words.index("videollama2.train") + 1 :], *overrides]) == 0
    out = tmp_path / "out" / "videollama2qwen2_audio"
    assert {path.name for path in out.iterdir()} == {"pretrain_audio", "finetune_audio", "va_joint_audio"}
    _, model, processor, _ = load_pretrained_model(out / "va_joint_audio", device="cpu")
    assert model.config.hears
    assert processor.model_config.image_aspect_ratio == "pad"
