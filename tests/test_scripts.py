"""scripts/environment.sh: what it makes, reuses, makes anew and refuses.

Real installations take minutes and a network; here an interpreter of a few lines of shell stands in for Python. It says
which version it is, makes environments of itself, and notes what pip is asked for.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for a Unix shell")

INTERPRETER = """#!/usr/bin/env bash
# {version}
self="$(dirname "$0")/$(basename "$0")"
case "$1 ${{2:-}}" in
    "-c "*) echo "{version} in /opt/python-{version}" ;;
    "-m venv")
        [ "${{3:-}}" != --clear ] || rm -rf "$4"
        for folder; do :; done
        [ ! -e "$folder/refuses" ] || {{ echo "Error: no room"; exit 1; }}
        mkdir -p "$folder/bin" && cp "$self" "$folder/bin/python" ;;
    "-m pip")
        echo "{version} $*" >>"$PIP_LOG"
        [ -z "${{PIP_FAILS:-}}" ] || {{ echo "ERROR: no such package"; echo "see the manual"; exit 1; }} ;;
esac
"""


class Scripts:
    """A repository with spaces in its name, and interpreters."""

    def __init__(self, folder):
        self.root, self.bin, self.log = folder / "the repo", folder / "bin", folder / "pip.log"
        self.elsewhere = folder / "else where"
        for made in (self.root / "scripts", self.bin, self.elsewhere):
            made.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "environment.sh", self.root / "scripts")
        (self.root / "requirements.txt").write_text("package==1\n")
        (self.root / "setup.py").write_text("")
        (self.root / "scripts" / "show.sh").write_text(
            "set -uo pipefail\n"
            'source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"\n'
            'prepare_environment\necho "ready: $VENV_PYTHON in $PWD"\n'
        )
        self.python = self.interpreter("python3", "3.11.7")
        self.venv = self.root / ".venv"

    def interpreter(self, name, version):
        path = self.bin / name
        path.write_text(INTERPRETER.format(version=version))
        path.chmod(0o755)
        return path

    def run(self, cwd=None, script=None, **variables):
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "PIP_LOG": str(self.log), "CDPATH": str(self.elsewhere)}
        return subprocess.run(
            ["bash", script or str(self.root / "scripts" / "show.sh")],
            cwd=cwd or self.elsewhere,
            env=environment | {name: str(value) for name, value in variables.items()},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def works(self, **options):
        """Run; returns the pip commands that were new in it."""
        before = len(self.pip())
        done = self.run(**options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.endswith(f"in {self.root}\n")
        return self.pip()[before:]

    def refuses(self, **options):
        """Run; returns the one line that says why not."""
        done = self.run(**options)
        assert done.returncode == 1
        assert done.stderr.startswith("show.sh: ") and done.stderr.count("\n") == 1, done.stderr
        assert "ready" not in done.stdout
        return done.stderr

    def pip(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def version(self, venv=None):
        return ((venv or self.venv) / "bin" / "python").read_text().splitlines()[1]


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path)


def test_the_second_run_installs_nothing(scripts):
    assert len(scripts.works()) == 2
    assert scripts.works() == []
    assert scripts.works(PYTHON=scripts.python) == []
    (scripts.root / "requirements.txt").write_text("package==2\n")
    assert len(scripts.works()) == 2
    assert scripts.works() == []


def test_from_any_folder_with_relative_paths(scripts):
    scripts.works(cwd=scripts.root, script="scripts/show.sh", VENV="a venv", PYTHON="../bin/python3")
    assert (scripts.root / "a venv" / "bin" / "python").exists()
    assert scripts.works(cwd=scripts.root / "scripts", script="show.sh", VENV="../a venv") == []
    scripts.works(VENV="mine")
    assert (scripts.elsewhere / "mine" / "bin" / "python").exists()
    assert not scripts.venv.exists()


def test_another_interpreter_makes_the_environment_anew(scripts):
    scripts.works()
    newer = scripts.interpreter("python3.12", "3.12.1")
    done = scripts.run(PYTHON="python3.12")
    assert done.returncode == 0 and done.stderr == ""
    assert "anew: it holds Python 3.11.7" in done.stdout and "PYTHON is 3.12.1" in done.stdout
    assert scripts.version() == "# 3.12.1"
    assert [line.split()[0] for line in scripts.pip()] == ["3.11.7"] * 2 + ["3.12.1"] * 2
    assert scripts.works(PYTHON=newer) == []
    assert scripts.works() == [], "without PYTHON the environment that is there serves"
    assert scripts.works(PYTHON=scripts.venv / "bin" / "python") == []


def test_an_environment_that_somebody_else_made_is_not_emptied(scripts):
    scripts.interpreter("python3.12", "3.12.1")
    theirs = scripts.elsewhere / "theirs"
    subprocess.run([scripts.python, "-m", "venv", theirs], check=True)
    (theirs / "work.txt").write_text("precious")
    line = scripts.refuses(VENV=theirs, PYTHON="python3.12")
    assert f"{theirs} holds Python 3.11.7" in line and "PYTHON is 3.12.1" in line and "VENV=" in line
    assert scripts.version(theirs) == "# 3.11.7" and (theirs / "work.txt").exists()
    assert len(scripts.works(VENV=theirs)) == 2


def test_an_interrupted_installation_is_taken_up_again(scripts):
    line = scripts.refuses(PIP_FAILS=1)
    assert "installing requirements.txt failed: ERROR: no such package" in line
    assert len(scripts.works()) == 2
    (scripts.root / "requirements.txt").write_text("package==2\n")
    scripts.refuses(PIP_FAILS=1)
    (scripts.root / "requirements.txt").write_text("package==1\n")
    assert len(scripts.works()) == 2, "half of the other set may be installed"


def test_an_environment_whose_interpreter_is_gone(scripts):
    scripts.works()
    (scripts.venv / "bin" / "python").unlink()
    (scripts.venv / "bin" / "python").symlink_to("/no/such/python")
    assert len(scripts.works()) == 2
    assert scripts.version() == "# 3.11.7"


@pytest.mark.parametrize("python", ["python3.99", "/no/such/python", "no/such/python"])
def test_an_interpreter_that_is_not_there(scripts, python):
    line = scripts.refuses(PYTHON=python)
    assert "there is no interpreter" in line and python in line
    assert not scripts.venv.exists()


@pytest.mark.parametrize("version", ["3.9.18", "3.13.0", "2.7.18"])
def test_an_interpreter_of_another_version(scripts, version):
    scripts.interpreter("old", version)
    assert f"'old' ({version} in /opt/python-{version}) is not supported" in scripts.refuses(PYTHON="old")
    subprocess.run([scripts.bin / "old", "-m", "venv", scripts.venv], check=True)
    assert f"holds Python {version}" in scripts.refuses()


def test_what_is_no_python(scripts):
    assert "(no Python 3) is not supported" in scripts.refuses(PYTHON=shutil.which("false"))


def test_an_environment_that_cannot_be_made(scripts):
    scripts.venv.mkdir()
    (scripts.venv / "refuses").write_text("")
    assert "cannot make a virtual environment" in scripts.refuses()
    (scripts.elsewhere / "file").write_text("")
    assert "cannot make a virtual environment" in scripts.refuses(VENV=scripts.elsewhere / "file" / "venv")


def test_what_this_python_says_about_itself(tmp_path):
    """The real question put to a real interpreter: an environment and what it was made with answer alike."""
    source = f"unset CDPATH; source '{ROOT}/scripts/environment.sh'; interpreter '{{}}'"
    environment = {**os.environ, "VENV": str(tmp_path)}
    answers = [
        subprocess.run(["bash", "-c", source.format(path)], capture_output=True, text=True, check=True, env=environment)
        for path in (sys.executable, os.path.realpath(sys.executable))
    ]
    assert answers[0].stdout == answers[1].stdout
    assert answers[0].stdout.startswith("{}.{}.{} in /".format(*sys.version_info[:3]))
