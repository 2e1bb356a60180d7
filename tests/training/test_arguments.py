"""Flags: each has an effect, contradictions are refused, errors are one line with exit code 2."""

import ast
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import transformers

import videollama2
from videollama2 import train
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments

from .helpers.runs import LORA, flags

PACKAGE = Path(videollama2.__file__).parent
OWN_FLAGS = sorted(
    {f.name for f in fields(ModelArguments)}
    | {f.name for f in fields(DataArguments)}
    | ({f.name for f in fields(TrainingArguments)} - {f.name for f in fields(transformers.TrainingArguments)})
)


@cache
def attributes_read() -> set[str]:
    """Names that are read as attributes outside the checks of the flags."""
    names = set()
    for path in [*(PACKAGE / "training").rglob("*.py"), PACKAGE / "train.py"]:
        if path.name == "arguments.py" or path.parent.name == "rules":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


@pytest.mark.parametrize("name", OWN_FLAGS)
def test_every_flag_is_read(name):
    assert name in attributes_read()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "videollama2_mistral"}, ["videollama2_mistral", "'mistral'", "'qwen2'"]),
        ({"model_type": "llava"}, ["'llava'", "videollama2_qwen2"]),
        ({"vision_tower": None}, ["--vision_tower"]),
        ({"model_path": "no/such/model"}, ["no/such/model"]),
        ({"data_path": "nothing.json"}, ["nothing.json"]),
        ({"mm_projector_type": "magic"}, ["magic"]),
        ({"num_frames": 0}, ["num_frames 0"]),
        ({"tune_mm_mlp_adapter": True}, ["--tune_mm_mlp_adapter", "--freeze_vision_tower"]),
        (
            {"tune_mm_mlp_adapter": True, "freeze_mm_mlp_adapter": True, "freeze_vision_tower": True},
            ["--tune_mm_mlp_adapter", "--freeze_mm_mlp_adapter"],
        ),
        ({"vision_tower_lr": 1e-4, "freeze_vision_tower": True}, ["--vision_tower_lr"]),
        ({"mm_projector_lr": 1e-4, "freeze_mm_mlp_adapter": True}, ["--mm_projector_lr"]),
        (
            {"freeze_backbone": True, "freeze_mm_mlp_adapter": True, "freeze_vision_tower": True},
            ["nothing would learn", "freeze every part"],
        ),
        ({"eval_strategy": "steps"}, ["--eval_data_path"]),
        ({"resume_from_checkpoint": "no/checkpoint-3"}, ["--resume_from_checkpoint no/checkpoint-3"]),
        ({"model_max_length": 5}, ["model_max_length", "record"]),
        ({"save_strategy": "steps", "save_steps": 0}, ["--save_steps 0.0 is not above 0: no checkpoint"]),
        ({"eval_steps": -1}, ["--eval_steps -1.0 is not above 0"]),
        ({"save_total_limit": 0}, ["--save_total_limit 0 is below 1"]),
        ({"fp16": True}, ["--fp16 needs a GPU"]),
        ({"per_device_train_batch_size": 0}, ["--per_device_train_batch_size 0 is below 1"]),
        ({"learning_rate": "nan"}, ["--learning_rate nan is not a finite number"]),
        ({"seed": 2**32}, ["--seed 4294967296 is above 4294967295"]),
        ({"adam_beta2": 1}, ["--adam_beta2 1.0 is not below 1"]),
        ({"max_steps": 0}, ["--max_steps 0", "learns nothing"]),
        ({"report_to": "paper"}, ["--report_to paper is not one of none, all,", "tensorboard"]),
        ({"report_to": ["none", "wandb"]}, ["--report_to none wandb: none cannot be combined with others"]),
        ({"load_best_model_at_end": True}, ["--load_best_model_at_end needs --eval_strategy"]),
        ({"metric_for_best_model": "eval_nothing"}, ["--metric_for_best_model eval_nothing", "answer_accuracy"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["--lr_scheduler_type cosine_with_min_lr with", "min_lr_rate"]),
        ({"accelerator_config": '{"foo": 1}'}, ["'foo'"]),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"use_reentrant": true}'},
            ["--gradient_checkpointing_kwargs: use_reentrant must be false", "no gradients"],
        ),
        ({"max_steps": None, "num_train_epochs": 0}, ["--num_train_epochs 0", "learns nothing"]),
        (
            {"group_by_modality_length": True, "train_sampling_strategy": "group_by_length"},
            ["order of samples"],
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert "Traceback" not in line


@pytest.mark.slow
def test_flag_that_contradicts_a_whole_checkpoint(run_once, world, parts, tmp_path, capsys):
    whole = run_once().folder
    changes = {"model_path": whole, "vision_tower": None, "mm_projector_type": "linear"}
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    assert "'stc_connector_v35'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "loading", [{}, {"dataloader_num_workers": 1}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}]
)
def test_unreadable_file_stops_the_run_and_is_named(world, parts, tmp_path, capsys, loading):
    import json

    rows = json.loads((world / "train.json").read_text())[:2]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((world / rows[0]["video"]).read_bytes()[:600])
    rows[1] = {**rows[1], "id": "the-broken-one", "video": str(broken)}
    rows[0]["video"] = str(world / rows[0]["video"])
    (tmp_path / "data.json").write_text(json.dumps(rows))
    changes = {"data_path": tmp_path / "data.json", **loading}
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "'the-broken-one'" in line
    assert "broken.mp4" in line


@pytest.mark.slow
def test_runs_as_a_file_from_anywhere(tmp_path):
    """Published scripts start the file, not the module; the package need not be installed for that."""
    command = [sys.executable, str(PACKAGE / "train.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--mm_projector_type" in done.stdout


def test_bare_debug_shows_the_traceback(world, parts, tmp_path):
    with pytest.raises(videollama2.errors.DataError):
        train.main([*flags(world, parts, tmp_path / "out", data_path="nothing.json"), "--debug"])


WITHOUT_EFFECT = [
    "do_train",
    "do_eval",
    "do_predict",
    "label_names",
    "label_smoothing_factor",
    "length_column_name",
    "liger_kernel_config",
    "prediction_loss_only",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "include_for_metrics",
    "batch_eval_metrics",
    "bf16_full_eval",
    "fp16_full_eval",
    "version",
    "is_multimodal",
    "lazy_preprocess",
]


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_flags_without_effect_do_not_exist(world, parts, tmp_path, capsys, name):
    """Those of transformers that this trainer does not heed, and published ones that nothing ever read."""
    assert train.main(flags(world, parts, tmp_path / "out", **{name: "1"})) == 2
    assert f"there is no flag --{name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("deepspeed", {"deepspeed": "scripts/zero2.json"}),
        ("wandb", {"report_to": "wandb"}),
        ("tensorboard", {"report_to": ["none", "tensorboard"]}),
        ("galore_torch", {"optim": "galore_adamw"}),
    ],
)
def test_missing_packages_are_named(world, parts, tmp_path, capsys, monkeypatch, package, changes):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself notes for a failed import
    if package == "galore_torch":
        changes = {**changes, "optim_target_modules": "all-linear"}
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and package in error


def test_deepspeed_file_that_is_not_there(world, parts, tmp_path, capsys):
    pytest.importorskip("deepspeed")
    assert train.main(flags(world, parts, tmp_path / "out", deepspeed="no/zero9.json")) == 2
    assert "--deepspeed no/zero9.json: there is no such file" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text("{")
    assert train.main(flags(world, parts, tmp_path / "out", deepspeed=tmp_path / "odd.json")) == 2
    assert f"--deepspeed {tmp_path / 'odd.json'}: cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch_compile_backend": "magic"}, "--torch_compile_backend magic is not one of "),
        (
            {"torch_compile": True, "packing": 600},
            "--torch_compile compiles for any number of tokens, but not for any number of records in a row",
        ),
        ({"fsdp": "full_shard auto_wrap"}, "use --fully_shard True for FSDP2"),
        ({"fully_shard": True}, "there is only one"),
        ({"fsdp_config": '{"version": 2}'}, "--fsdp_config"),
        ({"enable_jit_checkpoint": True}, "SIGTERM and SIGUSR1 leave a whole checkpoint"),
        ({"auto_find_batch_size": True}, "--per_device_train_batch_size"),
        ({"use_liger_kernel": True}, "--use_liger_kernel needs a GPU"),
        ({"gradient_checkpointing_every": 2}, "no effect without --gradient_checkpointing True"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_parts": ["tower"]},
            "--gradient_checkpointing_parts tower must be among language_model, mm_projector",
        ),
        ({"attn_implementation": "magic"}, "not one of sdpa, eager"),
        ({"attn_implementation": "flash_attention_2"}, "needs a GPU"),
        ({"attn_implementation": "flex_attention"}, "needs a GPU"),
    ],
)
def test_flags_that_would_lie_are_refused_with_the_reason(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **changes, use_cpu=True)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_attention_is_the_one_that_was_asked_for(run, world, parts, tmp_path):
    losses = {}
    for name in ("sdpa", "eager"):
        losses[name] = run(attn_implementation=name, max_steps=1).losses
        arguments = train.parse_arguments(flags(world, parts, tmp_path / "out", attn_implementation=name))
        model, _ = train.build_model(*arguments)
        assert model.model.language_model.config._attn_implementation == name
    assert losses["sdpa"] == pytest.approx(losses["eager"], rel=1e-5)


@pytest.mark.slow
def test_folders_to_be_added_to_others_are_refused_with_the_command(run_once, world, parts, captions, tmp_path, capsys):
    lora = run_once(**LORA).folder
    connector = run_once(tune_mm_mlp_adapter=True, freeze_vision_tower=True, data_path=captions).folder
    whole = {"vision_tower": None, "mm_projector_type": None}
    for more in ({}, {"lora_enable": True, "freeze_vision_tower": True}):
        assert train.main(flags(world, parts, tmp_path / "out", model_path=lora, **whole, **more)) == 2
        assert f"videollama2 merge {lora} {lora}-merged" in capsys.readouterr().err
    assert train.main(flags(world, parts, tmp_path / "out", model_path=connector, **whole)) == 2
    assert f"--pretrain_mm_mlp_adapter {connector / 'mm_projector.bin'}" in capsys.readouterr().err
