"""What a run writes: a whole folder that opens again, the connector alone, or a LoRA adapter.

``state`` is, everywhere below, the weights by their name in memory where they are gathered elsewhere (DeepSpeed);
default the model's own.
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
    """Weights under published names, configuration, tokenizer and image preprocessing.

    Args:
        dtype: of the weights that are written; default as they are.
    """
    if dtype is not None:
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in (state or model.state_dict()).items()
        }
    with _generating(model):
        model.save_pretrained(folder, state_dict=state)
        if dtype is not None:
            # transformers has recorded what the model computes in.
            config = copy.deepcopy(model.config)
            for part in config.parts:
                part.dtype = dtype
            config.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def _generating(model: VideoLlama2ForConditionalGeneration) -> Iterator[None]:
    """The configuration as generation wants it: training switches the cache off, what is written must not."""
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
    """First-stage folder: ``mm_projector.bin`` under published keys, flat config, tokenizer, preprocessing.

    Args:
        base: language model under the connector, written to the config so that the folder can be opened.
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
    """LoRA folder: the adapter, what else was trained, flat config, tokenizer, preprocessing.

    Args:
        base: what the adapter belongs to.
    """
    save_adapter(model, Path(folder), base, state)
    _save_flat_config(model, processor, Path(folder), base)


def _save_flat_config(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, folder: Path, base: str
) -> None:
    with _generating(model):
        fields = {**model.config.to_flat_dict(), "_name_or_path": base}
    # What the weights of this folder are added to is not quantised.
    fields.pop("quantization_config", None)
    text = json.dumps(fields, indent=2, sort_keys=True, default=str)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    processor.save_pretrained(folder)
