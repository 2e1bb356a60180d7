"""Defines what a video is to the rest of the package, and reads frames that lie apart: folders, lists, arrays.

A reader knows how many frames there are and when each is shown, and hands out the ones asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from videollama2.errors import MediaError
from videollama2.media.arrays import rgb_frames
from videollama2.media.image import load_image
from videollama2.media.kinds import IMAGE, SUFFIXES, VIDEO
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.sources import describe_source

FOLDER_FPS = 3.0
"""Default rate of a folder of frames (published; TVQA stores its frames this way)."""

LIST_FPS = 1.0
"""Rate of frames that come without times: one-frame-per-second mode then keeps them all (published)."""


class MediaWarning(UserWarning):
    """A video was read, but something in it was not as its header says; the message names the file."""


class VideoReader(Protocol):
    """An open video.

    Attributes:
        name: path or description, for messages.
        num_frames: number of frames that can be read.
        fps: average rate in frames per second.
        step_fps: rate that one-frame-per-second sampling counts in; equals ``fps`` except for gifs.
        times: when each frame is shown, in seconds after the first one.
        duration: seconds from the first frame's appearance to the last one's end.
    """

    name: str
    num_frames: int
    fps: float
    step_fps: float

    @property
    def times(self) -> Sequence[float]: ...

    @property
    def duration(self) -> float: ...

    def get_frames(self, indices: Sequence[int]) -> np.ndarray | list[np.ndarray]:
        """Return ``frames_THWC`` uint8 RGB in the order of ``indices``, which may repeat.

        A list of HWC arrays where frames differ in size (folders and lists of images only).

        Raises:
            MediaError: an index is out of range, or a frame cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Close the file. Closing twice is allowed, reading afterwards is not."""
        ...

    def __enter__(self) -> VideoReader: ...

    def __exit__(self, *exc_info: object) -> None: ...


class ReaderBase:
    """The parts of a reader that do not depend on where frames come from."""

    name: str
    num_frames: int
    is_closed: bool = False

    def close(self) -> None:
        """Give up the file. Closing twice is allowed, reading afterwards is not."""
        self.is_closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def check_indices(self, indices: Sequence[int]) -> list[int]:
        """Return the indices as ints; raise MediaError for no index, one outside the video, or a closed reader."""
        if self.is_closed:
            raise MediaError(f"{self.name}: was closed; open it again to read frames")
        checked = [int(i) for i in indices]
        if not checked:
            raise MediaError(f"{self.name}: no frames were asked for")
        for i in checked:
            if not 0 <= i < self.num_frames:
                raise MediaError(f"{self.name}: frame {i} is outside 0 to {self.num_frames - 1}")
        return checked


class EvenlySpacedReader(ReaderBase):
    """Frames without times of their own: they come at a constant rate."""

    def __init__(self, name: str, num_frames: int, fps: float) -> None:
        if not fps > 0:
            raise MediaError(f"{name}: frame rate {fps} is not a positive number")
        self.name, self.num_frames = name, num_frames
        self.fps = self.step_fps = float(fps)

    @property
    def times(self) -> list[float]:
        """Seconds of each frame."""
        return [i / self.fps for i in range(self.num_frames)]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames / self.fps


class ImageListReader(EvenlySpacedReader):
    """A list whose items are anything :func:`load_image` takes. Only the items asked for are opened."""

    def __init__(
        self, images: Sequence[Any], fps: float = LIST_FPS, name: str | None = None, limits: MediaLimits = OWN_FILES
    ) -> None:
        name = describe_source(images) if name is None else name
        if len(images) == 0:
            raise MediaError(f"{name}: there are no frames")
        super().__init__(name, len(images), fps)
        self._images, self._limits = list(images), limits

    def get_frames(self, indices: Sequence[int]) -> np.ndarray | list[np.ndarray]:
        """See :class:`VideoReader`."""
        indices = self.check_indices(indices)
        loaded: dict[int, np.ndarray] = {}
        # A short list repeats frames to reach the number that was asked for; each is decoded once.
        for i in dict.fromkeys(indices):
            image = load_image(self._images[i], self._limits)
            self._limits.check_frames(image.width, image.height, len(indices), self.name)
            loaded[i] = np.asarray(image)
        frames = [loaded[i] for i in indices]
        return np.stack(frames) if len({frame.shape for frame in frames}) == 1 else frames


class FrameFolderReader(ImageListReader):
    """A folder of numbered images. Other files in it are ignored, except videos: a folder of these is not a video.

    Order is natural, 2 before 10. (The published order is by character: 10 before 2.)
    """

    def __init__(self, folder: str | os.PathLike, fps: float = FOLDER_FPS, limits: MediaLimits = OWN_FILES) -> None:
        files = [path for path in Path(folder).iterdir() if not path.name.startswith(".") and path.is_file()]
        videos = sorted(path.name for path in files if path.suffix.lower() in SUFFIXES[VIDEO])
        if videos:
            raise MediaError(f"{folder}: the folder holds videos, such as {videos[0]}: a video is named by its file")
        paths = sorted((path for path in files if path.suffix.lower() in SUFFIXES[IMAGE]), key=_natural_key)
        if not paths:
            raise MediaError(f"{folder}: the folder holds no images")
        super().__init__(paths, fps, str(folder), limits)


class ArrayReader(EvenlySpacedReader):
    """A clip held in memory as one array or tensor, of the shapes :func:`arrays.rgb_frames` takes."""

    def __init__(self, array: Any, fps: float = LIST_FPS) -> None:
        name = describe_source(array)
        self._frames_THWC = rgb_frames(array, name)
        super().__init__(name, len(self._frames_THWC), fps)

    def get_frames(self, indices: Sequence[int]) -> np.ndarray:
        """See :class:`VideoReader`. The result is a copy."""
        return np.ascontiguousarray(self._frames_THWC[self.check_indices(indices)])


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
