"""A model from its parts: a bare language model, a pretrained encoder, a connector from a first-stage folder or new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from videollama2.checkpoints.files import (
    CONNECTOR_FILES,
    HUB_OPTIONS,
    UNREADABLE,
    base_of,
    check_model_type,
    config_dict_of,
    first_file,
    first_line,
    is_videollama2,
    read_tensors,
)
from videollama2.checkpoints.full import load_checkpoint
from videollama2.config import OPTIONS_OF_ANY_REPOSITORY, VideoLlama2Config, find_tower
from videollama2.errors import CheckpointError, ConfigError
from videollama2.model.connectors import build_connector
from videollama2.model.encoders import vision_encoder, vision_fields
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, check_loading
from videollama2.model.weight_names import connector_weights
from videollama2.processing import VideoLlama2Processor, load_image_processor, load_tokenizer

_CONNECTOR_FIELDS = (
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "num_frames",
    "image_aspect_ratio",
    "mm_inference_aspect_ratio",
)


def build_from_parts(
    base: str | Path,
    vision_tower: str | Path,
    *,
    mm_projector_type: str,
    mm_vision_select_layer: int = -2,
    mm_vision_select_feature: str = "patch",
    num_frames: int | None = None,
    image_aspect_ratio: str | None = None,
    mm_inference_aspect_ratio: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    device_map: Any = None,
    quantization_config: Any = None,
    **hub: Any,
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """A bare language model + a pretrained encoder + a new connector.

    The connector keeps torch's default initialisation, as the published first stage starts from. (Built inside
    ``from_pretrained`` it would be drawn anew with another deviation.)

    Args:
        base, vision_tower: folders or hub names.
        hub: hub options; ``revision`` is that of ``base``.

    Raises:
        CheckpointError: a part is missing, or weights of decoder or encoder do not fit.
    """
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map, **hub}
    decoder = _load_decoder(str(base), quantization_config=quantization_config, **options)
    options.pop("revision", None)
    tower = _load_tower(str(vision_tower), **options)
    config = VideoLlama2Config(
        text_config=decoder.config,
        vision_config=tower.config,
        mm_vision_tower=str(vision_tower),
        mm_projector_type=mm_projector_type,
        mm_vision_select_layer=mm_vision_select_layer,
        mm_vision_select_feature=mm_vision_select_feature,
        num_frames=num_frames,
        image_aspect_ratio=image_aspect_ratio,
        mm_inference_aspect_ratio=mm_inference_aspect_ratio,
        dtype=dtype,
    )
    config._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(config)
    connector = build_connector(mm_projector_type, config.mm_hidden_size, config.hidden_size)
    device = decoder.get_input_embeddings().weight.device
    model.model.language_model = decoder.get_decoder()
    model.model.vision_tower = tower
    model.model.mm_projector = connector.to(device=device, dtype=dtype)
    model.lm_head = decoder.get_output_embeddings()
    model.generation_config = decoder.generation_config or GenerationConfig.from_model_config(config)
    tokenizer = load_tokenizer(base, **hub)
    hub.pop("revision", None)
    processor = VideoLlama2Processor(load_image_processor(vision_tower, config, **hub), tokenizer, config)
    return model, processor


def _load_decoder(path: str, **options: Any) -> nn.Module:
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    check_model_type(config_dict_of(path, **hub), path)
    try:
        decoder, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except UNREADABLE as error:
        raise CheckpointError(f"base language model {path}: cannot be read ({first_line(error)})") from error
    check_loading(info, path)
    return decoder


def _load_tower(path: str, **options: Any) -> nn.Module:
    """The encoder's pretrained weights. Repositories of whole CLIP models hold a text half too, which is left out."""
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    fields = vision_fields(config_dict_of(path, **hub))
    try:
        encoder = vision_encoder(fields.pop("model_type", ""))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        tower, info = encoder.load(path, config=AutoConfig.for_model(encoder.model_type, **fields), **options)
    except UNREADABLE as error:
        raise CheckpointError(f"vision encoder {path}: cannot be read ({first_line(error)})") from error
    check_loading({**dict(info), "unexpected_keys": []}, path)
    return tower


def load_connector(model: VideoLlama2ForConditionalGeneration, path: Path) -> None:
    """Load connector weights from a file, strictly.

    Raises:
        CheckpointError: the file holds none, or not exactly this connector's.
    """
    tensors = read_tensors(path)
    inner = {short: tensors[name] for name, short in connector_weights(tensors).items()}
    if not inner:
        raise CheckpointError(f"{path}: holds no connector weight (named ...mm_projector....)")
    _load_strictly(model.model.mm_projector, inner, path)


def _load_strictly(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and own[k].shape != v.shape
    ]
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or surplus or wrong:
        raise CheckpointError(
            f"{path}: the weights do not fit {type(module).__name__}; missing: {missing[:8]}, "
            f"unexpected: {surplus[:8]}, of another shape: {wrong[:8]}"
        )
    module.load_state_dict(tensors)


def load_connector_folder(
    path: str, model_base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """First-stage folder: connector weights and a flat config; decoder and encoder are pretrained elsewhere."""
    fields = config_dict_of(path, **hub)
    base = base_of(path, model_base, **hub)
    if not base or Path(base).resolve() == Path(path).resolve():
        raise CheckpointError(f"{path} holds a connector only: name its language model with model_base (--model-base)")
    model, processor = base_with_connector(path, base, fields, placement, hub)
    load_connector(model, first_file(path, CONNECTOR_FILES, **hub))
    return model, processor


def base_with_connector(
    path: str, base: str, fields: dict[str, Any], placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    hub = {key: hub[key] for key in OPTIONS_OF_ANY_REPOSITORY if key in hub}  # the revision is that of ``path``
    if is_videollama2(config_dict_of(base, **hub)):
        return load_checkpoint(base, **placement, **hub)
    tower = fields.get("mm_vision_tower")
    if not tower:
        raise CheckpointError(f"{path}: its config.json names no mm_vision_tower")
    settings = {key: fields[key] for key in _CONNECTOR_FIELDS if key in fields}
    settings.setdefault("mm_projector_type", "linear")
    return build_from_parts(base, find_tower(tower, path) or tower, **settings, **placement, **hub)
