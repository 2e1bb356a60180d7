"""How the tests of models open the published code's models and compare with its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from videollama2.checkpoints import load_checkpoint

ATOL = 5e-5


class Case(NamedTuple):
    """A published model, opened, with what the published code computed with it."""

    folder: Path
    model: Any
    processor: Any
    reference: dict[str, torch.Tensor]


def open_case(folder: Path) -> Case:
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    return Case(folder, model.eval(), processor, load_file(folder / "reference.safetensors"))


def close(ours: torch.Tensor, reference: torch.Tensor, atol: float = ATOL) -> None:
    """Check that every value is within ``atol`` of the reference."""
    torch.testing.assert_close(ours, reference, rtol=0, atol=atol)


def save_again(case: Case, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Save model and processor; return the published weights by name, and the saved ones."""
    case.model.save_pretrained(folder)
    case.processor.save_pretrained(folder)
    return load_file(case.folder / "model.safetensors"), load_file(folder / "model.safetensors")
