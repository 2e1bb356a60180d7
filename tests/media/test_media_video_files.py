"""Video files under strange names, as bytes, files and streams; and what a video refuses, also once it is closed."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videollama2.errors import MediaError
from videollama2.media.frames import FrameSampling
from videollama2.media.video import open_video, read_clip


def test_a_suffix_means_nothing(film, tmp_path):
    path = film.write(tmp_path / "a.mp4", container="matroska").rename(tmp_path / "A.GIF")
    assert film.numbers(read_clip(path, FrameSampling(3)).frames_THWC) == [5, 15, 24]


@pytest.mark.parametrize("name", ["a: b.mp4", "-a.mp4", "http:a.mp4", "%d ä.mp4", "concat:a.mp4"])
def test_strange_file_names(film, tmp_path, name, monkeypatch, plain_mp4):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(plain_mp4.read_bytes())
    assert film.numbers(read_clip(name, FrameSampling(1)).frames_THWC) == [15]


def test_bytes_and_files(film, plain_mp4):
    data = plain_mp4.read_bytes()
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert film.numbers(read_clip(source, FrameSampling(3)).frames_THWC) == [5, 15, 24]
    with plain_mp4.open("rb") as file:
        file.seek(100)
        assert film.numbers(read_clip(file, FrameSampling(3)).frames_THWC) == [5, 15, 24]
        assert not file.closed


def test_a_stream_that_cannot_seek(film, plain_mp4):
    class Pipe:
        def __init__(self, data):
            self.read = io.BytesIO(data).read

    clip = read_clip(Pipe(plain_mp4.read_bytes()), FrameSampling(3))
    assert film.numbers(clip.frames_THWC) == [5, 15, 24]


def test_a_clip_says_what_it_is(plain_mp4):
    clip = read_clip(str(plain_mp4), FrameSampling(4, 1.0, 2.0))
    assert clip.indices == [10, 13, 15, 18]
    assert clip.times == pytest.approx([1.0, 1.3, 1.5, 1.8])
    assert (clip.fps, clip.total, clip.name) == (10, 30, str(plain_mp4))


def test_sound_does_not_matter(film, tmp_path):
    path = film.write(tmp_path / "a.mkv", audio_seconds=9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = read_clip(path, FrameSampling(2))
    assert film.numbers(clip.frames_THWC) == [7, 22]


def test_indices_outside_the_video(plain_mp4):
    with open_video(plain_mp4) as video:
        for indices in ([30], [-1], [0, 99]):
            with pytest.raises(MediaError, match=rf"frame {indices[-1]} is outside 0 to 29"):
                video.get_frames(indices)
        with pytest.raises(MediaError, match="no frames were asked for"):
            video.get_frames([])


def open_files():
    """Paths this process holds open, where the system tells."""
    folder = Path("/proc/self/fd")
    return [os.path.realpath(link) for link in folder.iterdir()] if folder.is_dir() else []


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "decord.mp4", "folder", "array"])
def test_closing_twice_and_reading_afterwards(film, tmp_path, name):
    """A file that cannot be sought in (a.ts) is opened again for every reading: not after it was closed."""
    source, backend = tmp_path / name, "auto"
    if name == "array":
        source = np.zeros((3, 8, 8, 3), np.uint8)
    elif name == "folder":
        source.mkdir()
        Image.fromarray(film.draw(0)).save(source / "0.png")
    else:
        film.write(source)
    if name == "decord.mp4":
        pytest.importorskip("decord", reason="decord is not installed")
        backend = "decord"
    video = open_video(source, backend)
    assert len(video.get_frames([0])) == 1
    for _ in range(2):
        video.close()
        with pytest.raises(MediaError, match="closed"):
            video.get_frames([0])
        assert str(source) not in open_files()
