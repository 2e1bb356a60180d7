"""The published scripts: their numbers, what they refuse, and how they end. That they train: test_scripts_train.py."""

import signal
import subprocess

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import killed_after
from videollama2 import train

from .helpers.runs import environment
from .helpers.scripts import call

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
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK 2 is the number of a node, and 2 nodes have numbers from 0 to 1"),
        ({"MAX_RESTARTS": "x"}, "RANK and MAX_RESTARTS must be numbers from 0, got 'x'"),
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
    with killed_after(script):
        assert "ready\n" in script.stdout
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
