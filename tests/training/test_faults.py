"""What goes wrong at the start of a run: one line that names the value, the rule and the file."""

import json
import shutil

import pytest
import torch

from videollama2 import train
from videollama2.checkpoints.files import RUN_FILE

from .helpers.runs import flags


def refusal(world, parts, tmp_path, capsys, **changes) -> str:
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.slow
def test_connector_of_another_kind_is_named_with_its_shapes(run, world, parts, captions, tmp_path, capsys):
    first = {"tune_mm_mlp_adapter": True, "freeze_vision_tower": True, "data_path": captions}
    other = run(mm_projector_type="mlp2x_gelu", **first)
    line = refusal(world, parts, tmp_path, capsys, pretrain_mm_mlp_adapter=other.folder / "mm_projector.bin")
    assert "mm_projector.bin" in line
    assert "missing: ['readout.0.bias'" in line
    tensors = torch.load(other.folder / "mm_projector.bin", weights_only=True)
    tensors["model.mm_projector.0.weight"] = torch.zeros(3, 5)
    torch.save(tensors, tmp_path / "shape.bin")
    changes = {"pretrain_mm_mlp_adapter": tmp_path / "shape.bin", "mm_projector_type": "mlp2x_gelu"}
    assert "0.weight (3, 5) instead of (32, 32)" in refusal(world, parts, tmp_path, capsys, **changes)


@pytest.mark.parametrize(
    ("name", "word"),
    [("no/such/file.bin", "no/such/file.bin"), ("file.bin", "no such file"), ("/no/file.bin", "no such file")],
)
def test_connector_file_that_is_not_there(world, parts, tmp_path, capsys, name, word):
    assert word in refusal(world, parts, tmp_path, capsys, pretrain_mm_mlp_adapter=name)


@pytest.mark.slow
def test_tokenizer_without_padding_token(run, run_once, world, parts, tmp_path):
    """Llama-3 has none; any id serves, since the mask hides it."""
    bare = tmp_path / "bare"
    shutil.copytree(parts / "llm", bare)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = bare / name
        if path.is_file():
            fields = json.loads(path.read_text())
            fields.pop("pad_token", None)
            path.write_text(json.dumps(fields))
    with_one, without = run_once(), run(model_path=bare)
    assert with_one.losses == pytest.approx(without.losses, rel=1e-6)


def test_empty_sets(world, parts, tmp_path, capsys):
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    for changes in ({"data_path": empty}, {"eval_data_path": empty, "eval_strategy": "steps"}):
        assert "empty.json: there is no record" in refusal(world, parts, tmp_path, capsys, **changes)


def test_annotations_that_are_not_json(world, parts, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('[{"id": 1},\n {"id": }]')
    line = refusal(world, parts, tmp_path, capsys, data_path=tmp_path / "bad.json")
    assert "bad.json: not JSON at line 2, column 9" in line


@pytest.mark.slow
def test_a_checkpoint_of_another_kind_is_not_gone_on_from(run, world, parts, tmp_path, capsys):
    """A LoRA run from a checkpoint of one with another rank."""
    options = {"lora_enable": True, "freeze_vision_tower": True, "save_strategy": "steps", "save_steps": 1}
    folder = run(lora_r=4, max_steps=1, **options).folder
    asked = {**options, "resume_from_checkpoint": folder / "checkpoint-1"}
    line = refusal(world, parts, tmp_path, capsys, lora_r=8, max_steps=2, **asked)
    assert "checkpoint-1: its run has other flags or data: --lora_r 8 (was 4)" in line
    options["resume_from_checkpoint"] = folder / "checkpoint-1"
    (folder / "checkpoint-1" / RUN_FILE).unlink()  # as of another program
    line = refusal(world, parts, tmp_path, capsys, lora_r=8, max_steps=2, **options)
    assert "the adapter does not fit this model and its --lora flags" in line
