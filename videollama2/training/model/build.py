"""Builds the model to train from the flags: loads its parts, and chooses and lists which of them learn."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from videollama2.checkpoints import build_from_parts, load_checkpoint, load_connector, load_encoders, resolve_name
from videollama2.checkpoints.files import ADAPTER_CONFIG, AUDIO_CONNECTOR_FILES, CONNECTOR_FILES, FULL_WEIGHTS
from videollama2.checkpoints.placement import check_attention
from videollama2.checkpoints.quantisation import quantization_config
from videollama2.config import is_videollama2
from videollama2.errors import CheckpointNotFoundError, ConfigError
from videollama2.flat_form import FLAT_MODEL_TYPES
from videollama2.hub import find_file, first_file, read_config
from videollama2.model.encoders import vision_encoder
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.packed_attention import keep_records_apart
from videollama2.processing import VideoLlama2Processor
from videollama2.training.distributed.fully_shard import shard
from videollama2.training.distributed.sharding import encode_uniformly, weights_of, whole_weights
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.model.audio import new_ears, set_hearing
from videollama2.training.model.compiled import compile_layers
from videollama2.training.model.frozen_features import use_features
from videollama2.training.model.kernels import use_liger_kernels
from videollama2.training.model.lora import add_lora, fused_experts
from videollama2.training.model.weights_file import weights_file

NEW_CONNECTOR = "linear"
"""Connector of a new model if no flag names one (the published default)."""
NEW_SELECT_LAYER = -2
"""Encoder layer that a new model reads if no flag names one; all published recipes pass this value."""


def build_model(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Return the model with its weights, ready to train, and its processor.

    Raises:
        ConfigError: a flag contradicts the configuration in ``model_path``.
        CheckpointError: weights are missing or do not fit.
        MissingDependencyError: LoRA is enabled without peft installed, or quantisation without bitsandbytes.
    """
    model, processor = open_model(model_args, data_args, training_args)
    if training_args.bits != 16 and (left := fused_experts(model)):
        warnings.warn(
            f"--bits {training_args.bits} quantises only linear layers: {left:,} weights of fused experts keep their "
            "precision",
            stacklevel=2,
        )
    model.config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    if model.config.hears:
        model.config.tune_mm_mlp_adapter_a = model_args.tune_mm_mlp_adapter_a
    if data_args.packing is not None:
        keep_records_apart(model.get_decoder(), training_args.model_max_length)
    # The order matters: adapters are put on first, since they decide what of the decoder learns; then parts are chosen;
    # only what is frozen by then may lose precision; and the weights are cut into slices last.
    if training_args.lora_enable:
        add_lora(model, training_args)
    choose_trainable(model, model_args, training_args)
    if training_args.bf16 and not (training_args.deepspeed or training_args.fully_shard):
        _cast_frozen(model, torch.bfloat16)
    if data_args.features:
        use_features(model, processor, data_args, training_args)
    _choose_computation(model, training_args)
    return model, processor


def open_model(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments, decodes: bool = True
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Return the model with its weights and its processor, before anything is prepared for learning.

    Args:
        decodes: whether the weights of the decoder and the connectors are read; otherwise these parts stay on the
            ``meta`` device, unless the checkpoint is quantised.

    Raises:
        ConfigError: a flag contradicts the configuration in ``model_path``.
        CheckpointError: weights are missing or do not fit.
    """
    path = resolve_name(model_args.model_path)
    load = _load_whole if is_videollama2(_read_config(path)) else _load_parts
    _check_is_whole_or_bare(path)
    with whole_weights(training_args):
        model, processor = load(path, model_args, _loading_options(model_args, training_args), decodes)
        _check_model_type(model_args.model_type, model.config.text_config.model_type, path)
        _set_media(model, processor, data_args)
        if model_args.pretrain_mm_mlp_adapter:
            load_connector(model, weights_file("pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter))
        set_hearing(model, model_args, data_args, path)
    if processor.transform is not None:
        model.model.pixel_table = torch.from_numpy(processor.transform.table)
    return model, processor


def _choose_computation(model: VideoLlama2ForConditionalGeneration, training_args: TrainingArguments) -> None:
    """Choose kernels and compilation, then how processes share the work; the order matters."""
    if training_args.use_liger_kernel:
        use_liger_kernels(model)
    if training_args.torch_compile:
        compile_layers(model, training_args)
    if training_args.deepspeed or training_args.fully_shard:
        encode_uniformly(model)
    if training_args.fully_shard:
        shard(model, training_args)


def _loading_options(model_args: ModelArguments, training_args: TrainingArguments) -> dict[str, Any]:
    """Return the options with which weights are loaded.

    Weights are loaded in float32, because those that learn need its precision. DeepSpeed keeps a float32 copy itself,
    so under it bfloat16 is enough.
    """
    half = training_args.bf16 and training_args.deepspeed
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    computed_in = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
    if model_args.attn_implementation is not None:
        check_attention(model_args.attn_implementation)
        options["attn_implementation"] = model_args.attn_implementation
    quantization = quantization_config(
        training_args.bits, computed_in, training_args.double_quant, training_args.quant_type
    )
    if quantization is not None:
        options["quantization_config"] = quantization
        options["device_map"] = {"": training_args.device}
    return options


def _cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen float32 parameters to the dtype of the computation: they need no more precision than that."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def base_name(model_path: str) -> str:
    """Return the name by which saved adapters and connectors refer to the model they belong to.

    A folder is named by its absolute path, so that it is found from any working directory. Other names (of the hub, of
    the built-in model) mean the same on every machine and are not changed.
    """
    path = Path(model_path)
    return str(path.resolve()) if path.is_dir() else model_path


def _check_is_whole_or_bare(path: str) -> None:
    """Raise ConfigError, with a command that helps, if a folder holds only a LoRA adapter or a connector."""
    if first_file(path, FULL_WEIGHTS) is not None:
        return
    if find_file(path, ADAPTER_CONFIG) is not None:
        merged = f"{path.rstrip('/')}-merged"
        raise ConfigError(
            f"--model_path {path} is a LoRA adapter; merge it into its base with `videollama2 merge {path} {merged}`, "
            f"then give --model_path {merged}"
        )
    flags = {"pretrain_mm_mlp_adapter": CONNECTOR_FILES, "pretrain_mm_mlp_adapter_a": AUDIO_CONNECTOR_FILES}
    found = {flag: file for flag, names in flags.items() if (file := first_file(path, names)) is not None}
    if found:
        base = read_config(path).get("_name_or_path") or "ITS_LANGUAGE_MODEL"
        named = " ".join(f"--{flag} {file}" for flag, file in found.items())
        raise ConfigError(f"--model_path {path} holds only a connector; give --model_path {base} {named}")


def _read_config(path: str) -> dict[str, Any]:
    try:
        return read_config(path)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"--model_path {path} is neither a folder with a config.json nor the name of a hub repository that can be "
            "reached"
        ) from error


def _load_parts(
    path: str, model_args: ModelArguments, options: dict[str, Any], decodes: bool
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    if not model_args.vision_tower and not model_args.audio_tower:
        raise ConfigError(
            f"--model_path {path} is a language model without an encoder; give --vision_tower, or --audio_tower for a "
            "model that hears and does not see"
        )
    layer = model_args.mm_vision_select_layer
    return build_from_parts(
        path,
        model_args.vision_tower,
        mm_projector_type=model_args.mm_projector_type or NEW_CONNECTOR,
        mm_vision_select_layer=NEW_SELECT_LAYER if layer is None else layer,
        mm_vision_select_feature=model_args.mm_vision_select_feature or "patch",
        decodes=decodes,
        ears=new_ears(model_args) if model_args.audio_tower else None,
        **options,
    )


def _load_whole(
    path: str, model_args: ModelArguments, options: dict[str, Any], decodes: bool
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    # Of files with quantised weights, only whole models can be read.
    reads_all = decodes or "quantization_config" in _read_config(path)
    model, processor = (load_checkpoint if reads_all else load_encoders)(path, **options)
    fixed = {
        "vision_tower": "mm_vision_tower",
        "mm_projector_type": "mm_projector_type",
        "mm_vision_select_layer": "mm_vision_select_layer",
        "mm_vision_select_feature": "mm_vision_select_feature",
    }
    for flag, name in fixed.items():
        asked, found = getattr(model_args, flag), getattr(model.config, name)
        if asked is not None and asked != found:
            raise ConfigError(
                f"--{flag} {asked} contradicts --model_path {path}, a whole model whose {name} is {found!r}"
            )
    return model, processor


def _check_model_type(asked: str | None, decoder: str, path: str) -> None:
    if asked is not None and FLAT_MODEL_TYPES[asked] != decoder:
        raise ConfigError(
            f"--model_type {asked} stands for a {FLAT_MODEL_TYPES[asked]!r} decoder, but {path} holds a {decoder!r} one"
        )


def _set_media(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, data_args: DataArguments
) -> None:
    """Write frame count and image shape into the configuration, where training, saving and inference read them."""
    config = model.config
    if data_args.num_frames is not None:
        config.num_frames = data_args.num_frames
    shape = data_args.image_aspect_ratio or config.image_aspect_ratio or "square"
    config.image_aspect_ratio = shape
    config.mm_inference_aspect_ratio = "pad" if shape == "pad" else None
    processor.model_config = config


# ------------------------------------------------------------------------------------------------ what learns


def choose_trainable(
    model: VideoLlama2ForConditionalGeneration, model_args: ModelArguments, training_args: TrainingArguments
) -> None:
    """Set ``requires_grad`` of every parameter.

    A model that hears keeps its audio projector and encoder as they are, unless a ``--tune_*`` flag names them: in a
    run without sound, weight decay alone would change them.

    Raises:
        ConfigError: nothing would learn, or ``--freeze_regex`` would freeze nothing.
    """
    alone = model_args.parts_alone
    inner, adapted = model.model, training_args.adapted_parts
    if "language_model" not in adapted:  # adding LoRA has already chosen what learns in the parts that it adapts
        learns = not (model_args.freeze_backbone or alone or adapted)
        inner.language_model.requires_grad_(learns)
        model.lm_head.requires_grad_(learns)
    connectors_learn = not training_args.freeze_mm_mlp_adapter
    if inner.vision_tower is not None and inner.mm_projector is not None:
        inner.mm_projector.requires_grad_(connectors_learn and (not alone or "mm_projector" in alone))
        if "vision_tower" not in adapted:
            inner.vision_tower.requires_grad_(not model_args.freeze_vision_tower)
        _freeze_unused_layers(inner.vision_tower, model.config.mm_vision_select_layer)
    # The published stages name what learns by three flags: the projector alone, projector and encoder, or the whole
    # model with both.
    if inner.audio_tower is not None and inner.mm_projector_a is not None:
        tunes_projector = model_args.tune_mm_mlp_adapter_a or model_args.tune_adapter_llm
        inner.mm_projector_a.requires_grad_(connectors_learn and tunes_projector)
        if "audio_tower" not in adapted:
            inner.audio_tower.requires_grad_(model_args.tune_audio_tower)
        elif inner.audio_tower.predictor is not None:
            inner.audio_tower.predictor.requires_grad_(False)  # --lora_bias would let its bias learn
    if model_args.freeze_regex is not None:
        _freeze_matching(model, model_args.freeze_regex)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("nothing would learn: the --freeze_* and --tune_* flags freeze every part of the model")


def _freeze_matching(model: VideoLlama2ForConditionalGeneration, pattern: str) -> None:
    """Freeze the parameters whose whole names match; tied parameters have a name each and freeze together."""
    named = model.named_parameters(remove_duplicate=False)
    learning = {name: parameter for name, parameter in named if parameter.requires_grad}
    try:
        frozen = [name for name in learning if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"--freeze_regex {pattern!r} is not a regular expression: {error}") from error
    if not frozen:
        example = f"such as {min(learning)}" if learning else "and other flags freeze all of them"
        raise ConfigError(f"--freeze_regex {pattern!r} matches the name of no parameter that learns, {example}")
    for name in frozen:
        learning[name].requires_grad_(False)


def _freeze_unused_layers(tower: PreTrainedModel, select_layer: int) -> None:
    """Freeze the layers that do not run: distributed runs would wait for gradients of those above the selected one."""
    modules = vision_encoder(tower.config.model_type).runs(tower, select_layer)
    running = {id(parameter) for module in modules for parameter in module.parameters()}
    for parameter in tower.parameters():
        if id(parameter) not in running:
            parameter.requires_grad_(False)


def describe_trainable(model: VideoLlama2ForConditionalGeneration) -> str:
    """Return a table with the number of parameters of each part, and how many of them learn."""
    names = ("vision_tower", "mm_projector", "audio_tower", "mm_projector_a", "language_model")
    parts = {name: part for name in names if (part := getattr(model.model, name)) is not None}
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        parts["lm_head"] = model.lm_head
    rows = [f"{'part':<16}{'parameters':>16}{'learning':>16}"]
    totals = [0, 0]
    for name, module in parts.items():
        # weights_of counts the weights behind packed 4-bit bytes and slices, not the elements of their tensors.
        count = sum(weights_of(p) for p in module.parameters())
        learning = sum(weights_of(p) for p in module.parameters() if p.requires_grad)
        totals = [totals[0] + count, totals[1] + learning]
        rows.append(f"{name:<16}{count:>16,}{learning:>16,}")
    rows.append(f"{'total':<16}{totals[0]:>16,}{totals[1]:>16,}")
    return "\n".join(rows)
