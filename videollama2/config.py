"""``VideoLlama2Config``: one configuration class for all decoders, encoders and connectors.

Two forms of ``config.json`` are supported:

* nested, as saved by this package: ``text_config``, ``vision_config``, ``audio_config`` and the connector fields;
* flat, as published: the decoder's fields are on the same level as the ``mm_*`` fields, ``model_type`` determines the
  decoder, and the encoders are only named (``mm_vision_tower``, ``mm_audio_tower``).

A model has a vision encoder, an audio encoder, or both.

Field names are the published ones. ``AutoConfig`` opens both forms once :mod:`videollama2.auto` is imported.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from videollama2.audio_config import AudioConfig
from videollama2.config_bounds import check_sizes, is_whole, quoted
from videollama2.constants import MAX_NUM_FRAMES, NUM_FRAMES
from videollama2.errors import ConfigError
from videollama2.hub import OPTIONS_OF_ANY_REPOSITORY
from videollama2.model.encoders import KNOWN_TOWERS, known_vision_config, vision_encoder, vision_fields
from videollama2.towers import complete_flat_dict

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
_TOKEN_ID_FIELDS = ("image_token_id", "video_token_id", "audio_token_id")
_OWN_PREFIXES = ("mm_", "use_mm_", "tune_mm_", "freeze_mm_")
_TOP_FIELDS = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "tie_word_embeddings",
    "quantization_config",
)


class VideoLlama2Config(PreTrainedConfig):
    """Configuration of :class:`videollama2.model.VideoLlama2ForConditionalGeneration`.

    Args:
        text_config: decoder configuration (object, or dict with ``model_type``). When missing, the remaining keyword
            arguments are read as the flat published form.
        vision_config: encoder configuration (object, or dict with ``model_type`` CLIP or SigLIP vision); None for a
            model without a vision encoder.
        audio_config: configuration of the audio encoder and its clips (object or dict). With None, the model has the
            published encoder if ``mm_audio_tower`` is given, and otherwise no audio encoder.
        mm_projector_type: connector name, see :data:`videollama2.model.connectors.CONNECTORS`.
        mm_projector_a_type: audio projector, see :func:`videollama2.model.connectors.audio.build_audio_projector`.
        mm_vision_tower, mm_audio_tower: name or path from which the encoders came; kept for the published form.
        mm_vision_select_layer: index into the encoder's hidden states (0 is the embedding), may be negative.
        mm_vision_select_feature: ``patch`` (drops the class token) or ``cls_patch``.
        num_frames: frames per video; a still image counts as this many equal frames.
        image_aspect_ratio: ``pad`` or None, the preparation of the training images (published field).
        image_token_id, video_token_id, audio_token_id: ids of the placeholders, one per token of a medium. The default
            is the ids after the vocabulary, which no text can produce.

    Raises:
        ConfigError: the ``model_type`` is unknown, an encoder is missing or unsupported, or a value is out of range.
    """

    model_type = "videollama2"
    # transformers from 5.21 on derives this from other fields if a class does not set it.
    sub_configs = {  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "audio_config": AudioConfig,
    }
    keys_to_ignore_at_inference = ["past_key_values"]
    # There is no default decoder or encoder. transformers up to 5.20 would otherwise build a default for comparison.
    has_no_defaults_at_init = True

    def __init__(
        self,
        text_config: PreTrainedConfig | dict | None = None,
        vision_config: PreTrainedConfig | dict | None = None,
        mm_projector_type: str = "linear",
        mm_vision_tower: str | None = None,
        mm_vision_select_layer: int = -2,
        mm_vision_select_feature: str = "patch",
        num_frames: int | None = None,
        image_aspect_ratio: str | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        audio_config: AudioConfig | dict | None = None,
        mm_audio_tower: str | None = None,
        mm_projector_a_type: str = "mlp2x_gelu",
        audio_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        model_type = kwargs.pop("model_type", self.model_type)
        if text_config is None:
            text_config, kwargs = _split_flat(model_type, kwargs)
        if not isinstance(mm_vision_tower, str | None):
            raise ConfigError(f"mm_vision_tower must be a name or path, got {quoted(mm_vision_tower)}")
        if vision_config is None:
            vision_config = known_vision_config(mm_vision_tower)
        self.text_config = as_config("text_config", text_config)
        self.audio_config = as_audio_config(audio_config, mm_audio_tower)
        is_blind = vision_config is None and mm_vision_tower is None and self.audio_config is not None
        self.vision_config = None if is_blind else _as_vision_config(vision_config)
        self.mm_projector_type = mm_projector_type
        self.mm_vision_tower = mm_vision_tower
        self.mm_audio_tower = mm_audio_tower
        self.mm_projector_a_type = mm_projector_a_type
        self.mm_vision_select_layer = mm_vision_select_layer
        self.mm_vision_select_feature = mm_vision_select_feature
        self.num_frames = NUM_FRAMES if num_frames is None else num_frames
        self.image_aspect_ratio = image_aspect_ratio
        vocab_size = self.text_config.vocab_size
        self.image_token_id = vocab_size if image_token_id is None else image_token_id
        self.video_token_id = vocab_size + 1 if video_token_id is None else video_token_id
        self.audio_token_id = vocab_size + 2 if audio_token_id is None else audio_token_id
        # The published form has copies of the widths of encoders and decoder, which are properties here.
        for name in ("mm_hidden_size", "mm_hidden_size_a", "hidden_size_a"):
            kwargs.pop(name, None)
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        super().__init__(**kwargs)
        self._check()

    @property
    def mm_hidden_size(self) -> int:
        """Width of the vision encoder's features (published field)."""
        return self._sight.hidden_size

    @property
    def mm_hidden_size_a(self) -> int:
        """Width of the audio encoder's features (published field)."""
        return self.hearing.encoder_embed_dim

    @property
    def _sight(self) -> Any:
        if self.vision_config is None:
            raise ConfigError("this model has no vision encoder")
        return self.vision_config

    @property
    def hearing(self) -> AudioConfig:
        """The configuration of the audio encoder; raises ConfigError if there is none."""
        if self.audio_config is None:
            raise ConfigError("this model has no audio encoder")
        return self.audio_config

    @property
    def sees(self) -> bool:
        """Whether there is a vision encoder."""
        return self.vision_config is not None

    @property
    def hears(self) -> bool:
        """Whether there is an audio encoder."""
        return self.audio_config is not None

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.text_config.hidden_size

    @property
    def parts(self) -> list[PreTrainedConfig]:
        """The configuration itself and those of the model's parts."""
        return [part for part in (self, self.text_config, self.vision_config, self.audio_config) if part is not None]

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def patches_per_side(self) -> int:
        return self._sight.image_size // self._sight.patch_size

    @property
    def keeps_class_token(self) -> bool:
        """Whether the connector receives the encoder's class token, as one feature in addition to the patches."""
        has_one = self.vision_config is not None and vision_encoder(self.vision_config.model_type).has_class_token
        return has_one and self.mm_vision_select_feature == "cls_patch"

    @property
    def flat_model_type(self) -> str:
        """The published ``model_type`` of this model's decoder."""
        return f"videollama2_{self.text_config.model_type}"

    @property
    def placeholder_ids(self) -> tuple[int, int, int]:
        """Ids of the placeholders of images, videos and sounds."""
        return self.image_token_id, self.video_token_id, self.audio_token_id

    def move_placeholders(self, old_vocab_size: int) -> None:
        """Keep placeholder ids outside the vocabulary after its size has changed.

        Ids beyond the end of the old vocabulary keep their distance to the end; ids within it are unchanged.
        """
        for name in _TOKEN_ID_FIELDS:
            if getattr(self, name) >= old_vocab_size:
                setattr(self, name, getattr(self, name) + self.vocab_size - old_vocab_size)

    def _check(self) -> None:
        if not is_whole(self.num_frames, 1, MAX_NUM_FRAMES):
            raise ConfigError(
                f"num_frames must be a whole number from 1 to {MAX_NUM_FRAMES}, got {quoted(self.num_frames)}"
            )
        for name in _TOKEN_ID_FIELDS:
            if not is_whole(getattr(self, name), 0, 1 << 31):
                raise ConfigError(f"{name} must be the id of a token, got {quoted(getattr(self, name))}")
        if self.mm_vision_select_feature not in ("patch", "cls_patch"):
            raise ConfigError(
                f"mm_vision_select_feature must be 'patch' or 'cls_patch', got {quoted(self.mm_vision_select_feature)}"
            )
        if not isinstance(self.mm_vision_select_layer, int):
            raise ConfigError(f"mm_vision_select_layer must be an integer, got {quoted(self.mm_vision_select_layer)}")
        for name in ("mm_projector_type", "mm_projector_a_type"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a name, got {quoted(getattr(self, name))}")
        if not isinstance(self.image_aspect_ratio, str | None):
            raise ConfigError(f"image_aspect_ratio must be a name, got {quoted(self.image_aspect_ratio)}")
        if self.vision_config is None:
            return
        if self.vision_config.patch_size > self.vision_config.image_size:
            raise ConfigError(
                f"vision_config: patch_size {self.vision_config.patch_size} is larger than image_size "
                f"{self.vision_config.image_size}"
            )
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.mm_vision_select_layer <= layers:
            raise ConfigError(
                f"mm_vision_select_layer {self.mm_vision_select_layer} is outside the {layers + 1} hidden states "
                f"of the vision encoder"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> VideoLlama2Config:
        """Build the configuration as in transformers. A flat dict that names an encoder's folder is completed from it.

        The folder is searched as given, then relative to the checkpoint (its own folder and the two above).
        """
        config_dict = complete_flat_dict(config_dict, kwargs.get("name_or_path") or config_dict.get("_name_or_path"))
        # The published model types are aliases of one class, and a model is saved in the nested form of that class.
        config = super(VideoLlama2Config, VideoLlama2Config).from_dict(config_dict, **kwargs)
        return cast("VideoLlama2Config", config)

    # The options of access to the hub are passed on by name.
    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> VideoLlama2Config:
        hub = {key: kwargs[key] for key in OPTIONS_OF_ANY_REPOSITORY if key in kwargs}
        try:
            config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        except RecursionError as error:
            raise ConfigError(f"{pretrained_model_name_or_path}/config.json is nested too deep") from error
        if not config_dict.get("model_type"):
            raise ConfigError(f"{pretrained_model_name_or_path}/config.json names no model_type")
        config_dict = complete_flat_dict(config_dict, pretrained_model_name_or_path, **hub)
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return cls.from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without ``auto_map``, which is true only of a folder with code beside it."""
        fields = super().to_dict()
        fields.pop("auto_map", None)
        return fields

    def to_flat_dict(self) -> dict[str, Any]:
        """Return the flat published form for the published code, which uses transformers 4.

        ``rope_theta`` is written separately: transformers 5 keeps it in ``rope_parameters``, which version 4 ignores in
        favour of a silent default of 10000.
        """
        flat = self.text_config.to_dict()
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
        own = {
            key: value for key, value in self.to_dict().items() if key in _OWN_FIELDS or key.startswith(_OWN_PREFIXES)
        }
        class_name = {"qwen2": "Qwen2"}.get(self.text_config.model_type, self.text_config.model_type.capitalize())
        flat.update(own)
        flat.update(
            model_type=self.flat_model_type,
            architectures=[f"Videollama2{class_name}ForCausalLM"],
            use_mm_proj=True,
            tie_word_embeddings=self.tie_word_embeddings,
            torch_dtype=str(self.dtype or "float32").removeprefix("torch."),
            transformers_version="4.40.0",
        )
        if self.sees:
            flat["mm_hidden_size"] = self.mm_hidden_size
        if self.hears:
            # The published code builds its audio encoder from default values and ignores audio_config; this package
            # reads it.
            flat.update(
                mm_audio_tower=self.mm_audio_tower or "audio_tower.bin",
                mm_hidden_size_a=self.mm_hidden_size_a,
                hidden_size_a=self.hidden_size,
                audio_config=self.hearing.to_diff_dict(),
            )
        else:
            flat.pop("mm_projector_a_type")
        return flat


def _flat_alias(model_type: str) -> type[VideoLlama2Config]:
    """Return a subclass that differs only in ``model_type``, since AutoConfig needs one class per registered name."""
    return type(f"VideoLlama2Config_{model_type}", (VideoLlama2Config,), {"model_type": model_type})


FLAT_CONFIG_CLASSES = {name: _flat_alias(name) for name in FLAT_MODEL_TYPES if name != "videollama2"}


def _split_flat(model_type: str, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split flat fields into (decoder fields with their ``model_type``, fields that remain at the top level)."""
    if model_type not in FLAT_MODEL_TYPES:
        raise ConfigError(f"model_type {model_type!r} is not one of {', '.join(FLAT_MODEL_TYPES)}")
    top = {
        key: value
        for key, value in fields.items()
        if key in _TOP_FIELDS + _OWN_FIELDS + _TOKEN_ID_FIELDS or key.startswith(_OWN_PREFIXES)
    }
    text = {key: value for key, value in fields.items() if key not in top or key == "tie_word_embeddings"}
    text["model_type"] = FLAT_MODEL_TYPES[model_type]
    for key in ("name_or_path", "_name_or_path", "attn_implementation"):
        if key in text:
            top[key] = text.pop(key)
    # The generation utilities of all transformers versions read token ids from the top level.
    top.update({key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text})
    return text, top


def as_config(name: str, value: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Return a part's configuration from its fields, using a class of transformers. Code in a checkpoint is never run.

    Args:
        name: name of the field or file, for error messages.

    Raises:
        ConfigError: this version of transformers does not know the ``model_type``, or there is none.
    """
    if isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict) or "model_type" not in value:
        raise ConfigError(f"{name} must be a configuration or a dict with 'model_type', got {type(value).__name__}")
    check_sizes(name, value)
    fields = deepcopy(value)
    model_type = fields.pop("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"{name}: this transformers does not know the model_type {quoted(model_type)}")
    return CONFIG_MAPPING[model_type](**fields)


def as_audio_config(value: AudioConfig | dict | None, tower: str | None = None) -> AudioConfig | None:
    """Return the configuration of an audio encoder from its fields; without any, the published one if ``tower`` is set.

    Raises:
        ConfigError: a field is out of range.
    """
    if value is None:
        return AudioConfig() if tower else None
    if isinstance(value, AudioConfig):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"audio_config must be a configuration or a dict, got {type(value).__name__}")
    check_sizes("audio_config", value)
    return AudioConfig(**{name: deepcopy(field) for name, field in value.items() if name != "model_type"})


def _as_vision_config(value: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    if value is None:
        raise ConfigError(
            "the configuration names no vision encoder that can be found: set vision_config, or mm_vision_tower to a "
            f"folder with a config.json or to one of {', '.join(KNOWN_TOWERS)}"
        )
    config = as_config("vision_config", vision_fields(value) if isinstance(value, dict) else value)
    vision_encoder(config.model_type)
    return config


def is_videollama2(fields: dict[str, Any]) -> bool:
    """Return whether a ``config.json``, of either form, describes a VideoLLaMA 2 model."""
    return str(fields.get("model_type", "")).startswith(VideoLlama2Config.model_type)
