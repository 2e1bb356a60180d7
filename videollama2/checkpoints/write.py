"""Write the result of a training run: a full checkpoint, a connector alone, or a LoRA adapter.

In all functions below, ``state`` holds the weights by parameter name if the caller has gathered them itself
(DeepSpeed); it defaults to the model's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from videollama2.checkpoints.adapter import save_adapter
from videollama2.checkpoints.files import CONNECTOR_FILE
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import CONNECTOR_PREFIX
from videollama2.processing import VideoLlama2Processor

State = dict[str, torch.Tensor]


def save_model(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    state: State | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a full checkpoint: weights under published names, configuration, tokenizer and image preprocessing.

    Args:
        dtype: dtype of the saved weights; by default each keeps its own.
    """
    if dtype is not None:
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in (state or model.state_dict()).items()
        }
    with _generating(model):
        model.save_pretrained(folder, state_dict=state)
        if dtype is not None:
            # transformers has recorded the dtype of the model in memory, not that of the saved weights.
            config = copy.deepcopy(model.config)
            for part in config.parts:
                part.dtype = dtype
            config.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def _generating(model: VideoLlama2ForConditionalGeneration) -> Iterator[None]:
    """Switch the key-value cache on while a configuration is saved: training switches it off, generation needs it."""
    configs = (model.config, model.config.text_config)
    before = [getattr(config, "use_cache", True) for config in configs]
    for config in configs:
        config.use_cache = True
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.use_cache = value


def save_connector(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    base: str,
    state: State | None = None,
) -> None:
    """Write a first-stage folder: ``mm_projector.bin`` with published keys, flat config, tokenizer, preprocessing.

    Args:
        base: base language model of the connector, recorded in the config so that the folder can be opened.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu()
        for name, tensor in (state or model.state_dict()).items()
        if name.startswith(CONNECTOR_PREFIX)
    }
    torch.save(weights, folder / CONNECTOR_FILE)
    _save_flat_config(model, processor, folder, base)


def save_lora(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    base: str,
    state: State | None = None,
) -> None:
    """Write a LoRA folder: the adapter, all other trained weights, flat config, tokenizer, preprocessing.

    Args:
        base: folder or hub name of the adapter's base model.
    """
    save_adapter(model, Path(folder), base, state)
    _save_flat_config(model, processor, Path(folder), base)


def _save_flat_config(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, folder: Path, base: str
) -> None:
    with _generating(model):
        fields = {**model.config.to_flat_dict(), "_name_or_path": base}
    # The base to which these weights are added is not quantised, even if this run quantised it in memory.
    fields.pop("quantization_config", None)
    text = json.dumps(fields, indent=2, sort_keys=True, default=str)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    processor.save_pretrained(folder)
