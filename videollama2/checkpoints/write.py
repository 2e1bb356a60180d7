"""Writes the result of a training run: a full checkpoint, some parts alone, or a LoRA adapter.

In all functions below, ``state`` holds the weights by parameter name if the caller has gathered them itself
(DeepSpeed); it defaults to the model's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from videollama2.checkpoints.files import AUDIO_CONNECTOR_FILE, AUDIO_TOWER_FILE, CONNECTOR_FILE
from videollama2.checkpoints.lora import save_adapter
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import AUDIO_CONNECTOR_PREFIX, AUDIO_TOWER_PREFIX, CONNECTOR_PREFIX
from videollama2.processing import VideoLlama2Processor

StateDict = dict[str, torch.Tensor]


def save_model(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    state: StateDict | None = None,
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
    if state is not None:
        state = _with_ties(model, state)
    with _generating(model):
        model.save_pretrained(folder, state_dict=state)
        if dtype is not None:
            # transformers has recorded the dtype of the model in memory, not that of the saved weights.
            config = copy.deepcopy(model.config)
            for part in config.parts:
                part.dtype = dtype
            config.save_pretrained(folder)
    processor.save_pretrained(folder)


def _with_ties(model: VideoLlama2ForConditionalGeneration, state: StateDict) -> StateDict:
    """Return the weights with one tensor for all names of a parameter, so that it is written once.

    Gathering or casting weights makes a tensor for each name.
    """
    first: dict[int, str] = {}
    names = {
        name: first.setdefault(id(weight), name) for name, weight in model.named_parameters(remove_duplicate=False)
    }
    return {name: state.get(names.get(name, name), tensor) for name, tensor in state.items()}


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


PARTS = {
    "mm_projector": (CONNECTOR_PREFIX, CONNECTOR_FILE),
    "mm_projector_a": (AUDIO_CONNECTOR_PREFIX, AUDIO_CONNECTOR_FILE),
    "audio_tower": (AUDIO_TOWER_PREFIX, AUDIO_TOWER_FILE),
}
"""The parts that can be written alone: the prefix of their weights' names, and their file."""


def save_parts(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    base: str,
    parts: Collection[str],
    state: StateDict | None = None,
) -> None:
    """Write the folder of a stage that trains some parts alone: their files with published keys, flat config, tokenizer
    and preprocessing.

    Args:
        base: model to which the parts belong, recorded in the config so that the folder can be opened.
        parts: keys of :data:`PARTS`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = state or model.state_dict()
    tied = {} if model.model.audio_tower is None else model.model.audio_tower.get_expanded_tied_weights_keys()
    copies = {AUDIO_TOWER_PREFIX + name for name in tied}
    for part in parts:
        prefix, file = PARTS[part]
        names = [name for name in state if name.startswith(prefix) and name not in copies]
        torch.save({name: state[name].detach().cpu() for name in names}, folder / file)
    _save_flat_config(model, processor, folder, base)


def save_lora(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    folder: str | Path,
    base: str,
    state: StateDict | None = None,
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
