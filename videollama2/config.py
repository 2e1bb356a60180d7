"""Defines ``VideoLlama2Config``, one configuration class for all decoders, encoders and connectors.

Two forms of ``config.json`` are supported:

* nested, as saved by this package: ``text_config``, ``vision_config``, ``audio_config`` and the connector fields;
* flat, as published, see :mod:`videollama2.flat_form`.

A model has a vision encoder, an audio encoder, or both.

Field names are the published ones. ``AutoConfig`` opens both forms once :mod:`videollama2.auto` is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig

from videollama2.audio_config import AudioConfig
from videollama2.config_bounds import is_integer_within, quoted
from videollama2.constants import MAX_NUM_FRAMES, NUM_FRAMES
from videollama2.errors import ConfigError
from videollama2.flat_form import FLAT_MODEL_TYPES, TOKEN_ID_FIELDS, flat_fields, split_flat
from videollama2.hub import OPTIONS_OF_ANY_REPOSITORY
from videollama2.model.encoders import known_vision_config, vision_encoder
from videollama2.part_configs import as_audio_config, as_config, as_vision_config
from videollama2.towers import complete_flat_dict


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
            text_config, kwargs = split_flat(model_type, kwargs)
        if not isinstance(mm_vision_tower, str | None):
            raise ConfigError(f"mm_vision_tower must be a name or path, got {quoted(mm_vision_tower)}")
        if vision_config is None:
            vision_config = known_vision_config(mm_vision_tower)
        self.text_config = as_config("text_config", text_config)
        self.audio_config = as_audio_config(audio_config, mm_audio_tower)
        is_blind = vision_config is None and mm_vision_tower is None and self.audio_config is not None
        self.vision_config = None if is_blind else as_vision_config(vision_config)
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
    def still_frames(self) -> int:
        """Number of equal frames that a still image counts as: the model's number of frames (published)."""
        return self.num_frames

    @property
    def mm_hidden_size(self) -> int:
        """Width of the vision encoder's features (published field)."""
        return self.sight.hidden_size

    @property
    def mm_hidden_size_a(self) -> int:
        """Width of the audio encoder's features (published field)."""
        return self.hearing.encoder_embed_dim

    @property
    def sight(self) -> Any:
        """The configuration of the vision encoder; raises ConfigError if there is none."""
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
        return self.sight.image_size // self.sight.patch_size

    @property
    def keeps_class_token(self) -> bool:
        """Whether the connector receives the encoder's class token, as one feature in addition to the patches."""
        has_one = self.vision_config is not None and vision_encoder(self.vision_config.model_type).has_class_token
        return has_one and self.mm_vision_select_feature == "cls_patch"

    @property
    def features_per_frame(self) -> int:
        """Number of features that the connector receives of each frame."""
        return self.patches_per_side**2 + int(self.keeps_class_token)

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
        for name in TOKEN_ID_FIELDS:
            if getattr(self, name) >= old_vocab_size:
                setattr(self, name, getattr(self, name) + self.vocab_size - old_vocab_size)

    def _check(self) -> None:
        if not is_integer_within(self.num_frames, 1, MAX_NUM_FRAMES):
            raise ConfigError(
                f"num_frames must be a whole number from 1 to {MAX_NUM_FRAMES}, got {quoted(self.num_frames)}"
            )
        for name in TOKEN_ID_FIELDS:
            if not is_integer_within(getattr(self, name), 0, 1 << 31):
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
        """Return the flat published form for the published code, see :func:`videollama2.flat_form.flat_fields`."""
        return flat_fields(self)


def _flat_alias(model_type: str) -> type[VideoLlama2Config]:
    """Return a subclass that differs only in ``model_type``, since AutoConfig needs one class per registered name."""
    return type(f"VideoLlama2Config_{model_type}", (VideoLlama2Config,), {"model_type": model_type})


FLAT_CONFIG_CLASSES = {name: _flat_alias(name) for name in FLAT_MODEL_TYPES if name != "videollama2"}


def is_videollama2(fields: dict[str, Any]) -> bool:
    """Return whether a ``config.json``, of either form, describes a VideoLLaMA 2 model."""
    return str(fields.get("model_type", "")).startswith(VideoLlama2Config.model_type)
