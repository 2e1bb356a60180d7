"""The published scripts: their numbers, what they refuse, and that they train on the built-in world."""

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.forked import run_ranks
from tests.timing import processor_seconds
from videollama2 import train
from videollama2.checkpoints import load_pretrained_model
from videollama2.eval.__main__ import main as evaluate
from videollama2.shapes.sets import write_set

from .conftest import difference, environment
from .hearing import write_beats, write_records, write_seeing

SCRIPTS = {
    "vllava/pretrain.sh": {"learning_rate": 1e-3, "batch": 256, "local": 8, "zero": None, "lora": False, "bits": 16},
    "vllava/finetune.sh": {"learning_rate": 2e-5, "batch": 128, "local": 4, "zero": 3, "lora": False, "bits": 16},
    "custom/finetune.sh": {"learning_rate": 2e-5, "batch": 128, "local": 4, "zero": 3, "lora": False, "bits": 16},
    "custom/finetune_lora.sh": {"learning_rate": 2e-5, "batch": 128, "local": 4, "zero": 3, "lora": True, "bits": 16},
    "custom/finetune_qlora.sh": {"learning_rate": 2e-5, "batch": 128, "local": 4, "zero": 2, "lora": True, "bits": 4},
}

HEARING_SCRIPTS = {
    "pretrain_audio.sh": {"rate": 1e-3, "batch": 1024, "local": 32, "epochs": 1, "save": 1000},
    "finetune_audio.sh": {"rate": 2e-5, "batch": 128, "local": 4, "epochs": 2, "save": 2000},
    "va_joint.sh": {"rate": 2e-5, "batch": 128, "local": 4, "epochs": 2, "save": 2000},
}


def call(script, *argv, **variables):
    """Run a script; its own variables are not inherited from whoever runs the tests.

    ``PYTHON`` is the interpreter of the script, and of the processes of a launcher that it starts.
    """
    names = ("WORLD_SIZE", "NPROC_PER_NODE", "RANK", "MASTER_ADDR", "MASTER_PORT", "DEEPSPEED", "RUN_NAME")
    clean = {name: value for name, value in environment().items() if name not in names}
    given = {name: str(value) for name, value in {"PYTHON": sys.executable, **variables}.items()}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *map(str, argv)],
        env={**clean, "PYTHON_EXEC": given["PYTHON"], **given},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture
def printed(tmp_path):
    """``printed(script, ...)``: the command that the script would run, as words."""
    stand_in = tmp_path / "print-arguments"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    def run(script, *argv, **variables):
        done = call(script, *argv, **{"PYTHON": stand_in, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[1:]

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_numbers(printed, script):
    expected = SCRIPTS[script]
    words = printed(script)
    launcher, flags = words[: words.index("videollama2.train")], words[words.index("videollama2.train") + 1 :]
    assert launcher[launcher.index("--nproc_per_node") + 1] == "8"
    if expected["zero"] is None:
        assert "--deepspeed" not in flags
    else:
        place = flags.index("--deepspeed")
        assert flags[place + 1] == f"scripts/zero{expected['zero']}.json"
        del flags[place : place + 2]
    # The rest is read by train.py itself; two flags need a GPU to be accepted.
    model, data, training = train.parse_arguments([*flags, "--tf32", "False", "--bf16", "False"])
    assert training.learning_rate == expected["learning_rate"]
    local, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert (local, local * accumulation * 8) == (expected["local"], expected["batch"])
    assert (training.lora_enable, training.bits) == (expected["lora"], expected["bits"])
    if expected["lora"]:
        assert (training.lora_r, training.lora_alpha, training.mm_projector_lr) == (128, 256, 2e-5)
    assert (training.model_max_length, training.num_train_epochs, training.lr_scheduler_type) == (2048, 1, "cosine")
    assert (training.weight_decay, training.gradient_checkpointing, training.save_steps) == (0, True, 500)
    assert training.warmup_steps == 0.03
    assert training.group_by_modality_length
    assert (model.mm_projector_type, model.mm_vision_select_layer, data.num_frames) == ("stc_connector_v35", -2, 16)
    assert model.tune_mm_mlp_adapter == (script == "vllava/pretrain.sh")
    assert data.image_aspect_ratio == (None if script == "vllava/pretrain.sh" else "pad")


@pytest.mark.parametrize("script", HEARING_SCRIPTS)
def test_published_numbers_of_the_stages_with_sound(printed, script):
    expected = HEARING_SCRIPTS[script]
    words = printed(f"custom/{script}")
    flags = words[words.index("videollama2.train") + 1 :]
    assert flags[:2] == ["--deepspeed", "scripts/zero2.json"]
    model, data, training = train.parse_arguments([*flags[2:], "--tf32", "False", "--bf16", "False"])
    together = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert (training.learning_rate, together) == (expected["rate"], expected["batch"])
    assert (training.per_device_train_batch_size, training.save_steps) == (expected["local"], expected["save"])
    assert (training.num_train_epochs, training.lr_scheduler_type) == (expected["epochs"], "cosine")
    assert (training.model_max_length, training.warmup_steps, training.weight_decay) == (2048, 0.03, 0)
    assert (model.mm_projector_a_type, model.tune_mm_mlp_adapter_a) == ("mlp2x_gelu", True)
    assert (model.tune_audio_tower, model.tune_adapter_llm) == (script != "pretrain_audio.sh", script == "va_joint.sh")
    assert (model.pretrain_mm_mlp_adapter_a is None) == (script == "pretrain_audio.sh")
    if script == "va_joint.sh":
        assert (data.num_frames, data.image_aspect_ratio, data.joint_ratio) == (16, "pad", [2, 1, 1])
        assert (len(data.data_path), data.heard) == (3, [True, False, False])
    else:
        assert len(data.data_path_a) == len(data.files) == 1


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
    for script in HEARING_SCRIPTS:
        words = printed(f"custom/{script}", **variables)
        assert train.main([*words[words.index("videollama2.train") + 1 :], *overrides]) == 0
    out = tmp_path / "out" / "videollama2qwen2_audio"
    assert {path.name for path in out.iterdir()} == {"pretrain_audio", "finetune_audio", "va_joint_audio"}
    _, model, processor, _ = load_pretrained_model(out / "va_joint_audio", device="cpu")
    assert model.config.hears
    assert processor.model_config.image_aspect_ratio == "pad"


def test_the_tiny_model_learns_to_hear_in_the_same_stages(printed, tmp_path):
    words = printed("shapes/train_av.sh", "--seed", 3, RUN=tmp_path, NPROC_PER_NODE=1, WORLD_SIZE=1)
    starts = [number for number, word in enumerate(words) if word == "videollama2.train"]
    ends = [*(next(n for n in range(start, len(words)) if " nodes x " in words[n]) for start in starts[:-1]), None]
    assert len(starts) == 3
    first, second, third = (
        train.parse_arguments(words[start + 1 : end]) for start, end in zip(starts, ends, strict=True)
    )
    for model, _, training in (first, second, third):
        assert (model.model_path, training.seed) == (f"{tmp_path}/start/sight", 3)
    assert [model.tune_audio_tower for model, *_ in (first, second, third)] == [False, True, False]
    assert [model.tune_adapter_llm for model, *_ in (first, second, third)] == [False, False, True]
    folders = [training.output_dir for *_, training in (first, second)]
    assert second[0].pretrain_mm_mlp_adapter_a == f"{folders[0]}/mm_projector_a.bin"
    assert third[0].pretrain_mm_mlp_adapter_a == f"{folders[1]}/mm_projector_a.bin"
    assert third[0].audio_tower == f"{folders[1]}/audio_tower.bin"
    assert (third[1].heard, third[1].joint_ratio) == ([True, False, False], [6, 1, 1])


def test_the_tiny_model_is_shown_pictures_and_sounds_from_outside_its_world(printed, tmp_path):
    given = {"PICTURES": tmp_path / "photographs", "SOUNDS": tmp_path / "speech"}
    words = printed("shapes/train_av.sh", RUN=tmp_path, NPROC_PER_NODE=1, WORLD_SIZE=1, **given)
    start = len(words) - words[::-1].index("videollama2.train")
    _, data, _ = train.parse_arguments(words[start:])
    names = ["/".join(name.removesuffix(".json").split("/")[-2:]) for name in data.data_path]
    assert names == ["heard/train", "outside/both", "heard/sounds", "outside/heard", "seen/train", "outside/seen"]
    assert data.heard == [True, True, False, False, False, False]
    made = words[words.index("videollama2.shapes.outside") :]
    assert made[1:7] == [
        "--out",
        f"{tmp_path}/outside",
        "--pictures",
        str(given["PICTURES"]),
        "--sounds",
        str(given["SOUNDS"]),
    ]


def test_nodes_and_processes_come_from_arguments_or_the_environment(printed):
    def launcher(*argv, **variables):
        words = printed("vllava/finetune.sh", *argv, **variables)
        names = ("nnodes", "nproc_per_node", "node_rank", "master_addr", "master_port")
        return [words[words.index(f"--{name}") + 1] for name in names]

    assert launcher() == ["1", "8", "0", "127.0.0.1", "16666"]
    assert launcher(2, 4, "--seed", 1) == ["2", "4", "0", "127.0.0.1", "16666"]
    given = {"WORLD_SIZE": 4, "NPROC_PER_NODE": 8, "RANK": 3, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 29500}
    assert launcher(**given) == ["4", "8", "3", "10.0.0.1", "29500"]


def test_flags_of_the_caller_come_last(printed):
    words = printed("custom/finetune.sh", "--learning_rate", "1e-4", "--run_name", "two words", DEEPSPEED="none")
    assert words[-4:] == ["--learning_rate", "1e-4", "--run_name", "two words"]
    assert "--deepspeed" not in words


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NPROC_PER_NODE": 3}, "128 is not a multiple of 1 nodes x 3 processes x LOCAL_BATCH_SIZE 4 = 12"),
        ({"WORLD_SIZE": 100}, "128 is not a multiple of 100 nodes x 8 processes x LOCAL_BATCH_SIZE 4 = 3200"),
        ({"LOCAL_BATCH_SIZE": 0}, "positive numbers, got '0'"),
        ({"NPROC_PER_NODE": "many"}, "positive numbers, got 'many'"),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_the_numbers(variables, words):
    done = call("vllava/finetune.sh", **variables)
    assert done.returncode == 2
    assert words in done.stderr


SIGNALLED = """#!/usr/bin/env bash
trap 'echo told of USR1; exit 7' USR1
trap 'echo told of TERM; exit 7' TERM
echo ready
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_signals_to_a_script_reach_the_launcher(tmp_path, name):
    """Slurm signals the shell, which would hear of nothing while it waits for a program in the foreground."""
    stand_in = tmp_path / "signalled"
    stand_in.write_text(SIGNALLED)
    stand_in.chmod(0o755)
    script = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "custom" / "finetune.sh")],
        env={**environment(), "PYTHON": str(stand_in), "NPROC_PER_NODE": "8", "WORLD_SIZE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while script.stdout.readline() != "ready\n":
        assert script.poll() is None
    script.send_signal(getattr(signal, f"SIG{name}"))
    out, told = script.communicate(timeout=60)
    assert out == f"told of {name}\n"
    assert told == f"stopped by SIG{name}; run the same command to continue from the last checkpoint\n"
    assert script.returncode == 7


def test_a_failed_training_ends_with_its_code(tmp_path):
    stand_in = tmp_path / "failing"
    stand_in.write_text("#!/usr/bin/env bash\nexit 3\n")
    stand_in.chmod(0o755)
    done = call("custom/finetune.sh", PYTHON=stand_in)
    assert done.returncode == 3
    assert done.stderr.startswith("error: training ended with code 3")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_tiny_model_from_nothing_beats_chance_in_minutes(tmp_path, port, python_of_forks):
    """Data, parts, both stages on two processes. So soon it tells where things are and what comes or goes; which of
    several has a name takes an hour."""
    variables = {"RUN": tmp_path, "QUICK": 1, "NPROC_PER_NODE": 2, "WORLD_SIZE": 1, "MASTER_PORT": port}
    variables["PYTHON"] = python_of_forks
    begin = processor_seconds()
    once = ("--media_cache", tmp_path / "frames")  # most clips are met several times
    alone = ("--save_strategy", "no", "--report_to", "none", "--sample_answers", "0")
    done = call("shapes/train.sh", *alone, *once, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    # Five minutes of two quiet cores; where others use them, seconds of a core do less.
    assert processor_seconds() - begin < 2 * 600
    assert done.stdout.count("1 nodes x 2 processes x 4 samples x 1 steps = 8 samples") == 2
    files = (tmp_path / stage / "mm_projector.bin" for stage in ("start", "pretrain"))
    before, after = (torch.load(file, weights_only=True) for file in files)
    assert 0 < difference(before, after) < 1e-2
    result = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in after.items())  # the second stage began with them

    held_out = tmp_path / "held-out"
    write_set(held_out, videos=250, images=0, seed=20260, objects=1)
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
