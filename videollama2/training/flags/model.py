"""Defines the flags of ``train.py`` for the parts of the model and for which of them learn."""

from dataclasses import dataclass, field
from typing import Literal

from videollama2.flat_form import FLAT_MODEL_TYPES


@dataclass
class ModelArguments:
    """Flags for the parts of the model and for which of them learn."""

    model_path: str = field(
        metadata={
            "help": "Language model (needs --vision_tower, --audio_tower or both), or a VideoLLaMA 2 checkpoint to "
            "continue from."
        }
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": f"Expected kind of the decoder in --model_path, one of {', '.join(FLAT_MODEL_TYPES)}."},
    )
    vision_tower: str | None = field(default=None, metadata={"help": "CLIP or SigLIP encoder: a folder or hub name."})
    mm_projector_type: str | None = field(
        default=None,
        metadata={"help": "Kind of the connector. Default: the checkpoint's, or 'linear' for a new model."},
    )
    mm_vision_select_layer: int | None = field(
        default=None,
        metadata={"help": "Encoder layer whose output is used. Default: the checkpoint's, or -2 for a new model."},
    )
    mm_vision_select_feature: Literal["patch", "cls_patch"] | None = field(
        default=None,
        metadata={"help": "Whether the class token is used beside the patches. Default: the checkpoint's, or 'patch'."},
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None,
        metadata={"help": "File of connector weights to start from, such as the first stage writes."},
    )
    tune_mm_mlp_adapter: bool = field(
        default=False,
        metadata={"help": "First stage: train only the connector, on captions, and write mm_projector.bin."},
    )
    audio_tower: str | None = field(
        default=None,
        metadata={
            "help": "BEATs encoder for a model that does not hear yet: Microsoft's .pt file, or the audio_tower.bin of "
            "the second audio stage."
        },
    )
    mm_projector_a_type: str | None = field(
        default=None,
        metadata={"help": "Kind of the audio projector. Default: the checkpoint's, or 'mlp2x_gelu' for a new one."},
    )
    pretrain_mm_mlp_adapter_a: str | None = field(
        default=None,
        metadata={"help": "File of audio projector weights to start from, such as the audio stages write."},
    )
    tune_mm_mlp_adapter_a: bool = field(
        default=False,
        metadata={
            "help": "Audio stages: train the audio projector, and nothing else unless one of the next two flags is "
            "given; write mm_projector_a.bin."
        },
    )
    tune_audio_tower: bool = field(
        default=False, metadata={"help": "Train the audio encoder; the audio stages write audio_tower.bin."}
    )
    tune_adapter_llm: bool = field(
        default=False,
        metadata={"help": "Joint stage: train the language model and both connectors, and write a whole model."},
    )
    audio_gradient_multiplier: float | None = field(
        default=None,
        metadata={
            "help": "Factor by which gradients shrink in each layer of the audio encoder; 1 keeps them. Default: that "
            "of the encoder, which is 0.6 as published."
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Freeze the language model and its head."})
    pretrain_labels: Literal["published", "answer"] = field(
        default="published",
        metadata={
            "help": "First stage: 'published' trains on question and answer without an end token, 'answer' on the "
            "answer and the end token."
        },
    )
    freeze_vision_tower: bool = field(default=True, metadata={"help": "Freeze the vision encoder."})
    freeze_regex: str | None = field(
        default=None,
        metadata={
            "help": "Freeze further parameters: those whose whole names match this regular expression, such as "
            "'model.language_model.layers.[0-9].*'."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of the language model: sdpa (default) or eager; on a GPU also flash_attention_2, "
            "flash_attention_3 or flex_attention."
        },
    )

    def __post_init__(self) -> None:
        # An empty value lets the caller of a script undo a flag that the script sets.
        for name in (
            *("model_type", "vision_tower", "mm_projector_type", "pretrain_mm_mlp_adapter"),
            *("audio_tower", "mm_projector_a_type", "pretrain_mm_mlp_adapter_a"),
        ):
            setattr(self, name, getattr(self, name) or None)

    @property
    def parts_alone(self) -> tuple[str, ...]:
        """The parts that learn alone and are written instead of a whole model; none if the language model may learn."""
        parts = ("mm_projector",) if self.tune_mm_mlp_adapter else ()
        if self.tune_mm_mlp_adapter_a and not self.tune_adapter_llm:
            parts += ("mm_projector_a", "audio_tower") if self.tune_audio_tower else ("mm_projector_a",)
        return parts
