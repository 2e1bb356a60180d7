import fcntl
import os
import shutil
import struct
import subprocess
import termios
from contextlib import contextmanager

import pytest

from tests.eval.judge_server import JudgeServer
from tests.eval.reference import benchmarks_dir
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.run import EvaluationPlan, ModelChoice, run_evaluation
from videollama2.eval.runner import AnswerOptions
from videollama2.eval.samples import Sample


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small set of the built-in world: 7 videos, 3 questions each at most."""
    from videollama2.shapes.sets import write_set

    folder = tmp_path_factory.mktemp("world")
    write_set(folder, videos=7, seed=11, questions_per_item=3)
    return folder


def sample(number=1, output="A", **changes):
    """A sample with question, reference and output."""
    fields = {"id": f"q{number}", "category": "Action Count", "group": f"v{number}", "question": "?", "answer": 1}
    return Sample(**{**fields, "output": output, **changes})


@pytest.fixture
def judge_server(monkeypatch):
    """A server that judges as it is told, with a key for it in the environment."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    server = JudgeServer()
    yield server
    server.close()


@contextmanager
def on_a_terminal(command, environment):
    """A process whose standard error is a terminal, where bars show, and a function that reads it; b"" at the end."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # bars need room

    def read():
        try:
            return os.read(master, 64)
        except OSError:  # every process that had it open has ended
            return b""

    with subprocess.Popen(command, env=environment, stderr=slave, stdout=subprocess.DEVNULL) as process:
        os.close(slave)
        try:
            yield process, read
        finally:
            process.kill()
            os.close(master)


@pytest.fixture
def copied(tmp_path):
    """A benchmark's reference data, to change."""

    def copy(name):
        folder = benchmark(name).folder
        shutil.copytree(benchmarks_dir() / folder, tmp_path / "data" / folder)
        for path in (tmp_path / "data").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (tmp_path / "data").chmod(0o755)
        return tmp_path / "data" / folder

    return copy


@pytest.fixture
def evaluate(world):
    """Run a benchmark with the built-in model; what it says is collected in ``evaluate.said``."""

    def evaluate(output, name="moving_shapes", data=None, max_new_tokens=16, options=None, **changes):
        found = changes.pop("found", None) or benchmark(name)
        data = data or (world if name == "moving_shapes" else benchmarks_dir() / found.folder)
        options = options or AnswerOptions(max_new_tokens=max_new_tokens)
        choice = ModelChoice("videollama2-tiny", options={"device": "cpu"})
        plan = EvaluationPlan(found, data, output, choice, options, progress=False, **changes)
        return run_evaluation(plan, said.append)

    said = evaluate.said = []
    return evaluate
