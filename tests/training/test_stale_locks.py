"""Locks that killed compilations leave behind."""

import os
import time

from videollama2.training.stale_locks import clear_stale_locks


def test_only_old_locks_go(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, young, other = (tmp_path / name / "lock" for name in ("deepspeed_shm_comm", "cpu_adam", "somebody_elses"))
    for lock in (old, young, other):
        lock.parent.mkdir()
        lock.touch()
    hour_ago = time.time() - 3600
    for lock in (old, other):
        os.utime(lock, (hour_ago, hour_ago))
    assert clear_stale_locks() == [old]
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
    assert f"remove {young}" in capsys.readouterr().err


def test_no_folder_no_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert clear_stale_locks() == []
