"""Reads videos through PyAV (FFmpeg): the default reader.

Opening reads the packets once, without decoding, and so knows each frame's time, where decoding can start,
and whether the file holds what its header promises. Reading then decodes only from keyframes to the frames
asked for, and finds these by their exact time, so that a container whose seeking is off is noticed and read
from the start instead.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.stream import Discard

from videollama2.errors import MediaError
from videollama2.media.kinds import VIDEO
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.pyav.container import is_much_fewer, is_much_less, open_container, video_stream
from videollama2.media.pyav.index import DecodeRun, Keyframe, PacketIndex
from videollama2.media.pyav.packets import FrameSink, Scan, packets_of, scan_packets
from videollama2.media.readers import MediaWarning, ReaderBase
from videollama2.media.sources import opened

# Containers that store where each keyframe lies. Others guess from the bit rate, and land anywhere.
_SEEKABLE = ("mov", "matroska", "avi")

PUBLISHED_GIF_FPS = 25.0
"""The published code counts 25 gif frames as one second in one-frame-per-second mode, whatever the file says.
Kept there, because it decides which frames are chosen; times and clip bounds use the gif's own delays."""

_GIF_END = b";"

# Codecs whose decoder skips exactly the frames that no other frame refers to.
_EXACT_SKIP = ("h264", "mpeg2video", "mpeg4")
_PROGRESSIVE = (0, 1)  # FFmpeg's AVFieldOrder: unknown, progressive

_RATE_TOLERANCE = 0.1  # a header's frame rate that is further off the measured one is not believed


class PyAVReader(ReaderBase):
    """An open video file; see :class:`videollama2.media.readers.VideoReader`.

    Decodes in the calling thread only, and shares nothing between readers: safe in DataLoader workers.

    Args:
        source: path of an existing file, or a binary file that can seek (it is not closed here).
        name: how messages call it.
        limits: what is opened, and how large its frames may be.

    Raises:
        MediaError: not a video, no video stream, no frames, or an mp4 that ends before its index does.
    """

    def __init__(self, source: str | os.PathLike | Any, name: str, limits: MediaLimits = OWN_FILES) -> None:
        self.name, self._limits = name, limits
        self.decoded_frames = 0
        """Frames decoded so far; what seeking saves can be read from it."""
        self._source = source
        self._container: Any = None
        try:
            self._open()
            self._read_index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See :class:`videollama2.media.readers.VideoReader`."""
        super().close()
        self._release()

    def _release(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self._release()
        self._container = open_container(self._source, self.name, self._limits)
        self._stream = video_stream(self._container, self.name, self._limits)

    def _read_index(self) -> None:
        # An mp4 lists its packets (unless in fragments): what is missing shows without the other streams.
        is_listed = self._container.format.name.startswith("mov") and self._stream.frames > 0
        if is_listed:
            for other in self._container.streams:
                other.discard = Discard.default if other is self._stream else Discard.all
        scan = scan_packets(self._container, self._stream)
        if is_listed:
            promised = sum(entry.size > 0 for entry in self._stream.index_entries)
            if scan.whole < promised:
                raise MediaError(
                    f"{self.name}: the file is truncated: its index promises {promised} frames, "
                    f"but only {scan.whole} are there"
                )
        self._index = PacketIndex(scan.packets)
        if self._index.num_packets == 0:
            raise MediaError(f"{self.name}: the video stream has no frames that can be decoded")
        if self._container.format.name == "avi" and self._stream.codec_context.has_b_frames:
            # avi stores no times; those FFmpeg makes up ignore the order of B-frames.
            self._index.is_timed = False
        self._seekable = self._container.format.name.split(",")[0] in _SEEKABLE and self._index.can_seek
        self._set_times()
        if not is_listed:
            self._warn_of_missing(scan)

    def _set_times(self) -> None:
        if self._index.is_timed:
            base = float(self._stream.time_base)
            pts = self._index.pts
            self.num_frames = len(pts)
            self.times: list[float] = [(time - pts[0]) * base for time in pts]
            self.fps = self._rate(self.times)
            self.duration = self.times[-1] + (self._index.last_duration * base or 1 / self.fps)
        else:
            self.num_frames = self._count_frames()
            self.fps = self._rate(())
            self.times = [i / self.fps for i in range(self.num_frames)]
            self.duration = self.num_frames / self.fps
        self.step_fps = PUBLISHED_GIF_FPS if self._container.format.name == "gif" else self.fps

    def _rate(self, times: Sequence[float]) -> float:
        """Return the average frames per second: what the header states if the time stamps agree, else what they say.

        A header may count an avi's placeholders as frames, or have been copied from another file.
        """
        if len(times) > 1:
            measured: float | None = (len(times) - 1) / times[-1]
        else:
            measured = self._index.packets_per_second(float(self._stream.time_base))
        rates = (self._stream.average_rate, self._stream.guessed_rate, self._stream.base_rate)
        stated = [float(rate) for rate in rates if rate and rate > 0]
        if measured is None:
            return stated[0] if stated else 1.0
        return next((rate for rate in stated if abs(rate - measured) <= _RATE_TOLERANCE * measured), measured)

    def _warn_of_missing(self, scan: Scan) -> None:
        stated = (self._container.duration or 0) / 1e6
        # An avi counts placeholders as frames: no more are missing than fit into its length.
        frames = min(self._stream.frames, math.ceil(self.fps * stated)) if stated else self._stream.frames
        is_short = is_much_less(scan.seconds, stated)
        is_sparse = is_much_fewer(scan.whole, frames)
        if scan.is_cut or scan.damaged or is_short or is_sparse or self._is_cut_gif():
            self._warn(
                f"the file is damaged or truncated; its {self.num_frames} readable frames "
                f"({self.duration:.2f} s) are used"
            )

    def _is_cut_gif(self) -> bool:
        if self._container.format.name != "gif":
            return False
        with opened(self._source, self.name, VIDEO) as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != _GIF_END

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self.name}: {message}", MediaWarning, stacklevel=2)

    def _count_frames(self) -> int:
        """Count the frames where packets do not tell, by decoding the whole video."""
        self._open()
        count = sum(not frame.is_corrupt for frame in self._decode(packets_of(self._container, self._stream)))
        if count == 0:
            raise MediaError(f"{self.name}: no frame can be decoded")
        return count

    def get_frames(self, indices: Sequence[int]) -> np.ndarray:
        """See :class:`videollama2.media.readers.VideoReader`.

        A frame that cannot be decoded is replaced by the one shown before it, with a warning; MediaError is
        raised where these are more than half of the frames.
        """
        indices = self.check_indices(indices)
        sink = FrameSink(indices, self.name, self._limits)
        if not self._index.is_timed:
            self._read_by_counting(sink)
            return sink.clip_THWC()
        index_of = {self._index.pts[i]: i for i in sorted(set(indices))}

        def deliver(pts: int, frame: Any) -> None:
            sink.put(index_of[pts], frame)

        # Two attempts, the cheap one first. It trusts the container: that a seek lands where it should, that the
        # decoder gives every frame the time of its packet. Whatever does not come that way, because the trust was
        # misplaced or because the file is damaged, is left to the second, which decodes from the start and trusts
        # nothing; only then is it known what is really lost.
        missing = self._read_needed(list(index_of), deliver)
        if missing:
            lost = self._read_in_order(missing, deliver)
            self._judge_loss(lost, len(index_of))
        return sink.clip_THWC()

    def _read_needed(self, wanted: list[int], deliver: Callable[[int, Any], None]) -> list[int]:
        """Decode little, by seeking and by skipping frames nothing refers to.

        Returns the times of frames that did not come, or came damaged. They are for :meth:`_read_in_order` to
        judge, and this container is not sought in again.
        """
        missing = set(wanted)
        if self._seekable:
            runs = self._index.plan(wanted)
        else:
            # A decoder that reached the end, or stopped in the middle, does not begin again: the file is opened anew.
            self._open()
            runs = [DecodeRun(None, tuple(wanted))]
        for run in runs:
            packets = packets_of(self._container, self._stream) if run.key is None else self._seek(run.key)
            for frame in self._decode(self._light(packets, missing)):
                if frame.pts in missing and not frame.is_corrupt:
                    deliver(frame.pts, frame)
                    missing.remove(frame.pts)
                # Frames come in the order of their times, so nothing of this run can come after its last one.
                if frame.pts is not None and frame.pts >= run.pts[-1]:
                    break
        self._seekable = self._seekable and not missing
        return sorted(missing)

    def _seek(self, key: Keyframe) -> Iterator[Any]:
        """Yield packets from this keyframe on, or from one before it; none if the container went elsewhere.

        Some containers find a keyframe by its time of presentation, others by its time of decoding, and an mp4's edit
        list may shift either. So both are tried, and each time the first packet that comes tells where the container
        went: the index knows its place in the file. Landing too early costs some decoding; landing too late, or at a
        packet that is not in the index, would miss frames, so nothing is taken from there.
        """
        for target in (key.pts, key.dts):
            if target is None:
                continue
            try:
                self._container.seek(target, stream=self._stream)
            except av.error.FFmpegError:
                continue
            packets = packets_of(self._container, self._stream)
            first = next(packets, None)
            if first is not None and self._index.is_at_or_before(first.pts, key):
                yield first
                yield from packets
                return

    def _light(self, packets: Iterator[Any], needed: set[int]) -> Iterator[Any]:
        """Yield the packets, telling the decoder to skip those neither needed nor referred to (B-frames)."""
        context = self._stream.codec_context
        # Not in interlaced video, where the second half of a needed frame may come with another time.
        can_skip = context.codec.name in _EXACT_SKIP and getattr(context, "field_order", None) in _PROGRESSIVE
        try:
            for packet in packets:
                if can_skip and packet is not None and packet.size:
                    context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
                yield packet
        finally:
            context.skip_frame = "DEFAULT"

    def _read_in_order(self, wanted: list[int], deliver: Callable[[int, Any], None]) -> int:
        """Decode from the start. A frame that never comes is replaced by the one on screen at its time.

        Returns the number of frames that were replaced, or are damaged.
        """
        self._open()
        # After a damaged keyframe the decoder holds every frame back that refers to it. Here they are better than none.
        self._stream.codec_context.flags |= Flags.output_corrupt
        pending, lost, shown = list(wanted), 0, None
        for frame in self._decode(packets_of(self._container, self._stream)):
            # The decoder has gone past these times without a frame: a player would still show the frame before. At
            # the very beginning there is none, and the first that comes has to do.
            while pending and frame.pts is not None and pending[0] < frame.pts:
                deliver(pending.pop(0), frame if shown is None else shown)
                lost += 1
            if pending and frame.pts == pending[0]:
                lost += bool(frame.is_corrupt)
                deliver(pending.pop(0), frame)
            shown = frame
            if not pending:
                break
        if pending and shown is None:
            raise MediaError(f"{self.name}: no frame can be decoded")
        for pts in pending:
            deliver(pts, shown)
        return lost + len(pending)

    def _read_by_counting(self, sink: FrameSink) -> None:
        """Decode from the start and take frames by their number, where times cannot tell them apart."""
        self._open()
        pending = sorted(set(sink.positions), reverse=True)
        frames = self._decode(packets_of(self._container, self._stream))
        for i, frame in enumerate(frame for frame in frames if not frame.is_corrupt):
            if i == pending[-1]:
                sink.put(pending.pop(), frame)
            if not pending:
                return
        raise MediaError(f"{self.name}: frame {pending[-1]} of {self.num_frames} counted did not come again")

    def _judge_loss(self, lost: int, wanted: int) -> None:
        if not lost:
            return
        if self._bad_packets and 2 * lost > wanted:
            raise MediaError(f"{self.name}: {lost} of the {wanted} frames needed cannot be decoded")
        self._warn(
            f"{lost} of the {wanted} frames needed are damaged; they have faults, or the frames before them are used"
        )

    def _decode(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Yield frames in the order they are shown. Packets that cannot be decoded are skipped and counted."""
        self._bad_packets = 0
        for packet in packets:
            try:
                frames = self._stream.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._bad_packets += 1
                continue
            self.decoded_frames += len(frames)
            yield from frames


def check_first_packet(source: str | os.PathLike | Any, name: str, limits: MediaLimits = OWN_FILES) -> None:
    """Open a file and read the first packet of its video: far cheaper than a reader, which reads them all.

    Raises:
        MediaError: not a video, no video stream, or nothing in it.
    """
    with open_container(source, name, limits) as container:
        stream = video_stream(container, name, limits)
        if not any(packet is not None and packet.size for packet in packets_of(container, stream)):
            raise MediaError(f"{name}: the video stream is empty")
