import shutil

import pytest

from tests.eval.reference import benchmarks_dir
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.run import ModelChoice, Plan, run
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
        plan = Plan(found, data, output, choice, options, progress=False, **changes)
        return run(plan, said.append)

    said = evaluate.said = []
    return evaluate
