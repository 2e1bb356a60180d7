"""A small world, the starting parts of a very small model, and a way to run ``train.py`` on them."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.forked import run_ranks
from videollama2 import train
from videollama2.data.records import read_records
from videollama2.shapes.parts import TinySizes, write_parts
from videollama2.shapes.sets import write_set
from videollama2.training.build import build_model

SIZES = TinySizes(
    vocab_size=640,
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=3,
    vision_heads=2,
    width=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=64,
)


@pytest.fixture(autouse=True)
def no_worker_outlives_its_run() -> Iterator[None]:
    """Loader workers end with their training, also where it failed, and not with the process that it ran in."""
    before = multiprocessing.active_children()
    yield
    left = [process for process in multiprocessing.active_children() if process not in before]
    assert not [process for process in left if isinstance(process, ForkProcess)]


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
    return folder


@pytest.fixture(scope="session")
def records(world: Path) -> list:
    return read_records([world / "mixed.json"])


@dataclass
class Run:
    """A finished run of ``train.py``."""

    folder: Path

    @property
    def history(self) -> list[dict]:
        """All lines of the log."""
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    @property
    def log(self) -> list[dict]:
        """Logged steps: loss, grad_norm, learning_rate."""
        return [row for row in self.history if "loss" in row]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Everything that was written, whatever the kind of the run."""
        found: dict[str, torch.Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            found |= load_file(path)
        for path in sorted(self.folder.glob("*.bin")):
            found |= torch.load(path, weights_only=True)
        return found


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and copies of the gradients of all weights that have one."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_learning(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]], atol: float = 1e-6
) -> None:
    """Check that two results of :func:`loss_and_gradients` are equal but for rounding."""
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=atol, msg=name)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of weights of the same names."""
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def flags(world: Path, parts: Path, folder: Path, **changes: object) -> list[str]:
    """The command line of a small run; a change of None leaves that flag out, a list gives several values."""
    values: dict[str, object] = {
        "model_type": "videollama2_qwen2",
        "model_path": parts / "llm",
        "vision_tower": parts / "clip",
        "mm_projector_type": "stc_connector_v35",
        "freeze_vision_tower": False,
        "data_path": world / "mixed.json",
        "num_frames": 8,
        "model_max_length": 400,
        "output_dir": folder,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "sample_answers": 0,
        **changes,
    }
    argv = []
    for name, value in values.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


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


def environment() -> dict[str, str]:
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours}


@pytest.fixture
def torchrun(python_of_forks: Path) -> Callable[..., int]:
    """``torchrun(argv, log, *options, watch=..., module=...)``: train on two processes of torch's own launcher.

    The launcher is a fork as well as what it starts; ``watch`` may send it a signal (``tests.forked.run_ranks``).
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

    ``kill_at``: all of them are killed when they have logged so many steps.
    """

    def start(processes: int = 2, folder: Path | None = None, kill_at: int | None = None, **changes: object) -> Run:
        folder = folder or tmp_path / f"launched{len(list(tmp_path.iterdir()))}"
        log = tmp_path / f"{folder.name}.log"

        def reached(text: str) -> int:
            return signal.SIGKILL if kill_at is not None and text.count("'loss'") >= kill_at else 0

        code = run_ranks(flags(world, parts, folder, **changes), processes, log, reached)
        assert code == (0 if kill_at is None else -signal.SIGKILL), log.read_text()[-4000:]
        return Run(folder)

    return start


@pytest.fixture
def captions(world: Path) -> Path:
    """Records with one question each, as the first stage wants them."""
    rows = json.loads((world / "train.json").read_text())
    path = world / "captions.json"
    path.write_text(json.dumps([{**row, "conversations": row["conversations"][:2]} for row in rows]))
    return path


def copy_checkpoint(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
