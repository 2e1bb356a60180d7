"""VideoLLaMA 2: train, evaluate and serve video language models.

    from videollama2 import model_init, mm_infer
    model, processor, tokenizer = model_init("videollama2-tiny")
    text = mm_infer(processor["video"]("clip.mp4"), "What happens?", model=model, tokenizer=tokenizer)

Importing the package also lets transformers' ``AutoConfig``, ``AutoProcessor`` and ``AutoModelForImageTextToText``
open VideoLLaMA 2 checkpoints, as soon as transformers is imported. torch is imported on first use, not here.
"""

import logging
from typing import TYPE_CHECKING, Any

from videollama2._register import register_when_needed

if TYPE_CHECKING:
    from videollama2.inference.api import mm_infer, mm_infer_batch, model_init
    from videollama2.inference.engine import Engine
    from videollama2.inference.request import Request

__version__ = "0.1.0"

__all__ = ["Engine", "Request", "__version__", "mm_infer", "mm_infer_batch", "model_init"]

_LAZY = {
    **dict.fromkeys(("model_init", "mm_infer", "mm_infer_batch"), "videollama2.inference.api"),
    "Engine": "videollama2.inference.engine",
    "Request": "videollama2.inference.request",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register_when_needed()

# If bitsandbytes is installed, transformers imports it, and it then logs a warning about a kernel for one kind of CPU
# that would have to be downloaded. Nothing here needs that kernel, and users can do nothing about the warning.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
