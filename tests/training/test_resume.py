"""A run that is killed goes on as if nothing had happened; a disk that is full costs nothing but the last steps."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.forked import run_python
from videollama2 import train
from videollama2.errors import CheckpointError, ConfigError
from videollama2.training.run.whole_checkpoints import check_optimizer, explain_failed_save, is_whole, last_checkpoint

from .helpers.runs import FEW_PARTS, Run, copy_checkpoint, difference, flags

SAVING = {**FEW_PARTS, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
PUBLISHED = {"mm_projector_type": "stc_connector_v35"}
KINDS = {
    "full": {**PUBLISHED, "weight_decay": 0.1, "mm_projector_lr": 1e-3, "vision_tower_lr": 5e-4},
    "grouped": {"group_by_modality_length": True},
    "lora": {"lora_enable": True, "lora_r": 4, "freeze_vision_tower": True},
    "qlora": {"lora_enable": True, "lora_r": 4, "freeze_vision_tower": True, "bits": 4},
    "connector": {"tune_mm_mlp_adapter": True, "freeze_vision_tower": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_the_middle_of_an_epoch(run, launch, captions, kind):
    """Dropout of LoRA makes the random numbers matter, six steps of four make the epoch's end matter."""
    options = {**SAVING, **KINDS[kind]}
    if kind == "connector":
        options["data_path"] = captions
    whole = run(**options)
    killed = launch(1, kill_at=3, **options)
    assert last_checkpoint(killed.folder) == str(killed.folder / "checkpoint-2")
    resumed = run(folder=killed.folder, **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    assert resumed.losses[0] != pytest.approx(resumed.losses[-1], abs=1e-3)


@pytest.mark.slow
def test_half_a_checkpoint_is_never_picked(run, run_once, tmp_path):
    options = {**SAVING, "max_steps": 4}
    whole = run_once(**options)
    broken = tmp_path / "broken"
    copy_checkpoint(whole.folder / "checkpoint-2", broken / "checkpoint-2")
    copy_checkpoint(whole.folder / "checkpoint-4", broken / "checkpoint-4")
    state = broken / "checkpoint-4" / "trainer_state.json"
    for text in ('{"global_step": 4,', "", None):
        state.write_text(text) if text is not None else state.unlink()
        assert not is_whole(broken / "checkpoint-4")
        assert last_checkpoint(broken) == str(broken / "checkpoint-2")
    # Copies under names of somebody's own are not picked either, and stop nothing.
    copy_checkpoint(whole.folder / "checkpoint-4", broken / "checkpoint-4.old")
    copy_checkpoint(whole.folder / "checkpoint-4", broken / "checkpoint-best-4")
    resumed = run(folder=broken, **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6


@pytest.mark.slow
def test_an_optimizer_never_begins_anew_in_silence(run, run_once, world, parts, capsys):
    """A checkpoint without its state, or with one that this run cannot read, is refused."""
    options = {**SAVING, "max_steps": 2}
    plain = run_once(**options).folder
    with pytest.raises(ConfigError, match=r"checkpoint-2 was written without --deepspeed, but this run is with it"):
        check_optimizer(plain / "checkpoint-2", deepspeed=True)
    folder = run(save_only_model=True, **options).folder
    (folder / "model.safetensors").unlink()
    assert train.main(flags(world, parts, folder, **options)) == 2
    assert "checkpoint-2 holds no state of the optimizer (--save_only_model)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_mark_of_an_older_checkpoint_does_not_make_a_new_one_whole(run, run_once, tmp_path):
    """Going on from an earlier checkpoint writes over later ones: these must not look whole before they are."""
    options = {**SAVING, "max_steps": 4}
    folder = shutil.copytree(run_once(**options).folder, tmp_path / "own")
    asked = folder / "checkpoint-2"
    (folder / "checkpoint-4" / "left-over").touch()
    run(folder=folder, resume_from_checkpoint=asked, **options)
    assert not (folder / "checkpoint-4" / "left-over").exists()


def begun(whole: Path, folder: Path) -> Run:
    """A copy of the first checkpoint of a run, as that run looked after two steps."""
    copy_checkpoint(whole / "checkpoint-2", folder / "begun" / "checkpoint-2")
    return Run(folder / "begun")


LIMITED = """
import resource, sys
from videollama2.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""
"""No file above 100 kB can be written: the weights of the test model are larger."""


@pytest.mark.slow
def test_disk_that_is_full_while_saving(run_once, world, parts, tmp_path):
    first = begun(run_once(**{**SAVING, "max_steps": 4}).folder, tmp_path)
    done = run_python(["-c", LIMITED, *flags(world, parts, first.folder, **{**SAVING, "max_steps": 4})])
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "checkpoint-4: cannot be written" in line
    assert f"the last whole checkpoint is {first.folder / 'checkpoint-2'}" in line
    assert not (first.folder / "checkpoint-4").exists()
    assert is_whole(first.folder / "checkpoint-2")


SMALL_DISK = """
import ctypes, os, shutil, subprocess, sys
from pathlib import Path
from videollama2.train import main

disk, content, size, *argv = sys.argv[1:]
maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
new_user, new_mounts = 0x10000000, 0x00020000
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(new_user | new_mounts) == 0, os.strerror(ctypes.get_errno())
for name, text in maps.items():
    Path("/proc/self", name).write_text(text)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
shutil.copytree(content, disk, dirs_exist_ok=True)
code = main(argv)
left = Path(disk).glob("checkpoint-*/trainer_state.json")
print("left:", *(path.relative_to(disk) for path in left), file=sys.stderr)
sys.exit(code)
"""
"""What ``unshare --map-root-user --mount`` does, in a process that has imported everything, then a training."""


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode
    if shutil.which("unshare")
    else True,
    reason="nobody may mount a disk of their own here",
)
@pytest.mark.parametrize("report_to", ["none", "tensorboard"])
def test_disk_without_room_for_a_second_checkpoint(run_once, world, parts, tmp_path, report_to):
    """A disk that really is full. Only one checkpoint is to be kept, but the old one goes when the new one is whole."""
    first = begun(run_once(**SAVING).folder, tmp_path)
    used = sum(path.stat().st_size for path in first.folder.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    changes = {**SAVING, "max_steps": 6, "save_total_limit": 1, "report_to": report_to}
    argv = flags(world, parts, disk, **changes)
    done = run_python(["-c", SMALL_DISK, disk, first.folder, int(1.3 * used), *argv])
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written" in line and "0.0 GB free on the disk" in line
    assert f"the last whole checkpoint is {disk / 'checkpoint-2'}" in line
    assert "left: checkpoint-2/trainer_state.json\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_error_of_a_writer_is_told_with_the_folder(tmp_path):
    words = r"result: cannot be written .*GB free.*there is no other checkpoint"
    with pytest.raises(CheckpointError, match=words), explain_failed_save(tmp_path / "result", remove=True):
        os.open(tmp_path / "no" / "such", os.O_WRONLY)
