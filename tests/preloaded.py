"""What the processes of ``forked.py`` import, sooner or later."""

import gc
import importlib.util

import peft  # noqa: F401

from tests import forked  # noqa: F401
from videollama2 import cli, train  # noqa: F401
from videollama2.inference import api, engine  # noqa: F401

if importlib.util.find_spec("deepspeed"):
    import deepspeed  # noqa: F401

# A collection would write to every page that the forks share.
gc.collect()
gc.freeze()
