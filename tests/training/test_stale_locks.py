"""Locks that killed compilations leave behind."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from torch.utils.file_baton import FileBaton

from tests.helpers.forked import end_all, receive, start_function
from videollama2.training.stale_locks import clear_stale_locks


def hold(lock: Path, out: Connection) -> None:
    """Take the lock as torch does, and keep it until killed."""
    out.send(FileBaton(str(lock)).try_acquire())
    signal.pause()


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A lock that another process has taken, and that process."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    ours, theirs = multiprocessing.Pipe()
    process = start_function(hold, lock, theirs)
    theirs.close()
    try:
        assert receive(ours)
        yield lock, process
    finally:
        end_all([process], timeout_s=0)


@pytest.mark.slow
def test_the_owner_of_a_lock_is_asked(held, capsys):
    lock, process = held
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    assert clear_stale_locks() == []
    assert f"process {process.pid} is compiling; waiting for {lock}" in capsys.readouterr().err
    end_all([process], timeout_s=0)
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
