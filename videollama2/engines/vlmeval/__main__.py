"""Runs VLMEvalKit's ``run.py`` with this package's models: ``python -m videollama2.engines.vlmeval --help``."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from videollama2.commands import run_command
from videollama2.engines.vlmeval import register
from videollama2.errors import MissingDependencyError

_RUNNERS = ("vlmeval.run", "run")
"""Its module in the package ms-vlmeval, and in the folder of a checkout of VLMEvalKit, where it is started."""


def main() -> int:
    """Register the models and hand over to VLMEvalKit, which parses the command line."""
    return run_command(_run, "vlmeval")


def _run() -> None:
    """Run VLMEvalKit.

    Raises:
        MissingDependencyError: VLMEvalKit is not installed.
    """
    runner = None if find_spec("vlmeval") is None else next(filter(find_spec, _RUNNERS), None)
    if runner is None:
        raise MissingDependencyError(
            "VLMEvalKit is not installed: pip install ms-vlmeval, or start this in a checkout of VLMEvalKit"
        )
    register()
    importlib.import_module(runner).main()


if __name__ == "__main__":
    sys.exit(main())
