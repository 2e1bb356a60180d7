"""Reads packets and collects frames for the PyAV reader, which decides what is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from videollama2.errors import MediaError
from videollama2.media.limits import MediaLimits
from videollama2.media.pyav.index import PacketInfo

_VP8_SHOW_FRAME = 0x10  # RFC 6386, section 9.1: bit 4 of a frame's first byte

# PyAV raises this after the last packet when a container has shown new streams on the way (MPEG-TS may).
_NEW_STREAM = IndexError

_BLAMED_AT_JOINTS = 2

_SKIPPED_SECONDS = 2.0
"""Frames that would be shown wrongly are left out for so long; a longer stretch is shown with its faults."""


@dataclass
class Scan:
    """The packets of a video stream, and what reading them said about the state of the file.

    Attributes:
        packets: those that are decoded, in decoding order.
        seen: packets met, without placeholders.
        damaged: those of them that lost a part of their own.
        seconds: where the last packet of any stream ends, counted from 0 or from the start of the container, whichever
            is earlier: some containers state their length from the one, some from the other.
        is_cut: reading ended with an error.
    """

    packets: list[PacketInfo] = field(default_factory=list)
    seen: int = 0
    damaged: int = 0
    seconds: float = 0.0
    is_cut: bool = False

    @property
    def whole(self) -> int:
        """Packets that are not cut."""
        return self.seen - self.damaged


def scan_packets(container: Any, stream: Any) -> Scan:
    """Read the container once, without decoding."""
    scan = Scan()
    packets: list[PacketInfo] = []
    cut: set[int] = set()
    # Arithmetic with fractions would take as long as reading the packets: only each stream's last end becomes seconds.
    bases: dict[int, Fraction] = {}
    ends: dict[int, int] = {}
    codec = stream.codec_context.name
    try:
        for packet in container.demux():
            number, pts = packet.stream_index, packet.pts
            if pts is not None:
                bases[number] = bases.get(number) or packet.time_base
                end = pts + (packet.duration or 0)
                if number not in ends or end > ends[number]:
                    ends[number] = end
            # One of size 0 is the end marker, or a container's placeholder: the frame before stays on screen.
            if number == stream.index and packet.size:
                if packet.is_corrupt:
                    cut.add(len(packets))
                is_after = bool(packets) and packets[-1].is_damaged and not packet.is_keyframe
                packets.append(_describe(packet, codec, packet.is_corrupt or is_after))
    except av.error.FFmpegError:
        scan.is_cut = True
    except _NEW_STREAM:
        pass
    start = min((container.start_time or 0) / 1e6, 0.0)
    scan.seconds = max([0.0, *(float(end * bases[number]) - start for number, end in ends.items())])
    scan.seen = len(packets)
    scan.packets, left = _without_short_damage(packets, float(stream.time_base))
    scan.damaged = len(cut - left)
    return scan


def _describe(packet: Any, codec: str, is_damaged: bool) -> PacketInfo:
    is_shown = not packet.is_discard
    if codec in ("vp8", "libvpx"):
        is_shown = is_shown and bool(memoryview(packet)[0] & _VP8_SHOW_FRAME)
    return PacketInfo(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, is_shown, is_damaged)


def _without_short_damage(packets: list[PacketInfo], seconds_per_unit: float) -> tuple[list[PacketInfo], set[int]]:
    """Decide what becomes of packets that lost a part, and of those that refer to them up to the next keyframe.

    There are three cases, for each run of such packets:

    * It is one packet or two, and a keyframe follows. Transport streams that were joined look like this: their packets
      are numbered, and the numbers start again; FFmpeg blames the frame in front of the one it was reading. As a rule
      nothing was lost, and little can refer to these frames: they are kept.
    * It lasts no longer than :data:`_SKIPPED_SECONDS`. Its frames would be shown wrongly, so they are left out.
    * It is longer, or the file has no other keyframe. Leaving it out would cost the clip, so it is kept: the picture
      has faults that fade, as every player shows it.

    Returns:
        the packets that are decoded, and the places of those that only look damaged because streams were joined.
    """
    kept: list[PacketInfo] = []
    joined: set[int] = set()
    at = 0
    for is_damaged, group in groupby(packets, key=lambda packet: packet.is_damaged):
        run = list(group)
        is_last = at + len(run) == len(packets)
        if not is_damaged:
            kept += run
        elif len(run) <= _BLAMED_AT_JOINTS and not is_last:
            joined.update(range(at, at + len(run)))
            kept += run
        elif _lasts(run, seconds_per_unit) > _SKIPPED_SECONDS:
            kept += run
        at += len(run)
    return kept, joined


def _lasts(run: list[PacketInfo], seconds_per_unit: float) -> float:
    """Return the seconds between the decoding of the first and the last packet; 0 where they have no times."""
    times = [packet.dts for packet in run if packet.dts is not None]
    return (times[-1] - times[0]) * seconds_per_unit if times else 0.0


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of one stream. If reading fails, None ends them, which empties the decoder."""
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
        self._frames_THWC: np.ndarray | None = None
        self._reformatter = VideoReformatter()  # one for all frames, since its tables depend on sizes and formats alone

    def put(self, index: int, frame: Any) -> None:
        """Store the frame of this index."""
        if self._size is None:
            self._limits.check_frames(frame.width, frame.height, self._count, self._name)
            self._size = frame.width, frame.height
        width, height = self._size
        # One thread: swscale's own threads do not survive a fork.
        try:
            rgb_HWC = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"{self._name}: {frame.format.name} pixels cannot be made RGB") from error
        rgb_HWC = upright(rgb_HWC, display_matrix(frame))
        if self._frames_THWC is None:
            self._frames_THWC = np.empty((self._count, *rgb_HWC.shape), np.uint8)
        self._frames_THWC[self.positions[index]] = rgb_HWC

    def clip_THWC(self) -> np.ndarray:  # noqa: N802
        """Return all frames in the order of the indices.

        Raises:
            MediaError: none was put.
        """
        if self._frames_THWC is None:
            raise MediaError(f"{self._name}: no frame can be decoded")
        return self._frames_THWC


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return the 2x2 part (a, b, c, d) of a frame's display matrix, None where it has none.

    A pixel (x, y) is shown at (a x + c y, b x + d y). Source: FFmpeg's display.h, ISO 14496-12 section 6.2.2.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def upright(frame_HWC: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Return the frame as a player shows it: quarter turns and mirrorings are applied, other matrices ignored."""
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
