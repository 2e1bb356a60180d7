"""What the processes of ``forked.py`` import, sooner or later."""

import gc
import importlib.util

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import torch.distributed.run
import torch.profiler
from PIL import Image

from tests import forked  # noqa: F401
from videollama2 import cli, train  # noqa: F401
from videollama2.eval import __main__  # noqa: F401
from videollama2.inference import api, engine  # noqa: F401
from videollama2.media import audio, image, video  # noqa: F401

if importlib.util.find_spec("deepspeed"):
    import deepspeed  # noqa: F401
    import torch.utils.cpp_extension  # noqa: F401

Image.init()  # imports what reads and writes each format
# A collection would write to every page that the forks share.
gc.collect()
gc.freeze()
