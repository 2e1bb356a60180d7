"""Defines the base class of both model classes, with strict loading of weights, and their output classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointError, ConfigError, some_of
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.model.encoders import VISION_ENCODERS
from videollama2.model.int4 import Int4Linear
from videollama2.model.int8 import Int8Embedding, Int8Linear
from videollama2.model.weight_files import give_back_freed_memory, read_apart
from videollama2.model_code import write_code

Media = torch.Tensor | Sequence[torch.Tensor]
"""Media of one kind: a stacked tensor, or a sequence of tensors if their lengths differ."""


@dataclass
class VideoLlama2ModelOutput(ModelOutput):
    """Output of the model without its head: ``last_hidden_state`` (B, L, D) and the decoder's other outputs."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class VideoLlama2CausalLMOutput(ModelOutput):
    """Output with the head: ``loss`` if labels were given; ``logits`` (B, kept, V), None when training with labels."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MediaFeatures(BaseModelOutputWithPooling):
    """Output of the feature methods: ``pooler_output`` lists the tokens (N, D) of each medium."""

    # ModelOutput wants None as the default of every field but the first; the feature methods always give a list.
    pooler_output: list[torch.Tensor] = None  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


class VideoLlama2PreTrainedModel(PreTrainedModel):
    config: VideoLlama2Config
    config_class = VideoLlama2Config
    base_model_prefix = "model"
    input_modalities = [IMAGE, VIDEO, AUDIO, "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = [*(encoder.layer_class for encoder in VISION_ENCODERS.values()), "RegNetBlock", "BeatsLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, strict: bool = True, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does, except that weights must fit exactly.

        transformers initialises missing weights at random and only logs it. Here they raise, unless ``strict=False``.

        Raises:
            CheckpointError: names of weights that are missing, surplus or of another shape.
        """
        want_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # check_loading reports them with the other faults
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = cast("tuple[Any, dict[str, Any]]", loaded)  # a pair, because the report was asked for
        give_back_freed_memory()
        if strict:
            check_loading(info, str(pretrained_model_name_or_path))
        return (model, info) if want_info else model

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: Any,
        checkpoint_files: list[str] | None,
        load_config: Any,
        expected_keys: list[str] | None = None,
    ) -> Any:
        """Load as transformers does, with files read by :func:`read_apart` where that takes less memory."""
        if getattr(load_config.hf_quantizer, "takes_stored_dtype", False):
            # transformers would convert each weight to the model's dtype before it is quantised. Without a dtype, it
            # gives weights to the quantiser as they are stored, and converts the others to the dtype of their module.
            load_config = replace(load_config, dtype=None)
        with ExitStack() as stack:
            if state_dict is None:
                state_dict = stack.enter_context(read_apart(checkpoint_files, load_config))
            return PreTrainedModel._load_pretrained_model(
                model, state_dict, checkpoint_files, load_config, expected_keys
            )

    def save_pretrained(self, save_directory: str | Path, *args: Any, with_code: bool = False, **kwargs: Any) -> None:
        """Save weights and configuration as transformers does.

        Args:
            with_code: also write the code with which ``trust_remote_code=True`` opens the folder without this package
                (:mod:`videollama2.model_code`); the processor must be saved beside the model.

        Raises:
            ConfigError: the weights are integers of a CPU, which only this processor's libraries can read.
        """
        if any(isinstance(module, Int4Linear | Int8Linear | Int8Embedding) for module in self.modules()):
            raise ConfigError(
                "integer weights of a CPU cannot be saved; load the model without load_8bit and load_4bit"
            )
        choose_deepspeed_accelerator()
        super().save_pretrained(save_directory, *args, **kwargs)
        if with_code:
            write_code(save_directory)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the embeddings as in transformers; placeholder ids beyond the vocabulary move beyond the new one.

        A processor that was opened together with the model shares its configuration and so sees the new ids. For a
        processor that was opened on its own, set ``processor.model_config = model.config``.
        """
        before = self.config.vocab_size
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.move_placeholders(before)
        cast("PreTrainedModel", self.get_decoder()).config.vocab_size = self.config.vocab_size
        return embeddings


def choose_deepspeed_accelerator() -> None:
    """Tell DeepSpeed that this machine has no GPU, if so.

    accelerate imports DeepSpeed if it is installed, also to save a model. DeepSpeed would look for a GPU and print that
    there is none.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def check_loading(info: Any, source: str) -> None:
    """Raise CheckpointError if the loading report of transformers names a weight that did not fit.

    Args:
        info: report of ``from_pretrained(..., output_loading_info=True)``.
        source: folder or hub name, for the message.
    """
    complaints = {
        "missing": list(info["missing_keys"]),
        "unexpected": list(info["unexpected_keys"]),
        "of another shape": [f"{key} {tuple(a)} instead of {tuple(b)}" for key, a, b in info["mismatched_keys"]],
        "unreadable": list(info.get("error_msgs", ())),
    }
    parts = []
    for what, names in complaints.items():
        if names:
            parts.append(f"{len(names)} weights {what}: {some_of(sorted(map(str, names)), 8)}")
    if parts:
        raise CheckpointError(f"{source}: the weights do not fit this model; {'; '.join(parts)}")
