"""What the PyAV reader does with packets and frames outside of deciding which to decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from videollama2.errors import MediaError
from videollama2.media.limits import MediaLimits
from videollama2.media.pyav.index import PacketInfo

_VP8_SHOW_FRAME = 0x10  # RFC 6386, section 9.1: bit 4 of a frame's first byte

# PyAV raises this after the last packet when a container has shown new streams on the way (MPEG-TS may).
_NEW_STREAM = IndexError


@dataclass
class Scan:
    """All packets of a video stream, and what reading them said about the state of the file.

    Attributes:
        packets: those that should decode, in decoding order; after a cut one, none before a keyframe.
        seen: packets met; whole: those of them that are not cut.
        seconds: end of the last packet of any stream that was read, from the start of the container.
        is_cut: reading ended with an error.
        waits_for_key: the last packet met was cut, or referred to one that is.
    """

    packets: list[PacketInfo] = field(default_factory=list)
    seen: int = 0
    whole: int = 0
    seconds: float = 0.0
    is_cut: bool = False
    waits_for_key: bool = False


def scan_packets(container: Any, stream: Any) -> Scan:
    """Read the container once, without decoding."""
    scan = Scan()
    start = (container.start_time or 0) / 1e6
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                scan.seconds = max(scan.seconds, end - start)
            if packet.stream_index == stream.index:
                _note(scan, packet, stream.codec_context.name)
    except av.error.FFmpegError:
        scan.is_cut = True
    except _NEW_STREAM:
        pass
    return scan


def _note(scan: Scan, packet: Any, codec: str) -> None:
    if packet.size == 0:
        return  # the end marker, or a container's placeholder: the frame before stays on screen
    scan.seen += 1
    if packet.is_corrupt:
        scan.waits_for_key = True
        return
    scan.whole += 1
    scan.waits_for_key = scan.waits_for_key and not packet.is_keyframe
    if scan.waits_for_key:
        return
    shown = not packet.is_discard
    if codec in ("vp8", "libvpx"):
        shown = shown and bool(memoryview(packet)[0] & _VP8_SHOW_FRAME)
    scan.packets.append(PacketInfo(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, shown))


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Packets of one stream. Where reading fails it ends, and what the decoder still holds comes out."""
    try:
        yield from container.demux(stream)
    except (av.error.FFmpegError, _NEW_STREAM):
        yield None


class FrameSink:
    """Collects decoded frames into one array, each at every place that wants it.

    Frames are converted to RGB, turned upright, and brought to the first one's size (a stream may change).
    """

    def __init__(self, indices: Sequence[int], name: str, limits: MediaLimits) -> None:
        self.positions: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            self.positions.setdefault(index, []).append(position)
        self._count, self._name, self._limits = len(indices), name, limits
        self._size: tuple[int, int] | None = None
        self.frames_THWC: np.ndarray | None = None

    def put(self, index: int, frame: Any) -> None:
        """Store the frame of this index."""
        if self._size is None:
            self._limits.check_frames(frame.width, frame.height, self._count, self._name)
            self._size = frame.width, frame.height
        width, height = self._size
        # One thread: swscale's own threads do not survive a fork.
        try:
            rgb_HWC = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"{self._name}: {frame.format.name} pixels cannot be made RGB") from error
        rgb_HWC = upright(rgb_HWC, display_matrix(frame))
        if self.frames_THWC is None:
            self.frames_THWC = np.empty((self._count, *rgb_HWC.shape), np.uint8)
        self.frames_THWC[self.positions[index]] = rgb_HWC


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """The 2x2 part (a, b, c, d) of a frame's display matrix, None where it has none.

    A pixel (x, y) is shown at (a x + c y, b x + d y). Source: FFmpeg's display.h, ISO 14496-12 section 6.2.2.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def upright(frame_HWC: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """The frame as a player shows it: quarter turns and mirrorings are applied, other matrices ignored."""
    if matrix is None:
        return frame_HWC
    a, b, c, d = matrix
    if a and d and not (b or c):
        step_y, step_x = d, a
    elif b and c and not (a or d):
        frame_HWC = frame_HWC.swapaxes(0, 1)
        step_y, step_x = b, c
    else:
        return frame_HWC
    return frame_HWC[:: 1 if step_y > 0 else -1, :: 1 if step_x > 0 else -1]
