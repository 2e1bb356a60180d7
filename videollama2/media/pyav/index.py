"""Describes a video stream's packets as integers: when each is shown, in which order they decode, where one can start.

The index is made by reading packets without decoding them, which costs a hundredth of decoding. Two orders matter, and
they differ as soon as there are B-frames: packets lie in the file in the order in which they are decoded, while frames
are asked for in the order in which they are shown. A frame's *rank* is its place in the first order, its index in
:attr:`PacketIndex.pts` the place in the second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

READ_ON_PACKETS = 12
"""A seek is worth it when it skips more packets than this: the decoder has to fill again afterwards."""

_LEAP = 10
"""A step of the clock that is so many times the usual one is not a frame's duration."""


class PacketInfo(NamedTuple):
    """One packet: times of presentation and decoding, and duration, in units of the stream's time base.

    ``is_shown`` is False for packets that are decoded only because others refer to them (before the start of
    an edit list, hidden reference frames). ``is_damaged``: a part of it was lost, or of a packet since the last
    keyframe.
    """

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_shown: bool = True
    is_damaged: bool = False


@dataclass(frozen=True)
class Keyframe:
    """A packet that decoding can start from: its two times; containers find it by one or by the other."""

    pts: int
    dts: int | None


@dataclass(frozen=True)
class DecodeRun:
    """Frames that are decoded in one go, from a keyframe on; None means from the start of the file."""

    key: Keyframe | None
    pts: tuple[int, ...]


class PacketIndex:
    """Presentation times in order, each frame's rank in decoding order, and the frames decoding can start at.

    Packets that nothing can be decoded from are left out: those before the first keyframe, in either order.

    Attributes:
        num_packets: number of packets that should become frames, known even where times are not.
        is_timed: whether every packet has a time of its own. If not, frames can be told apart by counting only.
        pts: presentation times, ascending; empty unless ``is_timed``.
        last_duration: of the frame that is shown last, as its packet states it; 0 unless ``is_timed``.
    """

    def __init__(self, packets: Iterable[PacketInfo]) -> None:
        decodable = _drop_head(list(packets))
        self.num_packets = sum(packet.is_shown for packet in decodable)
        self.is_timed = _has_usable_times(decodable)
        self.pts: list[int] = []
        self.last_duration = 0
        self._rank: dict[int, int] = {}
        self._keys: list[Keyframe] = []
        self._decoding_times = [packet.dts for packet in decodable if packet.dts is not None]
        if self.is_timed:
            self._index(decodable)

    def _index(self, decodable: Sequence[PacketInfo]) -> None:
        durations: dict[int, int] = {}
        for rank, packet in enumerate(decodable):
            if packet.pts is None:
                continue  # there is none: this index is timed
            self._rank[packet.pts] = rank
            if packet.is_shown:
                durations[packet.pts] = packet.duration
            if packet.is_keyframe:
                self._keys.append(Keyframe(packet.pts, packet.dts))
        self.pts = sorted(durations)
        self.last_duration = durations[self.pts[-1]]

    @property
    def can_seek(self) -> bool:
        """Whether there is a keyframe to start from."""
        return bool(self._keys)

    def packets_per_second(self, seconds_per_unit: float) -> float | None:
        """Return the rate of the decoding times, for streams without usable times of presentation; None if unknown.

        Where files were joined the clock may start again, or leap; only the usual steps forward count.
        """
        steps = [b - a for a, b in pairwise(self._decoding_times) if b > a]
        if not steps:
            return None
        usual = [step for step in steps if step <= _LEAP * median(steps)]
        return len(usual) / (sum(usual) * seconds_per_unit)

    def plan(self, wanted_pts: Sequence[int]) -> list[DecodeRun]:
        """Return runs that decode the wanted frames (ascending times) from as few packets as seeking allows.

        A frame can be decoded from the last keyframe that is shown at or before it. Going there means a seek, and a
        seek costs about as much as decoding a dozen packets. So the frames are gone through in order, and for each the
        question is how many packets would be skipped between the furthest one decoded so far and its keyframe: if they
        are more than :data:`READ_ON_PACKETS`, a new run begins with a seek to that keyframe; if not, the run before
        simply reads on. Distances are counted in ranks, the order of the file, because that is what a decoder reads
        through; times of presentation would mislead where B-frames are shown before packets that lie in front of them.
        """
        runs: list[tuple[Keyframe, list[int]]] = []
        rank_reached = -1
        for pts in wanted_pts:
            # Leading pictures are shown before the keyframe they follow in the file; bisecting by time of presentation
            # gives them the keyframe before that one, from which they can be decoded.
            key = self._keys[max(bisect_right(self._keys, pts, key=lambda packet: packet.pts) - 1, 0)]
            if not runs or self._rank[key.pts] - rank_reached > READ_ON_PACKETS:
                runs.append((key, []))
            runs[-1][1].append(pts)
            rank_reached = max(rank_reached, self._rank[pts])
        return [DecodeRun(key, tuple(wanted)) for key, wanted in runs]

    def is_at_or_before(self, pts: int | None, key: Keyframe) -> bool:
        """Return whether decoding from the packet of time ``pts`` on passes the keyframe."""
        return pts is not None and pts in self._rank and self._rank[pts] <= self._rank[key.pts]


def _has_usable_times(packets: list[PacketInfo]) -> bool:
    """Return whether every packet has a time, none twice, and the clock does not restart between keyframes."""
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) != len(times) or not any(packet.is_shown for packet in packets):
        return False
    keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    return all(a < b for a, b in pairwise(keys))


def _drop_head(packets: list[PacketInfo]) -> list[PacketInfo]:
    """Leave out what precedes the first keyframe, and its leading pictures, which refer to that."""
    first = next((rank for rank, packet in enumerate(packets) if packet.is_keyframe), None)
    if first is None:
        return packets
    key_pts = packets[first].pts
    if key_pts is None:
        return packets[first:]
    return [packet for packet in packets[first:] if packet.pts is None or packet.pts >= key_pts]
