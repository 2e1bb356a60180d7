"""Kept frames are those that decoding gives, within a limit, and never the reason for a run to stop."""

import json
import multiprocessing
import os
import resource
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.data.helpers import dialogue
from tests.helpers.forked import fork_together, run_function, start_together
from videollama2.data.caches.media_cache import FrameCache
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_sets
from videollama2.media.frames import FrameSampling
from videollama2.processing import VideoLlama2Processor
from videollama2.shapes.encoding import encode_video

FRAMES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
ENTRY = FRAMES.numel() + 48


def entries(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]


def never():
    raise AssertionError("decoded although it was kept")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def test_samples_are_bit_equal_and_decoded_once(folder, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), np.uint8)
    (tmp_path / "v.mp4").write_bytes(encode_video(pixels))
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "v.mp4").read_bytes())
    turns = dialogue(("<video>\nWhat?", "This."))
    rows = [{"video": name, "conversations": turns} for name in ("v.mp4", "copy.mp4")]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {**rows[0], "num_frames": 4}]))
    (records,) = read_sets([tmp_path / "rows.json"])
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    cache = FrameCache(folder, 10**9)
    plain = VideoInstructionDataset(records, processor, 2048, levels=True)
    kept = VideoInstructionDataset(records, processor, 2048, levels=True, media_cache=cache)
    for i in range(3):
        assert torch.equal(kept[i]["media"][0][1], plain[i]["media"][0][1])
    assert len(entries(folder)) == 2  # the copy is the same video, another number of frames is another entry
    monkeypatch.setattr(type(processor), "read_levels", lambda *args: never())
    expected = [len(kept[i]["media"][0][1]) for i in range(3)]
    assert expected == [processor.model_config.num_frames] * 2 + [4]
    for other in (replace(FrameSampling(), sampling="time"), FrameSampling(None, fps=10)):
        kept.sampling = other
        with pytest.raises(AssertionError, match="decoded"):
            kept[0]


def test_a_damaged_entry_is_decoded_again(folder):
    cache = FrameCache(folder, 10**6)
    cache.frames(b"video", "x", lambda: FRAMES)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for broken in (flipped, whole[:-1], whole[:20], b""):
        entry.write_bytes(broken)
        assert torch.equal(cache.frames(b"video", "x", lambda: FRAMES), FRAMES)
        assert entry.read_bytes() == whole
    assert torch.equal(cache.frames(b"video", "x", never), FRAMES)


def test_the_least_recently_used_make_room(folder):
    cache = FrameCache(folder, 5 * ENTRY)
    for number in range(5):
        cache.frames(str(number).encode(), "x", lambda: FRAMES)
    used_last = {path: 10**9 + place for place, path in enumerate(sorted(entries(folder)))}
    for path, second in used_last.items():
        os.utime(path, (second, second))
    cache.frames(b"new", "x", lambda: FRAMES)
    left = entries(folder)
    assert sum(path.stat().st_size for path in left) <= 5 * ENTRY
    oldest, *_, newest = sorted(used_last, key=used_last.get)
    assert oldest not in left and newest in left
    cache.frames(b"new", "x", never)
    # Nothing is kept that is larger than the whole cache.
    FrameCache(folder, ENTRY - 1).frames(b"large", "x", lambda: FRAMES)
    assert set(entries(folder)) == set(left)


def test_a_folder_that_cannot_be_written_to_costs_a_warning(tmp_path):
    (tmp_path / "file").touch()
    cache = FrameCache(tmp_path / "file", 10**6)
    with pytest.warns(UserWarning, match=r"--media_cache .*file: cannot be written to") as told:
        for _ in range(2):
            assert torch.equal(cache.frames(b"video", "x", lambda: FRAMES), FRAMES)
    assert len(told) == 1


def _fill(folder, barrier):
    barrier.wait()
    cache = FrameCache(folder, 4 * ENTRY)
    for number in range(20):
        assert torch.equal(cache.frames(str(number % 6).encode(), "x", lambda: FRAMES), FRAMES)


def test_processes_share_a_folder_within_its_limit(folder):
    start_together(3, _fill, folder)
    sizes = sum(path.stat().st_size for path in entries(folder))
    assert 0 < sizes <= 4 * ENTRY and int((folder / "total").read_text()) == sizes
    assert not list(folder.glob("unfinished-*"))


def _fill_without_room(cache, told, barrier):
    """A disk without room for an entry, as the system tells this process alone."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENTRY // 2, ENTRY // 2))
    barrier.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            assert torch.equal(cache.frames(str(number).encode(), "x", lambda: FRAMES), FRAMES)
    with told.get_lock():
        told.value += len(caught)


def _epochs_without_room(folder):
    """A run whose workers are forked anew for each epoch, as data loaders do."""
    cache, told = FrameCache(folder, 10**6), multiprocessing.get_context("fork").Value("i")
    fork_together(1, _fill_without_room, cache, told)
    assert told.value == 1
    fork_together(2, _fill_without_room, cache, told)  # workers of the next epoch
    assert told.value == 1
    fork_together(1, _fill_without_room, FrameCache(folder, 10**6, warns=False), told)  # another process of the run
    assert told.value == 1


def test_a_full_disk_is_told_once_by_all_workers(folder):
    run_function(_epochs_without_room, folder)
    assert not entries(folder)
