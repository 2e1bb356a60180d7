"""What a process of ``train.py`` imports, sooner or later; see ``ranks.py``."""

import importlib.util

import peft  # noqa: F401
import torch.distributed  # noqa: F401
from torch.utils import data  # noqa: F401

from videollama2 import train  # noqa: F401
from videollama2.training import build, eval_loss, lora, saving, trainer  # noqa: F401

if importlib.util.find_spec("deepspeed"):
    import deepspeed  # noqa: F401
