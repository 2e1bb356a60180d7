"""A small world, the starting parts of a very small model, and a way to run ``train.py`` on them."""

import gc
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.forked import run_ranks
from videollama2 import train
from videollama2.data.records import read_records
from videollama2.shapes.parts import write_parts
from videollama2.shapes.sets import write_set
from videollama2.training.model.build import build_model

from .helpers import dying
from .helpers.runs import SIZES, Run, environment, flags
from .helpers.scripts import call


@pytest.fixture(autouse=True)
def no_worker_outlives_its_run() -> Iterator[None]:
    """Loader workers end with their training, also where it failed, and not with the process that it ran in."""
    before = multiprocessing.active_children()
    yield
    left = [process for process in multiprocessing.active_children() if process not in before]
    assert not [process for process in left if isinstance(process, ForkProcess)]


@pytest.fixture
def plotted() -> None:
    """For tests that look at what a run draws."""


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process find no matplotlib unless the test is ``plotted``: drawing takes as long as steps."""
    if "plotted" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what Python itself notes for a failed import


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos and four images; a JSON list of all of them and of two text-only records."""
    folder = tmp_path_factory.mktemp("world")
    write_set(folder, videos=8, images=4, seed=3, questions_per_item=3, mcq_fraction=0.0)
    rows = json.loads((folder / "train.json").read_text())
    talk = [{"from": "human", "value": "Is a circle a shape?"}, {"from": "gpt", "value": "yes"}]
    rows += [{"id": f"text-{i}", "conversations": talk * (i + 1)} for i in range(2)]
    (folder / "mixed.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``llm`` and ``clip``."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder, SIZES, encoder_steps=2, connector_steps=2, progress=False)
    # Each training begins with a search for garbage. What was imported lives to the end, unsearched.
    gc.collect()
    gc.freeze()
    return folder


@pytest.fixture(scope="session")
def records(world: Path) -> list:
    return read_records([world / "mixed.json"])


@pytest.fixture
def run(world: Path, parts: Path, tmp_path: Path) -> Callable[..., Run]:
    """``run(folder=..., flag=value, ...)``: train in this process and return what came out."""

    def start(folder: Path | None = None, **changes: object) -> Run:
        folder = folder or tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        train.train(*train.parse_arguments(flags(world, parts, folder, **changes)))
        return Run(folder)

    return start


@pytest.fixture(scope="session")
def run_once(world: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``run_once(flag=value, ...)``: a run that tests share which only compare others with it and read its files."""
    done: dict[tuple[str, ...], Run] = {}

    def once(**changes: object) -> Run:
        key = tuple(flags(world, parts, Path("shared"), **changes))
        if key not in done:
            folder = tmp_path_factory.mktemp("shared")
            train.train(*train.parse_arguments(flags(world, parts, folder, **changes)))
            done[key] = Run(folder)
        return done[key]

    return once


@pytest.fixture
def built(world: Path, parts: Path, tmp_path: Path) -> Callable[..., tuple]:
    """``built(flag=value, ...)``: model and processor as ``train.py`` makes them."""

    def make(**changes: object) -> tuple:
        return build_model(*train.parse_arguments(flags(world, parts, tmp_path / "unused", **changes)))

    return make


@pytest.fixture
def torchrun(python_of_forks: Path) -> Callable[..., int]:
    """``torchrun(argv, log, *options, watch=..., module=...)``: train on two processes of torch's own launcher.

    The launcher is a fork as well as what it starts; ``watch`` may send it a signal (``run_ranks``).
    """

    def start(argv: list[str], log: Path, *options: str, module: str = "videollama2.train", **watched: Any) -> int:
        words = [*options, "--standalone", "--nproc_per_node", "2", "-m", module, *argv]
        # What scripts/launch.sh tells the launcher: a busy machine may need more than half a minute for a checkpoint.
        own = {"PYTHON_EXEC": str(python_of_forks), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "240"}
        variables = {**environment(), **own}
        return run_ranks(words, 1, log, module="torch.distributed.run", variables=variables, **watched)

    return start


@pytest.fixture
def launch(world: Path, parts: Path, tmp_path: Path) -> Callable[..., Run]:
    """``launch(processes, folder=..., flag=value, ...)``: train in processes of their own.

    ``kill_at``: all of them kill themselves when they begin the step after so many.
    """

    def start(processes: int = 2, folder: Path | None = None, kill_at: int | None = None, **changes: object) -> Run:
        folder = folder or tmp_path / f"launched{len(list(tmp_path.iterdir()))}"
        argv, log = flags(world, parts, folder, **changes), tmp_path / f"{folder.name}.log"
        if kill_at is None:
            code = run_ranks(argv, processes, log)
            assert code == 0, log.read_text()[-4000:]
        else:
            begun = tmp_path / f"{folder.name}.begun"
            begun.mkdir()
            code = run_ranks([str(begun), dying.ALL, str(kill_at), *argv], processes, log, module=dying.__name__)
            assert code == -signal.SIGKILL, log.read_text()[-4000:]
        return Run(folder)

    return start


@pytest.fixture(scope="session")
def launch_once(world: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``launch_once(processes, flag=value, ...)``: what ``run_once`` is for runs in processes of their own."""
    done: dict[tuple[int, tuple[str, ...]], Run] = {}

    def once(processes: int = 2, **changes: object) -> Run:
        key = (processes, tuple(flags(world, parts, Path("shared"), **changes)))
        if key not in done:
            folder = tmp_path_factory.mktemp("shared")
            log = folder / "log"
            assert run_ranks(flags(world, parts, folder / "run", **changes), processes, log) == 0, log.read_text()
            done[key] = Run(folder / "run")
        return done[key]

    return once


@pytest.fixture
def captions(world: Path) -> Path:
    """Records with one question each, as the first stage wants them."""
    rows = json.loads((world / "train.json").read_text())
    path = world / "captions.json"
    path.write_text(json.dumps([{**row, "conversations": row["conversations"][:2]} for row in rows]))
    return path


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
