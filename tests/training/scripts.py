"""Scripts as a shell runs them, and the commands that they would run."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

from .conftest import environment


def call(script, *argv, **variables):
    """Run a script; its own variables are not inherited from whoever runs the tests.

    ``PYTHON`` is the interpreter of the script, and of the processes of a launcher that it starts.
    """
    names = ("WORLD_SIZE", "NPROC_PER_NODE", "RANK", "MASTER_ADDR", "MASTER_PORT", "DEEPSPEED", "RUN_NAME")
    clean = {name: value for name, value in environment().items() if name not in names}
    given = {name: str(value) for name, value in {"PYTHON": sys.executable, **variables}.items()}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *map(str, argv)],
        env={**clean, "PYTHON_EXEC": given["PYTHON"], **given},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture
def printed(tmp_path):
    """``printed(script, ...)``: the command that the script would run, as words."""
    stand_in = tmp_path / "print-arguments"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    def run(script, *argv, **variables):
        done = call(script, *argv, **{"PYTHON": stand_in, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[1:]

    return run
