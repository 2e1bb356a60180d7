"""The model on vLLM: ``pip install 'videollama2[vllm]'``, then ``vllm serve FOLDER``.

vLLM calls :func:`register` in each of its processes (entry point ``vllm.general_plugins``). The decoder is run by
vLLM's Transformers modeling backend, which brings tensor parallelism, pipelines, quantisation, chunked prefill and
prefix caching. This package adds what it cannot know: the encoders' input and output, the number of tokens of a medium,
and the published form of prompts.

:class:`videollama2.engines.vllm.engine.VllmEngine` is a back end of this package's own server on top of it.
"""

from __future__ import annotations

from typing import Any

from videollama2.flat_form import FLAT_MODEL_TYPES

VIDEO_LOADER = "videollama2"
"""Name of the video loader in vLLM."""

_VIDEO_PROCESSOR = "VideoLlama2VideoProcessor"
_MODEL = "videollama2.engines.vllm.model:VideoLlama2ForVllm"
_ARCHITECTURES = (
    "VideoLlama2ForConditionalGeneration",
    "Videollama2LlamaForCausalLM",
    "Videollama2MistralForCausalLM",
    "Videollama2MixtralForCausalLM",
    "Videollama2Qwen2ForCausalLM",
)
"""Names under which ``config.json`` files call the model: this package's, and the published ones."""


def register() -> None:
    """Make the model known to vLLM and transformers in this process; may be called more than once."""
    from transformers import AutoProcessor
    from transformers.models.auto import video_processing_auto
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    import videollama2.auto  # noqa: F401 - registers the model with transformers
    from videollama2.config import VideoLlama2Config
    from videollama2.engines.vllm.media import EncodedVideo, KeepSoundsEncoded, SoundConnector
    from videollama2.engines.vllm.prompts import VllmChatProcessor

    for name in _ARCHITECTURES:
        # By name, so that vLLM can look at the class in a process of its own before a GPU is touched.
        ModelRegistry.register_model(name, _MODEL)
        MODELS_CONFIG_MAP[name] = KeepSoundsEncoded
    AutoProcessor.register(VideoLlama2Config, VllmChatProcessor, exist_ok=True)
    VIDEO_LOADER_REGISTRY.register(VIDEO_LOADER, video_processor=_VIDEO_PROCESSOR)(EncodedVideo)
    # vLLM's own connector, which this one is for all other models.
    MEDIA_CONNECTOR_REGISTRY.register("http")(SoundConnector)
    # vLLM chooses the loader by this table of transformers.
    names: dict[str, Any] = vars(video_processing_auto)["VIDEO_PROCESSOR_MAPPING_NAMES"]
    names.update(dict.fromkeys(FLAT_MODEL_TYPES, _VIDEO_PROCESSOR))
