"""Weights -> model + processor: full checkpoints, a connector on a base model, LoRA folders, 8 and 4 bits.

What a folder is, is told by the files in it, never by its name. Every weight is accounted for: anything missing,
surplus or of another shape is an error that lists the names.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import cached_file

import videollama2.auto  # noqa: F401 - registers the model types that AutoConfig meets below
from videollama2.config import VideoLlama2Config, find_tower, read_json
from videollama2.constants import TINY_MODEL_NAME
from videollama2.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    MissingDependencyError,
    VideoLlama2Error,
)
from videollama2.model.checkpoints import connector_weights, module_name
from videollama2.model.connectors import build_connector
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, check_loading
from videollama2.processing import VideoLlama2Processor, load_image_processor, load_tokenizer

_TINY_FOLDER = Path(__file__).parent / "assets" / TINY_MODEL_NAME
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
_CONNECTOR_FIELDS = (
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "num_frames",
    "image_aspect_ratio",
    "mm_inference_aspect_ratio",
)
# Quantising them saves little and costs accuracy; the published code quantised the connector and could not load it.
_NOT_QUANTISED = ["model.vision_tower", "model.mm_projector", "lm_head"]

# What the readers of weight files raise on a damaged, foreign or dangerous file.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)


# ---------------------------------------------------------------------------------------- device and numbers


def default_device() -> str:
    """``cuda``, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float16; float32 on a CPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.float32
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.float16 if kind == "mps" else torch.bfloat16


def _as_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    if isinstance(dtype, torch.dtype):
        return dtype
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ConfigError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
    return value


def _check_device(name: str) -> str:
    """Raise ConfigError for a device that is not there, before gigabytes of weights are read."""
    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return name


def _check_attention(name: str) -> None:
    if name == "flash_attention_2":
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                "attn_implementation 'flash_attention_2' needs the package flash-attn: "
                "pip install flash-attn --no-build-isolation"
            ) from error


def _quantization(load_8bit: bool, load_4bit: bool, dtype: torch.dtype) -> Any:
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ConfigError("load_8bit and load_4bit exclude each other")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "loading in 8 or 4 bits needs the package bitsandbytes: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=_NOT_QUANTISED,
    )


# --------------------------------------------------------------------------------------------- what is where


def resolve_name(name_or_path: str | Path) -> str:
    """The name of the built-in model -> its folder; anything else as it is."""
    name = str(name_or_path)
    return str(_TINY_FOLDER) if name == TINY_MODEL_NAME and not Path(name).exists() else name


def _file(name_or_path: str, filename: str, **hub: Any) -> Path | None:
    """A checkpoint's file, local or from the hub; None where the repository has none.

    Raises:
        CheckpointNotFoundError: no such folder, and no such hub repository within reach.
    """
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    if Path(name_or_path).exists():
        raise CheckpointNotFoundError(f"{name_or_path} is a file; a checkpoint is a folder or a hub name")
    try:
        found = cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(
            f"{name_or_path} is neither a folder nor a model repository that can be reached "
            f"({_first_line(error)})"
        ) from error
    return None if found is None else Path(found)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _config_dict(name_or_path: str, **hub: Any) -> dict[str, Any]:
    path = _file(name_or_path, "config.json", **hub)
    if path is None:
        raise CheckpointError(f"{name_or_path} holds no config.json, so it is no checkpoint")
    return read_json(path)


def _is_videollama2(config: dict[str, Any]) -> bool:
    return str(config.get("model_type", "")).startswith("videollama2")


_FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CONNECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")


def checkpoint_kind(name_or_path: str, **hub: Any) -> str:
    """``full``, ``connector`` or ``lora``, by the files it holds.

    Raises:
        CheckpointNotFoundError: nothing there.
        CheckpointError: none of the three.
    """
    if _file(name_or_path, "adapter_config.json", **hub) is not None:
        return "lora"
    if any(_file(name_or_path, name, **hub) is not None for name in _FULL_WEIGHTS):
        return "full"
    if any(_file(name_or_path, name, **hub) is not None for name in _CONNECTOR_FILES):
        return "connector"
    if not Path(name_or_path).is_dir() and _file(name_or_path, "config.json", **hub) is None:
        raise CheckpointNotFoundError(
            f"{name_or_path} is no folder, and no model repository of that name is in the hub's cache or within reach"
        )
    raise CheckpointError(
        f"{name_or_path} holds no weights: expected model.safetensors (or its shards), adapter_config.json "
        f"or {' / '.join(_CONNECTOR_FILES)}"
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors`` or ``.bin`` file; pickles are read with ``weights_only=True``.

    Raises:
        CheckpointError: the file is damaged, or a pickle holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({_first_line(error)})") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors")
    return tensors


# -------------------------------------------------------------------------------------------------- loading


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    use_flash_attn: bool = False,
    **hub: Any,
) -> tuple[Any, VideoLlama2ForConditionalGeneration, VideoLlama2Processor, int]:
    """Open any checkpoint (published function).

    Args:
        model_path: folder, hub name or ``videollama2-tiny``: a full model, a connector or a LoRA folder.
        model_base: language model under a connector or LoRA folder; default what the folder's config names.
        model_name: accepted for published callers; the kind of checkpoint is told by its files.
        load_8bit, load_4bit: quantise the language model through bitsandbytes.
        device_map: transformers' placement over several devices; default everything on ``device``.
        device: default cuda, else mps, else cpu.
        dtype: default bfloat16 on a GPU that has it, else float16; float32 on CPU.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Returns:
        tokenizer, model in evaluation mode, processor, context length in tokens.

    Raises:
        CheckpointError: what is missing or does not fit, with names. ConfigError: contradictory arguments.
    """
    unknown = set(hub) - set(_HUB_OPTIONS)
    if unknown:
        raise ConfigError(f"load_pretrained_model has no option {', '.join(sorted(unknown))}")
    device = _check_device(str(device or default_device()))
    dtype = _as_dtype(dtype, device)
    attn_implementation = "flash_attention_2" if use_flash_attn else attn_implementation
    _check_attention(attn_implementation)
    path = resolve_name(model_path)
    if path == str(_TINY_FOLDER) and not _TINY_FOLDER.is_dir():
        raise CheckpointNotFoundError(f"{TINY_MODEL_NAME} is not in {_TINY_FOLDER}: the installation is incomplete")
    placement: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    quantization = _quantization(load_8bit, load_4bit, dtype)
    if quantization is not None:
        placement["quantization_config"] = quantization
    placement["device_map"] = device_map if device_map is not None else {"": device}
    kind = checkpoint_kind(path, **hub)
    if kind == "full":
        model, processor = load_checkpoint(path, **placement, **hub)
    elif kind == "connector":
        model, processor = _load_connector_folder(path, model_base, placement, hub)
    else:
        model, processor = _load_lora_folder(path, model_base, placement, hub)
    context = getattr(model.config.text_config, "max_position_embeddings", None) or 2048
    return processor.tokenizer, model.eval(), processor, context


def load_checkpoint(
    path: str | Path, **options: Any
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a full checkpoint, published or own.

    Args:
        path: folder, hub name or ``videollama2-tiny``.
        options: of ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``,
            ``quantization_config``) and of the hub.
    """
    path = resolve_name(path)
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    config_dict = _config_dict(path, **hub)
    if not _is_videollama2(config_dict):
        raise CheckpointError(
            f"{path} is a {config_dict.get('model_type')!r} model, not VideoLLaMA 2; a base language model needs a "
            f"connector: give the connector's folder as model_path and this one as model_base"
        )
    config = _read_config(path, **hub)
    try:
        model = VideoLlama2ForConditionalGeneration.from_pretrained(path, config=config, **options, **hub)
    except VideoLlama2Error:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({_first_line(error)})") from error
    return model, VideoLlama2Processor.from_pretrained(path, config=config, **hub)


def _read_config(path: str, **hub: Any) -> VideoLlama2Config:
    """The checkpoint's configuration; whatever transformers' own checks raise becomes one error that names the file."""
    try:
        return VideoLlama2Config.from_pretrained(path, **hub)
    except VideoLlama2Error:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OSError) as error:
        raise ConfigError(f"{path}/config.json: {_first_line(error)}") from error


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

    Raises:
        CheckpointError: a part is missing, or weights of decoder or encoder do not fit.
    """
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map, **hub}
    decoder = _load_decoder(str(base), quantization_config=quantization_config, **options)
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
    processor = VideoLlama2Processor(load_image_processor(vision_tower, config, **hub), tokenizer, config)
    return model, processor


def _load_decoder(path: str, **options: Any) -> nn.Module:
    hub = {key: options[key] for key in _HUB_OPTIONS if key in options}
    _config_dict(path, **hub)
    try:
        decoder, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except _UNREADABLE as error:
        raise CheckpointError(f"base language model {path}: cannot be read ({_first_line(error)})") from error
    check_loading(info, path)
    return decoder


def _load_tower(path: str, **options: Any) -> nn.Module:
    """The encoder's pretrained weights. Repositories of whole CLIP models hold a text half too, which is left out."""
    hub = {key: options[key] for key in _HUB_OPTIONS if key in options}
    vision = _config_dict(path, **hub)
    model_type = str(vision.get("model_type", ""))
    if model_type in ("clip", "siglip"):
        fields = {k: v for k, v in vision.get("vision_config", {}).items() if k != "model_type"}
        config = AutoConfig.for_model(f"{model_type}_vision_model", **fields)
    elif model_type in ("clip_vision_model", "siglip_vision_model"):
        config = AutoConfig.for_model(model_type, **{k: v for k, v in vision.items() if k != "model_type"})
    else:
        raise ConfigError(f"{path}: vision encoder model_type {model_type!r} is neither CLIP nor SigLIP")
    try:
        tower, info = _tower_class(config).from_pretrained(path, config=config, output_loading_info=True, **options)
    except _UNREADABLE as error:
        raise CheckpointError(f"vision encoder {path}: cannot be read ({_first_line(error)})") from error
    check_loading({**dict(info), "unexpected_keys": []}, path)
    return tower


def _tower_class(config: Any) -> type:
    import transformers

    return {
        "clip_vision_model": transformers.CLIPVisionModel,
        "siglip_vision_model": transformers.SiglipVisionModel,
    }[config.model_type]


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
    wrong = [f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}" for k, v in tensors.items()
             if k in own and own[k].shape != v.shape]  # fmt: skip
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or surplus or wrong:
        raise CheckpointError(
            f"{path}: the weights do not fit {type(module).__name__}; missing: {missing[:8]}, "
            f"unexpected: {surplus[:8]}, of another shape: {wrong[:8]}"
        )
    module.load_state_dict(tensors)


def _first_file(path: str, names: tuple[str, ...], **hub: Any) -> Path | None:
    return next((found for name in names if (found := _file(path, name, **hub)) is not None), None)


def _load_connector_folder(
    path: str, model_base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """First-stage folder: connector weights and a flat config; decoder and encoder are pretrained elsewhere."""
    fields = _config_dict(path, **hub)
    base = str(model_base or fields.get("_name_or_path") or "")
    if not base or Path(base).resolve() == Path(path).resolve():
        raise CheckpointError(f"{path} holds a connector only: name its language model with model_base (--model-base)")
    model, processor = _base_with_connector(path, base, fields, placement, hub)
    load_connector(model, _first_file(path, _CONNECTOR_FILES, **hub))
    return model, processor


def _base_with_connector(
    path: str, base: str, fields: dict[str, Any], placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    if _is_videollama2(_config_dict(base, **hub)):
        return load_checkpoint(base, **placement, **hub)
    tower = fields.get("mm_vision_tower")
    if not tower:
        raise CheckpointError(f"{path}: its config.json names no mm_vision_tower")
    settings = {key: fields[key] for key in _CONNECTOR_FIELDS if key in fields}
    settings.setdefault("mm_projector_type", "linear")
    return build_from_parts(base, find_tower(tower, path) or tower, **settings, **placement, **hub)


# ----------------------------------------------------------------------------------------------------- LoRA


def _load_lora_folder(
    path: str, model_base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """LoRA weights merged into their base, then the other trained weights (connector) put in place."""
    if "quantization_config" in placement:
        raise ConfigError(
            f"{path}: a LoRA folder is merged into its base while loading, which quantised weights do not allow; "
            f"load it without load_8bit / load_4bit, save it, and quantise the merged folder"
        )
    adapter = read_json(_file(path, "adapter_config.json", **hub))
    base = str(model_base or adapter.get("base_model_name_or_path") or "")
    if not base:
        raise CheckpointError(f"{path}: its adapter_config.json names no base model; give model_base (--model-base)")
    fields = _config_dict(path, **hub) if _file(path, "config.json", **hub) else {}
    model, processor = _base_with_connector(path, base, fields, placement, hub)
    weights = _first_file(path, ("adapter_model.safetensors", "adapter_model.bin"), **hub)
    if weights is None:
        raise CheckpointError(f"{path}: has an adapter_config.json but no adapter_model.safetensors or .bin")
    tensors = read_tensors(weights)
    merge_lora(model, tensors, adapter, weights)
    others = _first_file(path, ("non_lora_trainables.safetensors", "non_lora_trainables.bin"), **hub)
    trained = {} if others is None else read_tensors(others)
    if others is not None:
        _load_named(model, trained, others)
    if not _is_videollama2(_config_dict(base, **hub)):
        _check_connector_is_there(model, [*tensors, *trained], path)
    return model, processor


def _check_connector_is_there(model: nn.Module, names: list[str], path: str) -> None:
    """On a bare language model the connector must come from the LoRA folder: what it lacks would stay random."""
    found = set(connector_weights(names).values())
    missing = sorted(set(model.model.mm_projector.state_dict()) - found)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} connector weights are missing (non_lora_trainables.bin): {', '.join(missing[:8])}"
        )


def _module_key(name: str) -> str:
    """Name inside a LoRA file -> name of the parameter in the model."""
    while name.startswith("base_model."):
        name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return module_name(name)


def merge_lora(
    model: nn.Module, tensors: dict[str, torch.Tensor], adapter: dict[str, Any], path: Path
) -> None:
    """Add ``scale * B @ A`` to every adapted weight, in float32.

    Raises:
        CheckpointError: an adapter other than plain LoRA, a weight the model has not, or half of a pair.
    """
    if adapter.get("peft_type", "LORA") != "LORA" or adapter.get("use_dora"):
        raise CheckpointError(f"{path}: only plain LoRA adapters can be merged, this is {adapter.get('peft_type')}")
    if adapter.get("alpha_pattern") or adapter.get("rank_pattern"):
        raise CheckpointError(f"{path}: adapters with alpha_pattern or rank_pattern cannot be merged here")
    rank, alpha = adapter.get("r"), adapter.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: adapter_config.json needs r >= 1 and lora_alpha, got {rank!r} and {alpha!r}")
    scale = alpha / (rank**0.5 if adapter.get("use_rslora") else rank)
    parameters = dict(model.named_parameters())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    rest: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, marker, tail = name.partition(".lora_")
        if not marker:
            rest[name] = tensor
            continue
        if tail.replace(".default", "") not in ("A.weight", "B.weight"):
            raise CheckpointError(f"{path}: {name} is no plain LoRA matrix")
        pairs.setdefault(_module_key(f"{stem}.weight"), {})[tail[0]] = tensor
    for name, pair in pairs.items():
        if name not in parameters or set(pair) != {"A", "B"}:
            raise CheckpointError(f"{path}: LoRA weight {name} has no place in the model, or is half of a pair")
        weight = parameters[name]
        delta = pair["B"].float() @ pair["A"].float() * scale
        delta = delta.T if adapter.get("fan_in_fan_out") else delta
        if delta.shape != weight.shape:
            raise CheckpointError(f"{path}: LoRA weight {name} is {tuple(delta.shape)}, not {tuple(weight.shape)}")
        with torch.no_grad():
            weight.copy_((weight.float() + delta.to(weight.device)).to(weight.dtype))
    _load_named(model, rest, path)


def _load_named(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors, under published or LoRA names, into the model's parameters of those names."""
    own = model.state_dict()
    renamed = {_module_key(name.replace(".base_layer.", ".")): tensor for name, tensor in tensors.items()}
    unknown = sorted(name for name, tensor in renamed.items() if name not in own or own[name].shape != tensor.shape)
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} weights have no place in the model: {', '.join(unknown[:8])}")
    model.load_state_dict(renamed, strict=False)
