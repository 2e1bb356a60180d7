"""Reading videos in the worker processes and threads that training uses."""

from concurrent.futures import ThreadPoolExecutor

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
