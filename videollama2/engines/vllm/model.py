"""Defines the model class that vLLM loads: its Transformers backend, with this package's encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.models.transformers import (
    MoEMixin,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from videollama2.engines.vllm.processing import (
    VideoLlama2DummyInputs,
    VideoLlama2Info,
    VideoLlama2MediaProcessor,
)
from videollama2.engines.vllm.prompts import text_marker
from videollama2.media.kinds import KINDS

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_register = MULTIMODAL_REGISTRY.register_processor(
    VideoLlama2MediaProcessor, info=VideoLlama2Info, dummy_inputs=VideoLlama2DummyInputs
)


@_register
class VideoLlama2ForVllm(TransformersMultiModalForCausalLM):
    """The composed model. Decoders with experts get vLLM's layer for them."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> VideoLlama2ForVllm:
        # A config.json of this package has one architecture for all decoders, so that only its content tells.
        has_experts = getattr(vllm_config.model_config.hf_config.text_config, "num_local_experts", 0) > 0
        return super().__new__(VideoLlama2MoeForVllm if has_experts else cls)

    def _create_hf_to_vllm_mapper(self) -> None:
        # The inner model ignores the head's weights, which vLLM's own head needs.
        self.model._keys_to_ignore_on_load_unexpected = None
        super()._create_hf_to_vllm_mapper()
        # transformers renames the weights of old weight norms only where that leads to a parameter; vLLM always would.
        renamings = self.hf_to_vllm_mapper.orig_to_new_renaming
        renamings[:] = [each for each in renamings if not any("parametrizations" in to for to in each.target_patterns)]

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return what stands for a medium, the ``i``-th of its kind, in the text of a conversation."""
        return text_marker(modality, i - 1) if modality in KINDS else None

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Encode media of one kind into their tokens (N, D)."""
        for name, kind in KINDS.items():
            media = kwargs.get(kind.batch_key)
            if media is not None:
                return self.model.encode_media(name, list(media))
        return []


@_register
class VideoLlama2MoeForVllm(MoEMixin, VideoLlama2ForVllm):
    """The same for a decoder with experts (Mixtral)."""
