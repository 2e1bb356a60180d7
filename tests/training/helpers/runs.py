"""Runs of ``train.py`` at small sizes: their flags, what they leave behind, and comparisons of two of them."""

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from videollama2.shapes.parts import TinySizes

SIZES = TinySizes(
    vocab_size=640,
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=3,
    vision_heads=2,
    width=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=64,
)

LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "freeze_vision_tower": True}
"""Flags of a run whose decoder learns through matrices of rank 4."""

FEW_PARTS = {"mm_projector_type": "mlp2x_gelu"}
"""Flags of a connector of four weights instead of hundreds, each of which costs ZeRO, FSDP and optimizers a call."""

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="the package deepspeed is not installed"
)


@dataclass
class Run:
    """A finished run of ``train.py``."""

    folder: Path

    @property
    def history(self) -> list[dict]:
        """All lines of the log."""
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    @property
    def log(self) -> list[dict]:
        """Logged steps: loss, grad_norm, learning_rate."""
        return [row for row in self.history if "loss" in row]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Everything that was written, whatever the kind of the run."""
        found: dict[str, torch.Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            found |= load_file(path)
        for path in sorted(self.folder.glob("*.bin")):
            found |= torch.load(path, weights_only=True)
        return found


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and copies of the gradients of all weights that have one."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_learning(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]], atol: float = 1e-6
) -> None:
    """Check that two results of :func:`loss_and_gradients` are equal but for rounding."""
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=atol, msg=name)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of weights of the same names."""
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def same_log(a: Run, b: Run, tolerance: float) -> None:
    """Check that two runs logged the same numbers at the same steps."""
    assert len(a.log) == len(b.log)
    for left, right in zip(a.log, b.log, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert left[name] == pytest.approx(right[name], rel=tolerance), (name, left, right)


def flags(world: Path, parts: Path, folder: Path, **changes: object) -> list[str]:
    """The command line of a small run; a change of None leaves that flag out, a list gives several values."""
    values: dict[str, object] = {
        "model_type": "videollama2_qwen2",
        "model_path": parts / "llm",
        "vision_tower": parts / "clip",
        "mm_projector_type": "stc_connector_v35",
        "freeze_vision_tower": False,
        "data_path": world / "mixed.json",
        "num_frames": 8,
        "model_max_length": 400,
        "output_dir": folder,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "sample_answers": 0,
        **changes,
    }
    argv = []
    for name, value in values.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def environment() -> dict[str, str]:
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours}


def copy_checkpoint(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
