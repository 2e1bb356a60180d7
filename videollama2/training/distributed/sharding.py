"""Supports DeepSpeed: the same collective operations on every process, and checked loading of weights.

ZeRO gathers parameters (stage 3) and reduces gradients (stages 2 and 3) in the order in which modules run. Processes
whose micro-batches hold different kinds of media would run different modules, and would wait for each other for ever or
mix up gradients. Therefore :func:`encode_uniformly` makes every micro-batch run each encoder and connector once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videollama2.errors import CheckpointError
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, VideoLlama2Model, used_tokens
from videollama2.training.flags.run import TrainingArguments


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Let every process load whole weights inside the block, also under ZeRO-3; the engine slices them afterwards.

    Otherwise transformers would slice them while loading, and would then not report names that do not fit.
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


def weights_of(parameter: torch.nn.Parameter) -> int:
    """Return the number of weights of a parameter, also if ZeRO-3 keeps only a slice or a byte packs two weights."""
    quantised = getattr(parameter, "quant_state", None)
    if quantised is not None:
        return math.prod(quantised.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def keep_frozen_out(engine: Any) -> None:
    """Leave frozen weights out of DeepSpeed's checkpoints, since a resumed run loads them from where it began.

    Otherwise each checkpoint would repeat a frozen language model, which is most of the weights.
    """
    engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def load_engine(engine: Any, checkpoint: str) -> None:
    """Load the weights that learn, the optimizer and the schedule from a checkpoint without frozen weights.

    Raises:
        CheckpointError: the checkpoint has other weights, or is from another number of processes.
    """
    check_slices(checkpoint, engine.dp_world_size)
    engine.load_checkpoint(checkpoint, custom_load_fn=partial(_load_learning, checkpoint))


def check_slices(checkpoint: str, processes: int) -> None:
    """Check that a checkpoint holds as many slices of the optimizer as there are processes.

    Raises:
        CheckpointError: it was written by another number of processes.
    """
    slices = len(list(Path(checkpoint).glob("global_step*/*_optim_states.pt")))
    if slices not in (0, processes):  # without ZeRO there are no slices
        raise CheckpointError(
            f"{checkpoint} was written by {slices} processes, but this run has {processes}: "
            "under DeepSpeed, each process reads its own slice of the optimizer's state"
        )


def _load_learning(checkpoint: str, src: dict[str, torch.Tensor], dst: nn.Module) -> None:
    own = dst.state_dict()
    learning = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    missing, unexpected = sorted(learning - src.keys()), sorted(src.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint}: does not fit this model; missing: {missing[:4]}, unexpected: {unexpected[:4]}"
        )
    # The checkpoint also has the constants of frozen quantised weights, which mean nothing without these weights.
    wanted = learning.union(name for name, _ in dst.named_buffers()).intersection(src)
    dst.load_state_dict({name: src[name] for name in wanted}, strict=False)


def encode_uniformly(model: VideoLlama2ForConditionalGeneration) -> None:
    """Make every micro-batch run each encoder and connector exactly once, whatever media it holds.

    A micro-batch without images and videos encodes a black image, and one without sounds a short filter bank of
    zeros; the tokens of these are not used.
    """
    model.model.register_forward_pre_hook(_encode, with_kwargs=True)


def _encode(
    inner: VideoLlama2Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if kwargs.get("input_ids") is None:
        return None
    # The encoders and connectors run here, once for all images and videos together or, if there are neither, for a
    # black image, and once for all sounds or for a short filter bank of zeros. The model is then given embeddings
    # instead of ids and media.
    input_ids = kwargs.pop("input_ids")
    tokens: dict[str, list[torch.Tensor]] = {}
    made: list[torch.Tensor] = []
    if inner.vision_tower is not None:
        images, videos = kwargs.pop("pixel_values", None), kwargs.pop("pixel_values_videos", None)
        tokens[IMAGE], tokens[VIDEO] = inner.get_visual_features(images, [] if videos is None else list(videos))
        made += [*tokens[IMAGE], *tokens[VIDEO]]
        if images is None:
            tokens[IMAGE] = []  # these are the tokens of the black image, if any
    if inner.audio_tower is not None:
        sounds = kwargs.pop("input_features", None)
        tokens[AUDIO] = inner.get_sound_features(sounds, kwargs.pop("audio_index", None))
        made += tokens[AUDIO]
        if sounds is None:
            tokens[AUDIO] = []
    # All tokens, also unused ones, are added to the embeddings with a factor of zero. Encoders and connectors thus take
    # part in every backward pass, and ZeRO reduces the same gradients in the same order on all processes.
    nothing = torch.stack([part.sum().to(made[0].device) for part in made]).sum() * 0.0
    tokens = used_tokens(tokens, kwargs.pop("visual_index", None))
    embeds_BLD = inner.embed(input_ids, *(tokens.get(kind, ()) for kind in KINDS))
    return args, {**kwargs, "inputs_embeds": embeds_BLD + nothing.to(embeds_BLD.dtype)}
