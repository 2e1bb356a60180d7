"""DeepSpeed: the same collectives on every process, and weights that are checked when they are read.

ZeRO gathers parameters (stage 3) and reduces gradients (stages 2 and 3) in the order in which modules run. Processes
whose micro-batches hold other kinds of media would run other modules, and wait for each other for ever or mix up
gradients. So here every micro-batch runs encoder and connector exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videollama2.errors import CheckpointError, ConfigError
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


def keep_frozen_out(engine: Any) -> None:
    """Let DeepSpeed's checkpoints hold what learns alone: the rest is where the run began.

    Else each of them repeats a frozen language model, which is most of what there is.
    """
    engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def load_engine(engine: Any, checkpoint: str) -> None:
    """Read weights that learn, optimizer and schedule from what :func:`keep_frozen_out` let through.

    Raises:
        CheckpointError: of other weights, or of another number of processes.
    """
    slices = len(list(Path(checkpoint).glob("global_step*/*_optim_states.pt")))
    if slices not in (0, engine.dp_world_size):  # without ZeRO there are none
        raise CheckpointError(
            f"{checkpoint} was written by {slices} processes, these are {engine.dp_world_size}: "
            "under DeepSpeed each reads its own slice of the optimizer back"
        )
    engine.load_checkpoint(checkpoint, custom_load_fn=partial(_load_learning, checkpoint))


def _load_learning(checkpoint: str, src: dict[str, torch.Tensor], dst: nn.Module) -> None:
    own = dst.state_dict()
    learning = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    missing, unexpected = sorted(learning - src.keys()), sorted(src.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint}: does not fit this model; missing: {missing[:4]}, unexpected: {unexpected[:4]}"
        )
    # Constants of quantised weights lie in it as well, without these weights.
    wanted = learning.union(name for name, _ in dst.named_buffers()).intersection(src)
    dst.load_state_dict({name: src[name] for name in wanted}, strict=False)


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
