"""Folders as published training writes them, and changes to them."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

QWEN = "qwen2-stc_connector-clip"


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def connector_folder(folder, base, name="mm_projector.bin"):
    stage1 = folder.parent / "stage1"
    stage1.mkdir()
    stored = load_file(folder / "model.safetensors")
    connector = {k: v for k, v in stored.items() if "mm_projector" in k}
    if name.endswith(".bin"):
        torch.save(connector, stage1 / name)
    else:
        save_file(connector, stage1 / name)
    shutil.copyfile(folder / "config.json", stage1 / "config.json")
    edit_config(stage1, tune_mm_mlp_adapter=True, _name_or_path=str(base))
    return stage1, connector


def lora_folder(folder, base, name="exploration-run"):
    """As published fine-tuning writes it; its name says nothing."""
    stage1, connector = connector_folder(folder, base)
    lora = folder.parent / name
    lora.mkdir()
    shutil.copyfile(stage1 / "config.json", lora / "config.json")
    torch.manual_seed(9)
    target = "model.layers.0.self_attn.q_proj"
    pair = {
        f"base_model.model.{target}.lora_A.weight": torch.randn(4, 32),
        f"base_model.model.{target}.lora_B.weight": torch.randn(32, 4),
    }
    save_file(pair, lora / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (lora / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({f"base_model.model.{k}": v for k, v in connector.items()}, lora / "non_lora_trainables.bin")
    return lora, pair, connector
