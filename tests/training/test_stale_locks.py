"""Locks that killed compilations leave behind."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from videollama2.training.stale_locks import clear_stale_locks

HOLD = """
import sys
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A lock that another process has taken as torch does, and that process."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], text=True, **pipes)
    assert process.stdout.readline() == "held\n"
    yield lock, process
    process.kill()
    process.wait()


def test_the_owner_of_a_lock_is_asked(held, capsys):
    lock, process = held
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    assert clear_stale_locks() == []
    assert f"process {process.pid} is compiling; waiting for {lock}" in capsys.readouterr().err
    process.kill()
    process.wait()
    lock.touch()
    assert clear_stale_locks() == [lock]  # however young it is
    assert not lock.exists()


def test_on_a_shared_file_system_age_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    partition = psutil.disk_partitions(all=True)[0]
    monkeypatch.setattr(
        psutil, "disk_partitions", lambda all: [partition._replace(mountpoint=str(tmp_path.resolve()), fstype="nfs4")]
    )
    old, young, other = (tmp_path / name / "lock" for name in ("deepspeed_shm_comm", "cpu_adam", "somebody_elses"))
    for lock in (old, young, other):
        lock.parent.mkdir()
        lock.touch()
    hour_ago = time.time() - 3600
    for lock in (old, other):
        os.utime(lock, (hour_ago, hour_ago))
    assert clear_stale_locks() == [old]
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
    assert f"another machine may be compiling; waiting for {young}" in capsys.readouterr().err


def test_no_folder_no_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert clear_stale_locks() == []
