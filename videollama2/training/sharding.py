"""DeepSpeed: the same collectives on every process, and weights that are checked when they are read.

ZeRO gathers parameters (stage 3) and reduces gradients (stages 2 and 3) in the order in which modules run. Processes
whose micro-batches hold other kinds of media would run other modules, and wait for each other for ever or mix up
gradients. So here every micro-batch runs encoder and connector exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from videollama2.errors import ConfigError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, VideoLlama2Model
from videollama2.training.flags import TrainingArguments


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Read weights whole on every process, also under ZeRO-3; the engine cuts them into slices afterwards.

    transformers would cut them while reading, and then report nothing about names that do not fit.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def encode_uniformly(model: VideoLlama2ForConditionalGeneration) -> None:
    """Make every micro-batch run encoder and connector exactly once, whatever media it holds.

    A still image is still encoded once, but the connector sees it as frames, and a micro-batch without media passes
    a black frame whose tokens count nothing.
    """
    model.model.register_forward_pre_hook(_encode, with_kwargs=True)


def _encode(
    inner: VideoLlama2Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if kwargs.get("input_ids") is None:
        return None
    input_ids = kwargs.pop("input_ids")
    images = kwargs.pop("pixel_values", None)
    videos = kwargs.pop("pixel_values_videos", None)
    image_tokens, video_tokens, nothing = _tokens(inner, images, [] if videos is None else list(videos))
    embeds_BLD = inner.embed(input_ids, image_tokens, video_tokens)
    return args, {**kwargs, "inputs_embeds": embeds_BLD + nothing.to(embeds_BLD.dtype)}


def _tokens(
    inner: VideoLlama2Model, images_BCHW: torch.Tensor | None, videos: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Tokens of images, tokens of videos, and a zero that depends on all of them."""
    frames = inner.config.num_frames
    for video_TCHW in videos:
        if len(video_TCHW) != frames:
            raise ConfigError(f"under DeepSpeed every video must have {frames} frames, one has {len(video_TCHW)}")
    stills = 0 if images_BCHW is None else len(images_BCHW)
    parts = ([images_BCHW] if stills else []) + videos
    if not parts:
        side = inner.vision_tower.config.image_size
        parts = [torch.zeros(1, 3, side, side)]
    features_BND = inner._to_connector(inner.encode_vision(torch.cat(parts)))
    alone = max(stills, int(not videos))
    still_BTND = features_BND[:alone].unsqueeze(1).expand(-1, frames, -1, -1)
    moving_BTND = features_BND[alone:].unflatten(0, (len(videos), frames)) if videos else features_BND[:0].unsqueeze(1)
    whole_BTND = torch.cat([still_BTND, moving_BTND.expand(-1, frames, -1, -1)])
    tokens_BND = inner.mm_projector(whole_BTND)
    return list(tokens_BND[:stills]), list(tokens_BND[alone:]), tokens_BND.sum() * 0.0
