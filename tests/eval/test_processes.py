"""Several processes, started by the script and its launcher, and killed without warning."""

import json
import os
import re
import shutil
from contextlib import suppress
from functools import partial

import pytest

from tests.conftest import ROOT
from tests.eval.helpers.terminal import on_a_terminal
from tests.helpers.forked import run_program, run_python
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.running.clips import share_of_process

RESULTS = ("samples.jsonl", "results.json", "results.md", "results.png", "mvbench.jsonl")
OPTIONS = ("--device", "cpu", "--max-new-tokens", "16")
psutil = pytest.importorskip("psutil")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]


def script(python, data, output, processes):
    """``scripts/eval/run.sh`` with its environment."""
    settings = {
        "PYTHON": str(python),
        "PYTHON_EXEC": str(python),  # of the launcher's processes
        "MODEL": "videollama2-tiny",
        "NPROC": str(processes),
        "DATA": str(data),
        "OUTPUT": str(output),
        "CUDA_VISIBLE_DEVICES": "0,1,2",
    }
    asked = ["bash", str(ROOT / "scripts" / "eval" / "run.sh"), "moving_shapes", *OPTIONS]
    return asked, {**os.environ, **settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def finish(python_of_forks):
    """``finish(data, output, processes)``: run the script to its end and return what it printed."""
    return partial(_finish, python_of_forks)


def _finish(python, data, output, processes):
    asked, environment = script(python, data, output, processes)
    done = run_program(asked, 300, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def process_of(rank, folder):
    """The process that the launcher has started for a rank, and that ends with it, however it ends."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            if (variables.get("RANK"), variables.get("OUTPUT")) == (str(rank), str(folder)):
                return process
    raise AssertionError(f"rank {rank} is not there")


def saved(folder, rank):
    """Ids of the whole lines of one of two processes."""
    *lines, _ = (folder / "answers" / f"rank-0000{rank}-of-00002.jsonl").read_bytes().split(b"\n")
    return [json.loads(line)["id"] for line in lines]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough questions that a process is still busy when it is killed at its first answer."""
    from videollama2.shapes.sets import write_set

    folder = tmp_path_factory.mktemp("large")
    write_set(folder, videos=36, seed=12, questions_per_item=3)
    return folder


@pytest.fixture(scope="module")
def alone(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    asked = ("run", "moving_shapes", "--model-path", "videollama2-tiny", "--data", large, "--output", folder, *OPTIONS)
    done = run_python(["-m", "videollama2.eval", *asked])
    assert done.returncode == 0, done.stderr
    return contents(folder)


def test_three_processes_give_the_same_files_and_one_of_them_reports(alone, finish, large, tmp_path):
    said = finish(large, tmp_path, 3)
    assert contents(tmp_path) == alone
    assert said.count("# moving_shapes") == 1
    assert len(list((tmp_path / "answers").iterdir())) == 3


def test_a_killed_process_has_saved_what_it_counted_and_the_same_command_ends_it(
    alone, finish, python_of_forks, large, tmp_path
):
    asked, environment = script(python_of_forks, large, tmp_path, 2)
    mine = [item.id for item in share_of_process(benchmark("moving_shapes").load(large), 0, 2)]
    with on_a_terminal([*asked, "--batch-size", "1"], environment) as (launcher, read):
        seen, first = b"", None
        while not re.search(rb" [1-9]\d*/%d " % len(mine), seen):  # the bar shows an answer
            got = read()
            assert got, f"it ended by itself: {seen.decode()}"
            seen += got
            if first is None and b" 0/" in seen:
                first = process_of(0, tmp_path)
        first.kill()
        while read():  # what is not read would stop the launcher
            pass
        assert launcher.wait(60) != 0
    before = saved(tmp_path, 0)
    counted = max(map(int, re.findall(rb" (\d+)/%d " % len(mine), seen)))
    assert counted <= len(before) < len(mine)
    assert set(before) < set(mine)
    assert not (tmp_path / "results.json").exists()

    finish(large, tmp_path, 2)
    assert contents(tmp_path) == alone
    after = saved(tmp_path, 0)
    assert after[: len(before)] == before
    assert sorted(after) == sorted(mine)  # nothing was asked twice
