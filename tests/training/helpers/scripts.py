"""Scripts as a shell runs them, and the commands that they would run."""

import sys

from tests.conftest import ROOT
from tests.helpers.forked import run_program

from .runs import environment


def call(script, *argv, timeout_s=300, **variables):
    """Run a script; its own variables are not inherited from whoever runs the tests.

    ``PYTHON`` is the interpreter of the script, and of the processes of a launcher that it starts.
    """
    names = ("WORLD_SIZE", "NPROC_PER_NODE", "RANK", "MASTER_ADDR", "MASTER_PORT", "DEEPSPEED", "RUN_NAME")
    clean = {name: value for name, value in environment().items() if name not in names}
    given = {name: str(value) for name, value in {"PYTHON": sys.executable, **variables}.items()}
    words = ["bash", str(ROOT / "scripts" / script), *map(str, argv)]
    return run_program(words, timeout_s, cwd="/", env={**clean, "PYTHON_EXEC": given["PYTHON"], **given})
