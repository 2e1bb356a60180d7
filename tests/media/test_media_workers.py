"""Reading videos in the worker processes and threads that training uses."""

import gc
import io
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from videollama2.media.frames import FrameSampling
from videollama2.media.video import read_clip

FRAMES = 4


class Clips(Dataset):
    """Clips of a few files, each read when it is asked for."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return torch.from_numpy(read_clip(self.paths[i], FrameSampling(FRAMES)).frames_THWC)


@pytest.fixture(scope="module")
def clips(film, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [film.write(folder / f"{i}.mp4", frames=20 + 10 * i) for i in range(4)]
    paths.append(film.write(folder / "5.mkv", "libx265"))
    paths.append(film.write(folder / "6.webm", "libvpx-vp9", b_frames=0))
    return Clips(paths)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_dataloader_workers_read_the_same_frames(clips, method, workers):
    here = torch.stack([clips[i] for i in range(len(clips))])  # the parent has decoded before it forks
    loader = DataLoader(clips, batch_size=2, num_workers=workers, multiprocessing_context=method, timeout=120)
    assert torch.equal(torch.cat(list(loader)), here)


def test_threads_read_the_same_frames(clips):
    here = [clips[i].numpy() for i in range(len(clips))]
    with ThreadPoolExecutor(4) as pool:
        there = list(pool.map(lambda i: clips[i % len(clips)].numpy(), range(24)))
    for i, frames_THWC in enumerate(there):
        assert np.array_equal(frames_THWC, here[i % len(here)])


def _leave_an_encoder_as_garbage():
    """Cyclic garbage, as an error with its traceback would be, that holds an encoder and a converter with threads."""
    with av.open(io.BytesIO(), "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 2
        for shade in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")))
        output.mux(stream.encode())
        kept = [stream]
        kept.append(kept)


def test_a_fork_does_not_wait_for_threads_of_its_parent():
    """FFmpeg joins its threads when their owner is freed, and a fork has none of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _leave_an_encoder_as_garbage()
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
    finally:
        if was_enabled:
            gc.enable()
    process.join(120)
    code = process.exitcode
    process.kill()
    process.join(120)
    assert code == 0
