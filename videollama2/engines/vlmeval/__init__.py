"""The model in VLMEvalKit: ``python -m videollama2.engines.vlmeval --model videollama2-tiny --data NAME``.

VLMEvalKit has no entry points: its models are what its module ``vlmeval.vlm`` and the table ``supported_VLM`` in
``vlmeval.config`` hold. :func:`register` writes this package's class and models into both, and the command above calls
it before VLMEvalKit's own ``run.py``. All flags are VLMEvalKit's.
"""

from __future__ import annotations

from functools import partial

from videollama2.constants import BUILT_IN_MODELS

_PUBLISHED = (
    "VideoLLaMA2-7B",
    "VideoLLaMA2-7B-16F",
    "VideoLLaMA2-8x7B",
    "VideoLLaMA2-72B",
    "VideoLLaMA2.1-7B-16F",
    "VideoLLaMA2.1-7B-AV",
)
MODELS: dict[str, str] = {
    **{name: name for name in BUILT_IN_MODELS},
    **{name: f"DAMO-NLP-SG/{name}" for name in _PUBLISHED},
}
"""What VLMEvalKit calls a model, and where the model is."""


def register() -> None:
    """Make the class and the models known to VLMEvalKit in this process; may be called more than once."""
    import vlmeval.config
    import vlmeval.vlm

    from videollama2.engines.vlmeval.model import VideoLlama2

    # A file for --config names a class of vlmeval.vlm, with its arguments.
    vars(vlmeval.vlm)[VideoLlama2.__name__] = VideoLlama2
    for name, path in MODELS.items():
        vlmeval.config.supported_VLM[name] = partial(VideoLlama2, path)
