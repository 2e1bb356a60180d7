"""scripts/convert_checkpoint.py: bit-identical tensors in the stored dtype, the source's tokenizer, one error line."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config

from tests.checkpoints.helpers import QWEN, edit_config, same
from tests.conftest import ROOT, decoder_sizes, golden_dir
from videollama2.checkpoints import load_checkpoint, stored_dtype
from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


@pytest.fixture
def convert(monkeypatch, capsys):
    """The command, called as a user does: (exit code, standard output, standard error)."""
    spec = spec_from_file_location("convert_checkpoint", SCRIPT)
    script = module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(source, destination, form):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint", str(source), str(destination), "--format", form])
        return script.main(), *capsys.readouterr()

    return run


def store(folder, dtypes):
    """Rewrite the weights, one dtype after the other."""
    tensors = load_file(folder / "model.safetensors")
    stored = {name: t.to(dtypes[i % len(dtypes)]) for i, (name, t) in enumerate(sorted(tensors.items()))}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return stored


@pytest.mark.slow
@pytest.mark.parametrize("form", ["published", "native"])
@pytest.mark.parametrize(("stored", "said"), [("bfloat16", "float16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_tensors_are_bit_identical_whatever_the_config_says(folder, tmp_path, convert, form, stored, said):
    tensors = store(folder, [getattr(torch, stored)])
    edit_config(folder, torch_dtype=said)
    code, out, err = convert(folder, tmp_path / "out", form)
    assert code == 0, err
    assert same(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {value for key, value in written.items() if key in ("dtype", "torch_dtype")} == {stored}
    assert said not in {part.get("dtype") for part in written.values() if isinstance(part, dict)}
    model, _ = load_checkpoint(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, stored)


def test_mixed_dtypes_lose_nothing(folder, tmp_path, convert):
    tensors = store(folder, [torch.bfloat16, torch.float16])
    assert convert(folder, tmp_path / "out", "native")[0] == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert same(written, {name: tensor.float() for name, tensor in tensors.items()})


def test_stored_dtype_of_shards_and_bin(folder):
    store(folder, [torch.bfloat16])
    model, _ = load_checkpoint(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder.parent / "sharded", max_shard_size="100KB")
    assert stored_dtype(str(folder.parent / "sharded")) == torch.bfloat16
    next((folder.parent / "sharded").glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="names files that are missing: model-0000"):
        stored_dtype(str(folder.parent / "sharded"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert stored_dtype(str(folder)) == torch.bfloat16


def test_built_in_model_by_name(tmp_path, convert):
    source = ROOT / "videollama2" / "assets" / "videollama2-tiny"
    code, _, err = convert("videollama2-tiny", tmp_path / "out", "published")
    assert code == 0, err
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    weights = load_checkpoint(tmp_path / "out", dtype="auto")[0].state_dict()
    assert same(weights, load_checkpoint(source, dtype="auto")[0].state_dict())


@pytest.mark.slow
def test_hub_name(folder, tmp_path):
    """A repository in the hub's cache; its tokenizer files come along as they are there."""
    snapshot = tmp_path / "hub" / "models--somebody--video" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    shutil.copytree(golden_dir() / "clip-tiny", tmp_path / "towers" / "clip-tiny", copy_function=shutil.copyfile)
    edit_config(snapshot, mm_vision_tower=str(tmp_path / "towers" / "clip-tiny"))
    (tmp_path / "hub" / "models--somebody--video" / "refs").mkdir()
    (tmp_path / "hub" / "models--somebody--video" / "refs" / "main").write_text("0" * 40)
    done = subprocess.run(
        [sys.executable, SCRIPT, "somebody/video", tmp_path / "out", "--format", "published"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert same(load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors"))


def test_a_decoder_without_a_published_name(folder, tmp_path, convert):
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    config = VideoLlama2Config(
        text_config=Qwen3Config(**decoder_sizes(vocab_size=483, head_dim=16)),
        vision_config=model.config.vision_config,
        mm_projector_type="linear",
    )
    VideoLlama2ForConditionalGeneration(config).save_pretrained(tmp_path / "qwen3")
    processor.model_config = config
    processor.save_pretrained(tmp_path / "qwen3")
    code, out, err = convert(tmp_path / "qwen3", tmp_path / "out", "published")
    assert (code, out) == (2, "")
    assert "'qwen3' decoder; the published form knows llama, mistral, mixtral, qwen2: use --format native" in err
    assert err.splitlines()[-1].startswith("convert_checkpoint: error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert convert(tmp_path / "qwen3", tmp_path / "out", "native")[0] == 0


@pytest.mark.parametrize("what", ["file", "full folder", "nothing to read"])
def test_one_error_line(tmp_path, convert, what):
    source, target, rule = golden_dir() / "models" / QWEN, tmp_path / "out", "is a file; conversion writes into a new"
    if what == "file":
        target.write_text("mine")
    elif what == "full folder":
        target.mkdir()
        (target / "mine").write_text("mine")
        rule = "is not empty"
    else:
        source, rule = tmp_path / "none", "none"
    code, out, err = convert(source, target, "native")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert rule in err
    assert what != "file" or target.read_text() == "mine"
