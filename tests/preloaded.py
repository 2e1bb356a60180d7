"""What the processes of ``forked.py`` import, sooner or later."""

import importlib.util

import peft  # noqa: F401

from videollama2 import cli, train  # noqa: F401
from videollama2.inference import api, engine  # noqa: F401

if importlib.util.find_spec("deepspeed"):
    import deepspeed  # noqa: F401
