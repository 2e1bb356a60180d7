"""What the processes of ``forked.py`` import, sooner or later."""

import gc
import importlib
import importlib.util
from contextlib import suppress

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import torch.distributed.run
import torch.profiler  # noqa: F401
from PIL import Image

from tests.helpers import forked  # noqa: F401
from videollama2 import cli, train  # noqa: F401
from videollama2.eval import __main__  # noqa: F401
from videollama2.inference import api, engine  # noqa: F401
from videollama2.media import audio, image, video  # noqa: F401

# What is otherwise imported by each process when it opens a model, reads a clip or starts to train.
LATE = (
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2_fast",
    "videollama2.media.pyav.reader",
    "numpy.ctypeslib",
    "av.subtitles.stream",
    "torch.utils.cpp_extension",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
)
if importlib.util.find_spec("deepspeed"):
    import deepspeed  # noqa: F401
for module in LATE:
    with suppress(ImportError):  # other versions have other modules
        importlib.import_module(module)

Image.init()  # imports what reads and writes each format
# A collection would write to every page that the forks share.
gc.collect()
gc.freeze()
