"""Reads videos through decord, the decoder of the published code.

It is used on request only: decord is unmaintained, and reads some files wrong (MPEG-TS, edit lists) or not at all
(gif, AV1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from videollama2.errors import MediaError, MissingDependencyError, first_line
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.readers import ReaderBase


class DecordReader(ReaderBase):
    """An open video file; see :class:`videollama2.media.readers.VideoReader`.

    Args:
        source: path of an existing file, or a binary file.
        name: how messages call it.
        limits: how large its frames may be; decord opens whatever format it knows.

    Raises:
        MissingDependencyError: decord is not installed.
        MediaError: decord cannot read the file.
    """

    def __init__(self, source: str | os.PathLike | Any, name: str, limits: MediaLimits = OWN_FILES) -> None:
        try:
            import decord
        except ImportError as error:
            raise MissingDependencyError.of("the video backend 'decord' needs the package decord", "decord") from error
        self.name, self._limits = name, limits
        if isinstance(source, (str, os.PathLike)):
            source = os.fspath(source)
        else:
            source.seek(0)
        try:
            # One thread: more dead-lock in DataLoader workers.
            self._video: Any = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
            self.num_frames = len(self._video)
            self._height, self._width = self._video[0].shape[:2] if self.num_frames else (0, 0)
            self.fps = self.step_fps = float(self._video.get_avg_fps())
        except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
            raise MediaError(f"{name}: decord cannot read this video ({first_line(error)})") from error
        if self.num_frames == 0:
            raise MediaError(f"{name}: the video stream has no frames that can be decoded")
        self.times, self.duration = self._read_times()

    def _read_times(self) -> tuple[list[float], float]:
        """Return the seconds of every frame after the first one, and the length of the whole video."""
        spans_T2 = np.asarray(self._video.get_frame_timestamp(range(self.num_frames)), np.float64)
        starts_T, even_T = spans_T2[:, 0] - spans_T2[0, 0], np.arange(self.num_frames) / self.fps
        if np.any(np.diff(starts_T) <= 0) or starts_T[-1] > 10 * even_T[-1] + 1:
            # decord makes up times where a container has none (avi with B-frames).
            return even_T.tolist(), self.num_frames / self.fps
        return starts_T.tolist(), float(spans_T2[-1, 1] - spans_T2[0, 0])

    def get_frames(self, indices: Sequence[int]) -> np.ndarray:
        """See :class:`videollama2.media.readers.VideoReader`."""
        import decord

        indices = self.check_indices(indices)
        self._limits.check_frames(self._width, self._height, len(indices), self.name)
        try:
            batch = self._video.get_batch(indices)
        except (decord.DECORDError, RuntimeError) as error:
            raise MediaError(f"{self.name}: decord cannot decode frames ({first_line(error)})") from error
        # The bridge of decord is global: if other code has set it to torch, batches are torch tensors.
        return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)

    def close(self) -> None:
        """See :class:`videollama2.media.readers.VideoReader`."""
        super().close()
        self._video = None
