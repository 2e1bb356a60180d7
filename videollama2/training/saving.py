"""What a run writes: a whole folder that opens again, or the connector alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from videollama2.model.checkpoints import CONNECTOR_PREFIX
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor

CONNECTOR_FILE = "mm_projector.bin"


def save_model(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, folder: str | Path
) -> None:
    """Weights under published names, configuration, tokenizer and image preprocessing."""
    with _generating(model):
        model.save_pretrained(folder)
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
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, folder: str | Path, base: str
) -> None:
    """First-stage folder: ``mm_projector.bin`` under published keys, flat config, tokenizer, preprocessing.

    Args:
        base: language model under the connector, written to the config so that the folder can be opened.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.model.mm_projector.state_dict()
    torch.save(
        {CONNECTOR_PREFIX + name: tensor.cpu() for name, tensor in weights.items()}, folder / CONNECTOR_FILE
    )
    with _generating(model):
        fields = {**model.config.to_flat_dict(), "_name_or_path": base}
    text = json.dumps(fields, indent=2, sort_keys=True, default=str)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    processor.save_pretrained(folder)
