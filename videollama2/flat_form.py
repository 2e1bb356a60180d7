"""Converts the flat form of ``config.json``, in which the published checkpoints describe themselves.

The decoder's fields are on the same level as the ``mm_*`` fields, ``model_type`` determines the decoder, and the
encoders are only named (``mm_vision_tower``, ``mm_audio_tower``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from videollama2.errors import ConfigError

if TYPE_CHECKING:
    from videollama2.config import VideoLlama2Config

FLAT_MODEL_TYPES = {
    "videollama2": "mistral",
    "videollama2_llama": "llama",
    "videollama2_mistral": "mistral",
    "videollama2_mixtral": "mixtral",
    "videollama2_qwen2": "qwen2",
}
"""Published ``model_type`` with the ``model_type`` of its decoder."""

# Fields of the flat form that belong to this class. All others describe the decoder.
_OWN_FIELDS = ("num_frames", "image_aspect_ratio", "hidden_size_a")
TOKEN_ID_FIELDS = ("image_token_id", "video_token_id", "audio_token_id")
_OWN_PREFIXES = ("mm_", "use_mm_", "tune_mm_", "freeze_mm_")
_TOP_FIELDS = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "tie_word_embeddings",
    "quantization_config",
)


def split_flat(model_type: str, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split flat fields into (decoder fields with their ``model_type``, fields that remain at the top level)."""
    if model_type not in FLAT_MODEL_TYPES:
        raise ConfigError(f"model_type {model_type!r} is not one of {', '.join(FLAT_MODEL_TYPES)}")
    top = {
        key: value
        for key, value in fields.items()
        if key in _TOP_FIELDS + _OWN_FIELDS + TOKEN_ID_FIELDS or key.startswith(_OWN_PREFIXES)
    }
    text = {key: value for key, value in fields.items() if key not in top or key == "tie_word_embeddings"}
    text["model_type"] = FLAT_MODEL_TYPES[model_type]
    for key in ("name_or_path", "_name_or_path", "attn_implementation"):
        if key in text:
            top[key] = text.pop(key)
    # The generation utilities of all transformers versions read token ids from the top level.
    top.update({key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text})
    return text, top


def flat_fields(config: VideoLlama2Config) -> dict[str, Any]:
    """Return a configuration in the flat form, for the published code and the transformers 4 that it uses."""
    flat = _decoder_fields(config.text_config)
    own = config.to_dict()
    flat.update((key, value) for key, value in own.items() if key in _OWN_FIELDS or key.startswith(_OWN_PREFIXES))
    class_name = {"qwen2": "Qwen2"}.get(config.text_config.model_type, config.text_config.model_type.capitalize())
    flat.update(
        model_type=config.flat_model_type,
        architectures=[f"Videollama2{class_name}ForCausalLM"],
        use_mm_proj=True,
        tie_word_embeddings=config.tie_word_embeddings,
        torch_dtype=str(config.dtype or "float32").removeprefix("torch."),
        transformers_version="4.40.0",
    )
    if config.sees:
        flat["mm_hidden_size"] = config.mm_hidden_size
    if config.hears:
        # The published code builds its audio encoder from default values and ignores audio_config; this package
        # reads it.
        flat.update(
            mm_audio_tower=config.mm_audio_tower or "audio_tower.bin",
            mm_hidden_size_a=config.mm_hidden_size_a,
            hidden_size_a=config.hidden_size,
            audio_config=config.hearing.to_diff_dict(),
        )
    else:
        flat.pop("mm_projector_a_type")
    return flat


def _decoder_fields(decoder: PreTrainedConfig) -> dict[str, Any]:
    """Return the decoder's fields as transformers 4 reads them.

    ``rope_theta`` is written separately: transformers 5 keeps it in ``rope_parameters``, which version 4 ignores in
    favour of a silent default of 10000.
    """
    flat = decoder.to_dict()
    rope = flat.pop("rope_parameters", None) or {}
    flat["rope_theta"] = float(rope.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {"type": rope["rope_type"], **{k: v for k, v in rope.items() if k != "rope_theta"}}
    generic = PreTrainedConfig().to_dict().keys() - {"bos_token_id", "eos_token_id", "pad_token_id"}
    for key in (*generic, "layer_types"):
        flat.pop(key, None)
    # Version 4 assumes None for all missing fields except the sliding window, for which its default is a number.
    flat = {key: value for key, value in flat.items() if value is not None or key == "sliding_window"}
    if flat.get("use_sliding_window") is False:
        flat.pop("sliding_window")  # None means "off" here; the published code needs a number and obeys the switch
    return flat
