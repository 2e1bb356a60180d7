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
        metadata={"help": f"Checked against the decoder found in --model_path: {', '.join(FLAT_MODEL_TYPES)}."},
    )
    vision_tower: str | None = field(default=None, metadata={"help": "CLIP or SigLIP encoder, folder or hub name."})
    mm_projector_type: str | None = field(
        default=None, metadata={"help": "Connector. Default: the checkpoint's, for a new model 'linear'."}
    )
    mm_vision_select_layer: int | None = field(
        default=None,
        metadata={"help": "Encoder layer that is read. Default: the checkpoint's, for a new model -2."},
    )
    mm_vision_select_feature: Literal["patch", "cls_patch"] | None = field(
        default=None, metadata={"help": "Default: the checkpoint's, for a new model 'patch'."}
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None,
        metadata={"help": "File of connector weights to start from, as the first stage writes it."},
    )
    tune_mm_mlp_adapter: bool = field(
        default=False,
        metadata={"help": "First stage: only the connector learns, from captions; mm_projector.bin is written."},
    )
    audio_tower: str | None = field(
        default=None,
        metadata={
            "help": "BEATs encoder for a model that does not hear yet: Microsoft's .pt file, or the audio_tower.bin of "
            "the second audio stage."
        },
    )
    mm_projector_a_type: str | None = field(
        default=None, metadata={"help": "Audio projector. Default: the checkpoint's, for a new one 'mlp2x_gelu'."}
    )
    pretrain_mm_mlp_adapter_a: str | None = field(
        default=None, metadata={"help": "File of audio projector weights to start from, as the audio stages write it."}
    )
    tune_mm_mlp_adapter_a: bool = field(
        default=False,
        metadata={
            "help": "Audio stages: the audio projector learns, and nothing else without one of the next two flags; "
            "mm_projector_a.bin is written."
        },
    )
    tune_audio_tower: bool = field(
        default=False, metadata={"help": "The audio encoder learns; the audio stages write audio_tower.bin."}
    )
    tune_adapter_llm: bool = field(
        default=False,
        metadata={"help": "Joint stage: the language model and both connectors learn; a whole model is written."},
    )
    audio_gradient_multiplier: float | None = field(
        default=None,
        metadata={
            "help": "Factor by which gradients shrink in each layer of the audio encoder; 1 keeps them. Default: the "
            "encoder's, as published 0.6."
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "The language model and its head do not learn."})
    pretrain_labels: Literal["published", "answer"] = field(
        default="published",
        metadata={
            "help": "First stage: 'published' learns question and answer without an end, 'answer' the answer and "
            "the end token."
        },
    )
    freeze_vision_tower: bool = field(default=True, metadata={"help": "The vision encoder does not learn."})
    freeze_regex: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression for whole names of parameters that do not learn though other flags let them, "
            "such as 'model.language_model.layers.[0-9].*'."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How the language model attends: sdpa (default), eager, flash_attention_2 or flex_attention, the "
            "last two on a GPU."
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
