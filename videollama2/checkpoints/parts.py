"""Builds a model from its parts: a bare language model, pretrained encoders, and a new connector for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from videollama2.checkpoints.audio_tower import add_hearing
from videollama2.checkpoints.files import UNREADABLE, check_model_type, check_weight_files, why_no_weights
from videollama2.checkpoints.quantisation import leave_out_misfits
from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointError, ConfigError
from videollama2.hub import OPTIONS, read_config
from videollama2.model.connectors import build_connector
from videollama2.model.encoders import vision_encoder, vision_fields
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, check_loading
from videollama2.part_configs import as_config
from videollama2.processing import VideoLlama2Processor, load_image_processor, load_tokenizer


def build_from_parts(
    base: str | Path,
    vision_tower: str | Path | None,
    *,
    mm_projector_type: str = "linear",
    mm_vision_select_layer: int = -2,
    mm_vision_select_feature: str = "patch",
    num_frames: int | None = None,
    image_aspect_ratio: str | None = None,
    mm_inference_aspect_ratio: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    device_map: Any = None,
    quantization_config: Any = None,
    decodes: bool = True,
    ears: tuple[BeatsModel, str | None, str] | None = None,
    **hub: Any,
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Combine a bare language model, a pretrained encoder and a new connector, to see, to hear, or both.

    A new connector keeps torch's default initialisation, with which the published first stage starts. (Inside
    ``from_pretrained``, transformers would initialise it again with another standard deviation.)

    Args:
        base, vision_tower: folders or hub names. Without a vision tower, the model takes neither images nor videos.
        decodes: whether the language model's weights are read; otherwise it and the connectors stay on ``meta``.
        ears: audio encoder, its name and the type of its projector, see :func:`.audio_tower.add_hearing`; None makes a
            model that takes no sound.
        hub: hub options; ``revision`` applies to ``base`` only.

    Raises:
        CheckpointError: a part is missing, or weights of the decoder or encoder do not fit.
        ConfigError: there is neither a vision nor an audio encoder.
    """
    if vision_tower is None and ears is None:
        raise ConfigError(f"{base}: a model of it needs a vision encoder or an audio encoder")
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map, **hub}
    decoder = _load_decoder(str(base), decodes, quantization_config=quantization_config, **options)
    options.pop("revision", None)
    tower = None if vision_tower is None else _load_tower(str(vision_tower), **options)
    config = VideoLlama2Config(
        text_config=decoder.config,
        vision_config=None if tower is None else tower.config,
        mm_vision_tower=None if vision_tower is None else str(vision_tower),
        audio_config=None if ears is None else ears[0].config,
        mm_projector_type=mm_projector_type,
        mm_vision_select_layer=mm_vision_select_layer,
        mm_vision_select_feature=mm_vision_select_feature,
        num_frames=num_frames,
        image_aspect_ratio=image_aspect_ratio,
        mm_inference_aspect_ratio=mm_inference_aspect_ratio,
        dtype=dtype,
    )
    config._attn_implementation = attn_implementation
    model = _put_together(config, decoder, tower, ears)
    tokenizer = load_tokenizer(base, **hub)
    hub.pop("revision", None)
    images = None if vision_tower is None else load_image_processor(vision_tower, config, **hub)
    return model, VideoLlama2Processor(images, tokenizer, config)


def _put_together(
    config: VideoLlama2Config,
    decoder: PreTrainedModel,
    tower: PreTrainedModel | None,
    ears: tuple[BeatsModel, str | None, str] | None,
) -> VideoLlama2ForConditionalGeneration:
    """Return a model that holds the decoder and the encoders themselves, with new connectors."""
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(config)
    head, embeddings = decoder.get_output_embeddings(), decoder.get_input_embeddings()
    assert isinstance(head, nn.Linear) and isinstance(embeddings, nn.Embedding)
    model.model.language_model = decoder.get_decoder()
    if tower is not None:
        model.model.vision_tower = tower
        if not embeddings.weight.is_meta:
            connector = build_connector(config.mm_projector_type, config.mm_hidden_size, config.hidden_size)
            model.model.mm_projector = connector.to(embeddings.weight.device, embeddings.weight.dtype)
    if ears is not None:
        add_hearing(model, *ears)
    model.lm_head = head
    model.generation_config = decoder.generation_config or GenerationConfig.from_model_config(config)
    return model


def _load_decoder(path: str, reads_weights: bool, **options: Any) -> PreTrainedModel:
    """Load the language model; or build it on the ``meta`` device."""
    hub = {key: options[key] for key in OPTIONS if key in options}
    fields = read_config(path, **hub)
    check_model_type(fields, path)
    config = as_config(f"{path}/config.json", fields)
    if not reads_weights:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=options["dtype"], trust_remote_code=False)
    leave_out_misfits(options.get("quantization_config"), config, options.get("device_map"))
    check_weight_files(path, config, **hub)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path, config=config, output_loading_info=True, trust_remote_code=False, **options
        )
    except UNREADABLE as error:
        raise CheckpointError(f"base language model {path}: cannot be read ({why_no_weights(error)})") from error
    decoder, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)  # a pair, because the report was asked for
    check_loading(info, path)
    return decoder


def _load_tower(path: str, **options: Any) -> PreTrainedModel:
    """Load the pretrained encoder. Repositories of full CLIP models also hold a text encoder, which is left out."""
    hub = {key: options[key] for key in OPTIONS if key in options}
    fields = vision_fields(read_config(path, **hub))
    try:
        encoder = vision_encoder(fields.get("model_type"))
        config = as_config("config.json", fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    check_weight_files(path, config, **hub)
    try:
        tower, info = encoder.load(path, config=config, **options)
    except UNREADABLE as error:
        raise CheckpointError(f"vision encoder {path}: cannot be read ({why_no_weights(error)})") from error
    check_loading({**dict(info), "unexpected_keys": []}, path)
    return tower
