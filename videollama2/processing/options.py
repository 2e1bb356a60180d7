"""Sorts the keyword arguments of transformers' processor calls: each is either honoured or refused by name.

They are given either flat (``padding=True, num_frames=8``) or in groups (``text_kwargs``, ``images_kwargs``,
``videos_kwargs``, ``common_kwargs``). A flat name that belongs to several groups applies to each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from videollama2.errors import ConfigError
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO

_GROUPS = {"text_kwargs": "text", "images_kwargs": IMAGE, "videos_kwargs": VIDEO, "audio_kwargs": AUDIO}

_PADDING = {True: "longest", False: "none", None: "none", "longest": "longest", "do_not_pad": "none"}

_TRUNCATION = (None, True, False, "longest_first", "only_first", "do_not_truncate")

HEARD = ("use_audio", "load_audio_from_video", "use_audio_in_video")
"""The names of the option to use a video's sound, in this package, in transformers and in vLLM."""

LOADING = {
    IMAGE: KINDS[IMAGE].options,
    VIDEO: KINDS[VIDEO].options | {"s", "e", "fps", "do_sample_frames", "video_metadata", *HEARD},
    AUDIO: KINDS[AUDIO].options,
}
"""Options for reading a medium, by kind; see the loading methods of the processor."""

_PIXEL_SETTINGS = frozenset(
    ("do_convert_rgb", "do_resize", "size", "default_to_square", "crop_size", "resample", "do_rescale")
    + ("rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "pad_size", "do_center_crop")
)
"""Options of image preprocessing. The checkpoint determines them, so only its own values are accepted."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "data_format": (None, "channels_first"),
    "input_data_format": (None,),
    "device": (None, "cpu"),
    "disable_grouping": (None, True, False),
    "image_seq_length": (None,),
    "return_metadata": (None, False),
    "stride": (None, 0),
    "is_split_into_words": (None, False),
    "return_token_type_ids": (None, False),
    "return_overflowing_tokens": (None, False),
    "return_special_tokens_mask": (None, False),
    "return_offsets_mapping": (None, False),
    "return_length": (None, False),
    "sanitize_control_tokens": (None, False),
    "verbose": (None, True, False),
    "text_pair": (None,),
    "text_target": (None,),
    "text_pair_target": (None,),
}
"""Options of transformers that do not apply to this processor -> the values that have no effect and are accepted."""


@dataclass(frozen=True)
class TextOptions:
    """Options for turning prompts into rows of ids.

    Attributes:
        padding: ``longest``, ``max_length`` or ``none``.
        padding_side: ``left`` (for generation) or ``right``.
        truncation: cut rows to ``max_length`` (None: the tokenizer's ``model_max_length``) on the tokenizer's
            ``truncation_side``. As in transformers, giving only ``max_length`` also truncates.
        pad_to_multiple_of: pad rows to a multiple of this length.
        add_special_tokens: add the tokens that the tokenizer puts around a text. Prompts made by a chat template
            already contain them.
        return_tensors: ``pt``, ``np``, or None for lists.
    """

    padding: str = "longest"
    padding_side: str = "left"
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = False
    return_attention_mask: bool = True
    return_mm_token_type_ids: bool = False
    return_text_replacement_offsets: bool = False
    return_tensors: str | None = "pt"

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}")
        if self.return_tensors not in ("pt", "np", None):
            raise ConfigError(f"return_tensors must be 'pt', 'np' or None, got {self.return_tensors!r}")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be at least 1, got {value!r}")
        if self.padding == "max_length" and self.max_length is None:
            raise ConfigError("padding='max_length' needs max_length")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TextOptions:
        """Convert the values that transformers accepts.

        Raises:
            ConfigError: a value is invalid.
        """
        values: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None or name == "return_tensors"
        }
        padding = getattr(given.get("padding", True), "value", given.get("padding", True))
        if padding not in (*_PADDING, "max_length"):
            raise ConfigError(f"padding must be True, False, 'longest' or 'max_length', got {padding!r}")
        truncation = getattr(given.get("truncation"), "value", given.get("truncation"))
        if truncation not in _TRUNCATION:
            raise ConfigError(f"truncation must be True or False, got {truncation!r}")
        values["padding"] = _PADDING.get(padding, padding)
        cuts = truncation not in (None, False, "do_not_truncate")
        is_bound_alone = truncation is None and given.get("max_length") is not None and padding != "max_length"
        values["truncation"] = cuts or is_bound_alone
        return cls(**values)


_TEXT = frozenset(field.name for field in fields(TextOptions))


@dataclass(frozen=True)
class CallOptions:
    """All options of one call: those for text, and those for loading each kind of medium."""

    text: TextOptions = TextOptions()
    media: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in LOADING})

    @classmethod
    def of(cls, given: Mapping[str, Any], image_processor: Any) -> CallOptions:
        """Convert the keyword arguments of a call.

        Args:
            image_processor: the checkpoint's image processor, with whose settings options are compared.

        Raises:
            ConfigError: no group has an option of this name, or its value cannot be honoured.
        """
        flat = {name: value for name, value in given.items() if name not in (*_GROUPS, "common_kwargs")}
        flat |= given.get("common_kwargs") or {}
        unknown = [name for name in flat if not any(_knows(group, name) for group in _GROUPS.values())]
        if unknown:
            raise ConfigError(f"the processor has no option {', '.join(sorted(unknown))}")
        taken: dict[str, dict[str, Any]] = {}
        for name, group in _GROUPS.items():
            own = given.get(name) or {}
            strangers = [option for option in own if not _knows(group, option)]
            if strangers:
                raise ConfigError(f"{name} has no option {', '.join(sorted(strangers))}")
            merged = {option: value for option, value in flat.items() if _knows(group, option)} | own
            taken[group] = {
                option: value for option, value in merged.items() if not _asks_nothing(option, value, image_processor)
            }
        media = {kind: {k: v for k, v in taken[kind].items() if k in LOADING[kind]} for kind in LOADING}
        return cls(TextOptions.of({k: v for k, v in taken["text"].items() if k in _TEXT}), media)


def _knows(group: str, option: str) -> bool:
    if option == "return_tensors" or option in _NEUTRAL:
        return True
    if group in LOADING:
        return option in LOADING[group] or option in _PIXEL_SETTINGS
    return group == "text" and option in _TEXT


def _asks_nothing(option: str, value: Any, image_processor: Any) -> bool:
    """Return whether an option has a value without effect.

    Raises:
        ConfigError: the value is not supported, or differs from the setting of the checkpoint's image preprocessing.
    """
    if option in _NEUTRAL:
        if not any(value is neutral or value == neutral for neutral in _NEUTRAL[option]):
            raise ConfigError(f"{option}={value!r} is not supported by this processor")
        return True
    if option in _PIXEL_SETTINGS:
        own = getattr(image_processor, option, None)
        if value is not None and _plain(value) != _plain(own):
            raise ConfigError(f"{option} belongs to the checkpoint, which has {own!r}; got {value!r}")
        return True
    return False


def _plain(value: Any) -> Any:
    """Return a setting in one comparable form; transformers may write sizes as dictionaries and means as lists."""
    if isinstance(value, Mapping):
        return {name: number for name, number in value.items() if number is not None}
    return list(value) if isinstance(value, tuple) else value
