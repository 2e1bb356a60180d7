"""A run that is told to stop writes a whole checkpoint after the step under way and goes on from it to the bit."""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from tests.helpers.forked import end_all, run_ranks, start
from videollama2 import train
from videollama2.training.run.stopping import SIGNALS, shield_workers
from videollama2.training.run.whole_checkpoints import last_checkpoint

from .helpers.runs import FEW_PARTS, Run, flags

pytestmark = pytest.mark.usefixtures("plotted")

LORA = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.2, "freeze_vision_tower": True}
STEPS = 6
LONG = 16
"""Steps of runs in processes of their own: the signal must come before the end also on a machine that is fast."""
POINTS = int(os.environ.get("VIDEOLLAMA2_STOP_POINTS", "2"))
"""How often a run is stopped at a random point."""
# An epoch of 14 records ends after four steps, the last of them of one micro-batch.
OPTIONS = {
    **LORA,
    **FEW_PARTS,
    "num_frames": 2,
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "dataloader_num_workers": 1,
}


def long(processes: int) -> dict[str, object]:
    return {**OPTIONS, "max_steps": LONG, "gradient_accumulation_steps": 2 // processes}


def main(argv: list[str]) -> int:
    """Train as the first process of a group, as a launcher starts it."""
    os.setsid()
    return train.main(argv)


def wait_within_a_step(seed: int) -> None:
    """Signals are to come anywhere within the step that follows."""
    time.sleep(random.Random(seed).random() * 0.05)


def check_nothing_looks_finished(folder: Path, told: str) -> None:
    assert not [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("loss.png")], told
    assert last_checkpoint(folder) is not None, told


def same_to_the_bit(a: Run, b: Run) -> bool:
    return a.weights.keys() == b.weights.keys() and all((a.weights[n] == b.weights[n]).all() for n in a.weights)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stopped_at_random_points_is_that_of_an_undisturbed_one(world, parts, launch, tmp_path, processes):
    """A run is stopped, continued, stopped again and so on, at points that are random within a step."""
    draw = random.Random(processes)
    options = {**OPTIONS, "max_steps": 6 * POINTS}
    folder, stops = tmp_path / "out", []
    argv = flags(world, parts, folder, **options)
    for point in range(POINTS):
        log, steps, number = tmp_path / f"{point}.log", draw.choice([1, 1, 2]), draw.choice(SIGNALS)

        def reached(text: str, steps: int = steps, number: int = number, wait: float = draw.random()) -> int:
            if text.count("'loss'") < steps:
                return 0
            time.sleep(wait * min(seconds_of_a_step(text, processes), 1.0))  # a first step may take much longer
            return number

        code, told = run_ranks(argv, processes, log, reached), log.read_text()
        if "holds the result" in told:
            # A machine may be so busy that the run is over before it can be signalled; then the steps in which this
            # happened are those of test_a_signal_in_every_step alone.
            break
        assert code == 128 + number, told[-6000:]
        stop = re.search(rf"stopped by {signal.Signals(number).name} after step (\d+)", told)
        assert stop, told[-6000:]
        stops.append(int(stop[1]))
        check_nothing_looks_finished(folder, told)
        assert last_checkpoint(folder) == str(folder / f"checkpoint-{stops[-1]}")
    print(f"stopped after steps {stops}")
    resumed, whole = launch(processes, folder=folder, **options), launch(processes, **options)
    assert same_to_the_bit(resumed, whole)
    assert resumed.losses == whole.losses


def seconds_of_a_step(log: str, processes: int) -> float:
    """The duration of the last step, from its rate of samples."""
    return 4 * processes / float(re.findall(r"'samples_per_second': '?([0-9.e+-]+)", log)[-1])


@pytest.mark.slow
def test_a_launcher_that_is_signalled_ends_its_processes_as_if_nothing_had_been(
    world, parts, launch, torchrun, tmp_path
):
    folder, log = tmp_path / "out", tmp_path / "log"

    def reached(text: str) -> int:
        if text.count("'loss'") < 4:
            return 0
        wait_within_a_step(4)
        return signal.SIGTERM

    assert torchrun(flags(world, parts, folder, **long(2)), log, watch=reached) == 1
    told = log.read_text()
    assert "stopped by SIGTERM after step" in told, told[-6000:]
    check_nothing_looks_finished(folder, told)
    resumed, whole = launch(2, folder=folder, **long(2)), launch(2, **long(2))
    assert same_to_the_bit(resumed, whole)
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_a_signal_in_every_step(run, world, parts, tmp_path, capsys, monkeypatch):
    """In this process, and at each step in turn: the epoch's end and the last step among them."""
    uninterrupted = run(**OPTIONS)
    folder = tmp_path / "out"
    argv = flags(world, parts, folder, **OPTIONS)
    calls = [0]

    def fetch(self, *args):
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), random.Random(self.state.global_step).choice([signal.SIGTERM, signal.SIGUSR1]))
        return original(self, *args)

    original = train.VideoLlama2Trainer._fetch
    monkeypatch.setattr(train.VideoLlama2Trainer, "_fetch", fetch)
    codes = []
    for _ in range(STEPS + 2):
        calls[0] = 0
        codes.append(train.main(argv))
        if codes[-1] == 0:
            break
        check_nothing_looks_finished(folder, capsys.readouterr().err)
    assert len(codes) == STEPS and set(codes[:-1]) <= {128 + signal.SIGTERM, 128 + signal.SIGUSR1}
    assert same_to_the_bit(Run(folder), uninterrupted)


@pytest.mark.slow
def test_a_signal_during_the_last_step(world, parts, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    argv = flags(world, parts, folder, max_steps=1, num_frames=2, **FEW_PARTS)
    step = train.VideoLlama2Trainer.training_step

    def signalled(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(train.VideoLlama2Trainer, "training_step", signalled)
    assert train.main(argv) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 1" in capsys.readouterr().err
    check_nothing_looks_finished(folder, "")
    monkeypatch.undo()
    assert train.main(argv) == 0
    assert (folder / "model.safetensors").is_file()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --------------------------------------------------------------------------------------- an error in a sample


@pytest.fixture
def broken(world, tmp_path) -> Path:
    """Annotations whose last clip is damaged when it is met."""
    rows = json.loads((world / "mixed.json").read_text())
    for row in rows:
        for key in ("video", "image"):
            if key in row:
                row[key] = str(world / row[key])
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(Path(rows[0]["video"]).read_bytes()[:600])
    rows[0] = {**rows[0], "id": "the-broken-one", "video": str(clip)}
    (tmp_path / "broken.json").write_text(json.dumps(rows))
    return tmp_path / "broken.json"


MEETING = {"per_device_train_batch_size": 1, "max_steps": 14, "seed": 4, "num_frames": 2, **LORA, **FEW_PARTS}
"""Options of a run that meets each record once."""


@pytest.fixture(scope="module")
def unbroken(world, parts, tmp_path_factory) -> Run:
    """Such a run on the same records, none of them damaged."""
    folder = tmp_path_factory.mktemp("unbroken")
    train.train(*train.parse_arguments(flags(world, parts, folder, **MEETING)))
    return Run(folder)


def holds_what_was_learnt(line: str, checkpoint: str) -> bool:
    """Whether an error ends by naming the checkpoint and its step."""
    return line.endswith(f"; {checkpoint} holds what was learnt up to step {checkpoint.rpartition('-')[2]}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_sample_leaves_a_checkpoint(world, parts, broken, unbroken, tmp_path, capsys, workers):
    folder = tmp_path / "out"
    options = {**MEETING, "data_path": broken, "dataloader_num_workers": workers, "disable_tqdm": False}
    argv = flags(world, parts, folder, **options)
    assert train.main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    checkpoint = last_checkpoint(folder)
    assert "'the-broken-one'" in line and "clip.mp4" in line
    assert checkpoint is not None and holds_what_was_learnt(line, checkpoint)
    # The clip is mended, and the run goes on as if it had never been broken.
    clip = broken.parent / "clip.mp4"
    clip.write_bytes((world / json.loads((world / "mixed.json").read_text())[0]["video"]).read_bytes())
    assert train.main(argv) == 0
    assert same_to_the_bit(Run(folder), unbroken)


@pytest.mark.slow
def test_an_error_in_a_sample_of_one_process_stops_both(world, parts, broken, tmp_path):
    folder = tmp_path / "out"
    options = {"data_path": broken, "per_device_train_batch_size": 1, "max_steps": 7, "seed": 4, **FEW_PARTS}
    log = tmp_path / "log"
    assert run_ranks(flags(world, parts, folder, **options), 2, log) != 0
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "'the-broken-one'" in line and holds_what_was_learnt(line, last_checkpoint(folder))


def struck(worker: int) -> None:
    """A worker's first Python code; here it meets both signals before it has said what to do about them."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)


def test_a_signal_while_a_loader_worker_begins():
    loader = DataLoader(range(3), batch_size=None, num_workers=1, worker_init_fn=struck)
    shield_workers(loader)
    assert list(loader) == [0, 1, 2]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


class Striking(Dataset):
    """Sends its process a signal before each item."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), self.numbers[index])
        return index


def test_a_signal_to_a_loader_worker_itself():
    """Slurm signals every process of a job."""
    loader = DataLoader(Striking([signal.SIGTERM, signal.SIGUSR1]), batch_size=None, num_workers=1)
    shield_workers(loader)
    assert list(loader) == [0, 1]


def test_a_second_sigterm_ends_a_loader_worker():
    """A worker that hangs must end with its parent, which asks for it with SIGTERM."""
    loader = DataLoader(Striking([signal.SIGTERM, signal.SIGTERM]), batch_size=None, num_workers=1)
    shield_workers(loader)
    with pytest.raises(RuntimeError, match="killed by signal: Terminated|exited unexpectedly"):
        list(loader)


@pytest.mark.slow
def test_loader_workers_do_not_die_of_a_signal_to_the_group(world, parts, tmp_path):
    """Launchers signal the whole group of a process."""
    folder, log = tmp_path / "out", tmp_path / "log"
    begun, deadline = start(__name__, flags(world, parts, folder, **long(1)), log), time.monotonic() + 240
    try:
        while "'loss'" not in log.read_text():
            assert begun.is_alive() and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        workers = psutil.Process(begun.pid).children()
        os.killpg(begun.pid, signal.SIGTERM)
    finally:
        end_all([begun], timeout_s=240)
    told = log.read_text()
    assert workers and begun.exitcode == 128 + signal.SIGTERM, told
    check_nothing_looks_finished(folder, told)
    assert sys.platform != "linux" or not psutil.wait_procs(workers, timeout=30)[1]
