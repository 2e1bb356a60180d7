"""Reads animated pictures (webp and png) as videos with times of their own, through Pillow.

FFmpeg decodes no animated webp. When each frame is shown is read from the file's blocks, without decoding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np

from videollama2.errors import MediaError
from videollama2.media.image import open_image, upright_rgb
from videollama2.media.kinds import PNG_START, VIDEO
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.readers import MediaWarning, ReaderBase
from videollama2.media.sources import opened

SHORTEST = 0.1
"""Seconds that a frame is shown whose duration is 0, as in browsers."""

_MAX_BLOCKS = 200_000


class AnimatedPictureReader(ReaderBase):
    """An open animated picture; see :class:`videollama2.media.readers.VideoReader`.

    Args:
        source: path, bytes or a binary file that can seek.
        name: how messages call it.
        limits: which formats are opened, and how large frames may be.

    Raises:
        MediaLimitError: its frames are too large.
        MediaError: it is damaged, or holds no frame.
    """

    def __init__(self, source: str | os.PathLike | Any, name: str, limits: MediaLimits = OWN_FILES) -> None:
        self.name, self._limits = name, limits
        self._resources = ExitStack()
        try:
            file = self._resources.enter_context(opened(source, name, VIDEO))
            durations = _durations(file)
            file.seek(0)
            self._image = self._resources.enter_context(open_image(file, name, limits))
            limits.check_frames(self._image.width, self._image.height, 1, name)
            # An apng may begin with a picture that is shown only where animation is not supported.
            self._first = 1 if self._image.info.get("default_image") else 0
            self.num_frames = min(len(durations), getattr(self._image, "n_frames", 1) - self._first)
        except BaseException:
            self.close()
            raise
        if self.num_frames < 1:
            self.close()
            raise MediaError(f"{name}: the animation has no frames")
        durations = durations[: self.num_frames]
        self.times = [float(time) for time in np.cumsum([0.0, *durations[:-1]])]
        self.duration = self.times[-1] + durations[-1]
        self.fps = self.step_fps = self.num_frames / self.duration

    def close(self) -> None:
        """See :class:`videollama2.media.readers.VideoReader`."""
        super().close()
        self._resources.close()

    def get_frames(self, indices: Sequence[int]) -> np.ndarray:
        """See :class:`videollama2.media.readers.VideoReader`.

        A frame that cannot be decoded is replaced by the one before it, with a warning; MediaError is raised where
        these are more than half of the frames.
        """
        indices = self.check_indices(indices)
        self._limits.check_frames(self._image.width, self._image.height, len(indices), self.name)
        frames: dict[int, np.ndarray] = {}
        lost = 0
        for index in sorted(set(indices)):
            try:
                self._image.seek(self._first + index)
                frames[index] = np.asarray(upright_rgb(self._image, self.name, self._limits))
            except (MediaError, EOFError, OSError, SyntaxError, ValueError) as error:
                lost += 1
                if not frames or 2 * lost > len(set(indices)):
                    raise MediaError(f"{self.name}: frame {index} cannot be decoded ({error})") from error
                frames[index] = frames[max(frames)]
        if lost:
            text = f"{lost} of the {len(frames)} frames needed are damaged; the frames before them are used"
            warnings.warn(f"{self.name}: {text}", MediaWarning, stacklevel=2)
        return np.stack([frames[index] for index in indices])


def _durations(file: BinaryIO) -> list[float]:
    """Return for how many seconds each frame of an animated webp or png is shown, in the order of the frames."""
    file.seek(0)
    is_png = file.read(len(PNG_START)) == PNG_START
    seconds = _png_durations(file) if is_png else _webp_durations(file)
    return [value if value > 0 else SHORTEST for value in seconds]


def _png_durations(file: BinaryIO) -> Iterator[float]:
    """Return the delays of a png, which are fractions of a second. Source: PNG, third edition, section 11.3.6.2."""
    file.seek(len(PNG_START))
    for _ in range(_MAX_BLOCKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, start = int.from_bytes(head[:4], "big"), file.tell()
        if head[4:] == b"fcTL":
            control = file.read(26)
            if len(control) < 26:
                return
            # A denominator of 0 stands for 100.
            yield int.from_bytes(control[20:22], "big") / (int.from_bytes(control[22:24], "big") or 100)
        file.seek(start + length + 4)


def _webp_durations(file: BinaryIO) -> Iterator[float]:
    """Return the durations of a webp, 24-bit milliseconds. Source: WebP container specification, chunk ``ANMF``."""
    file.seek(12)
    for _ in range(_MAX_BLOCKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, start = int.from_bytes(head[4:], "little"), file.tell()
        if head[:4] == b"ANMF":
            control = file.read(16)
            if len(control) < 16:
                return
            yield int.from_bytes(control[12:15], "little") / 1000
        file.seek(start + length + length % 2)
