import shutil
import sys

import pytest

from tests.eval.helpers.judge_server import JudgeServer
from tests.eval.helpers.reference import benchmarks_dir
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation
from videollama2.eval.running.runner import AnswerOptions


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small set of the built-in world: 7 videos, 3 questions each at most."""
    from videollama2.shapes.sets import write_set

    folder = tmp_path_factory.mktemp("world")
    write_set(folder, videos=7, seed=11, questions_per_item=3)
    return folder


@pytest.fixture
def judge_server(monkeypatch):
    """A server that judges as it is told, with a key for it in the environment."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def charted():
    """For tests that look at the chart of a run or of its score."""


@pytest.fixture
def without_charts(request, monkeypatch):
    """No matplotlib, as where it is not installed: a chart takes longer than most tests. See test_report.py."""
    if "charted" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what Python itself notes for a failed import


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

    said: list[str] = []

    def evaluate(output, name="moving_shapes", data=None, max_new_tokens=16, options=None, **changes):
        found = changes.pop("found", None) or benchmark(name)
        data = data or (world if name == "moving_shapes" else benchmarks_dir() / found.folder)
        options = options or AnswerOptions(max_new_tokens=max_new_tokens)
        choice = ModelChoice("videollama2-tiny", options={"device": "cpu"})
        plan = EvaluationPlan(found, data, output, choice, options, progress=False, **changes)
        return run_evaluation(plan, said.append)

    evaluate.said = said  # pyright: ignore[reportFunctionMemberAccess] - tests call it and look at this
    return evaluate
