"""Small video files whose frames show their own number, so that any reading can be checked, and sound files."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import OutputContainer
from av.stream import Disposition
from av.video.frame import PictureType
from PIL import Image

from tests.conftest import golden_audio_dir

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes a page of settings otherwise

HEIGHT, WIDTH = 64, 128
SOUNDS = golden_audio_dir() / "media"
_QUIET = {"libx265": {"x265-params": "log-level=none:pools=none"}, "libsvtav1": {"preset": "12"}}


@contextmanager
def _ordinary_priority() -> Iterator[None]:
    """Gives the calling thread its scheduling back afterwards.

    The AV1 encoder, run as root, makes the thread that opens it real-time (SCHED_FIFO, 99). All that this process
    starts later inherits it, and a browser that waits in a loop at that priority takes the whole machine.
    """
    if not hasattr(os, "sched_getscheduler"):  # on macOS, where the encoder changes nothing
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


class Film:
    """Draws, writes and reads numbered frames of 128x64."""

    @staticmethod
    def draw(number: int) -> np.ndarray:
        """Frame (H,W,3): eight black or white blocks on top spell the number, below are bands of colour."""
        frame_HWC = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for bit in range(8):
            frame_HWC[:32, bit * 16 : bit * 16 + 16] = 255 * (number >> bit & 1)
        for band, colour in enumerate(((220, 20, 20), (20, 220, 20), (20, 20, 220), (128, 128, 128))):
            frame_HWC[32:, band * 32 : band * 32 + 32] = colour
        return frame_HWC

    @staticmethod
    def number(frame_HWC: np.ndarray) -> int:
        """The number that a frame shows."""
        return sum(int(frame_HWC[8:24, bit * 16 + 5 : bit * 16 + 11].mean() > 127) << bit for bit in range(8))

    @classmethod
    def numbers(cls, frames: Sequence[np.ndarray]) -> list[int]:
        """The numbers that frames show."""
        return [cls.number(frame_HWC) for frame_HWC in frames]

    @classmethod
    def write(
        cls,
        path: Path,
        codec: str = "libx264",
        *,
        frames: int = 30,
        fps: int = 10,
        gop: int = 10,
        b_frames: int = 2,
        times_ms: Sequence[int] | None = None,
        rotation: int | None = None,
        container: str | None = None,
        movflags: str | None = None,
        keyframes: Sequence[int] = (),
        audio_seconds: float = 0,
        pixel_format: str = "yuv420p",
        options: dict[str, str] | None = None,
    ) -> Path:
        """A video of numbered frames; skips the test where PyAV was built without the encoder."""
        if codec not in av.codecs_available:
            pytest.skip(f"PyAV has no encoder {codec}")
        settings = {"g": str(gop), "bf": str(b_frames), **_QUIET.get(codec, {}), **(options or {})}
        muxer_options = {"movflags": movflags} if movflags else {}
        with _ordinary_priority(), av.open(str(path), "w", format=container, options=muxer_options) as output:
            stream = output.add_stream(codec, rate=fps, options=settings)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
            stream.codec_context.thread_count = 1
            base = Fraction(1, fps)
            if times_ms is not None:
                base = stream.codec_context.time_base = Fraction(1, 1000)
            if rotation is not None:
                stream.set_display_rotation(rotation)
            if audio_seconds:
                cls._add_audio(output, audio_seconds)
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(cls.draw(number), format="rgb24")
                frame.pts = number if times_ms is None else times_ms[number]
                frame.time_base = base
                if number in keyframes:
                    frame.pict_type = PictureType.I
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    @staticmethod
    def _add_audio(output: OutputContainer, seconds: float) -> None:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        samples = np.zeros((1, int(16000 * seconds)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

    @classmethod
    def write_audio(cls, path: Path) -> Path:
        """A file with a sound track and no picture."""
        with av.open(str(path), "w") as output:
            cls._add_audio(output, 1.0)
        return path


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """Samples (S,) of a sine."""
    return 0.25 * np.sin(2 * np.pi * hertz / rate * np.arange(round(seconds * rate)))


def write_wav(path: Path, waves_CS: Sequence[Sequence[float] | np.ndarray] | np.ndarray, rate: int = 16000) -> Path:
    """A wav file of 16 bits with one wave for each channel."""
    with wave.open(str(path), "wb") as file:
        file.setparams((len(waves_CS), 2, rate, 0, "NONE", ""))
        file.writeframes((np.asarray(waves_CS).T * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    return path


def broken(name: str, folder: Path, damaged: int) -> Path:
    """A file of which so many bytes in the middle are noise."""
    content = bytearray((SOUNDS / name).read_bytes())
    middle = len(content) // 2
    content[middle : middle + damaged] = np.random.default_rng(0).bytes(damaged)
    path = folder / name
    path.write_bytes(content)
    return path


def with_cover(folder: Path) -> Path:
    """A sound file with a picture on its cover."""
    path = folder / "cover.mp4"
    picture = folder / "cover.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    sound = SOUNDS / "door_cut.wav"
    with av.open(str(path), "w") as output, av.open(str(picture)) as cover, av.open(str(sound)) as wav:
        art = output.add_stream_from_template(cover.streams.video[0])
        art.disposition = Disposition.attached_pic
        stream = output.add_stream("aac", rate=wav.streams.audio[0].rate, layout="mono")
        for frame in wav.decode(audio=0):
            frame.pts = None
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for packet in cover.demux():
            if packet.size:
                packet.stream = art
                output.mux(packet)
    return path
