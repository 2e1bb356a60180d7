"""Planning what to decode, on packets made up for the purpose."""

from videollama2.media.pyav.index import READ_ON_PACKETS, Keyframe, PacketIndex, PacketInfo


def packets(length: int, gop: int) -> list[PacketInfo]:
    """One packet per 10 units of time, a keyframe every ``gop``, nothing reordered."""
    return [PacketInfo(10 * i, 10 * i, 10, i % gop == 0) for i in range(length)]


def reordered() -> list[PacketInfo]:
    """Two groups I P B B with open leading pictures: times 0 30 10 20, then 60 40 50 90 70 80."""
    return [
        PacketInfo(pts, i * 10 - 10, 10, pts in (0, 60))
        for i, pts in enumerate((0, 30, 10, 20, 60, 40, 50, 90, 70, 80))
    ]


def test_times_come_in_order_of_presentation():
    index = PacketIndex(reordered())
    assert index.is_timed
    assert index.pts == list(range(0, 100, 10))
    assert index.last_duration == 10


def test_frames_in_one_group_are_one_run():
    runs = PacketIndex(packets(100, 50)).plan([100, 200, 400])
    assert [(run.key.pts, run.pts) for run in runs] == [(0, (100, 200, 400))]


def test_distant_groups_are_sought():
    runs = PacketIndex(packets(200, 50)).plan([10, 520, 1990])
    assert [(run.key.pts, run.pts) for run in runs] == [(0, (10,)), (500, (520,)), (1500, (1990,))]


def test_short_groups_are_read_through():
    # Frames every 6 packets, keyframes every 2: a seek would skip 4 packets only.
    runs = PacketIndex(packets(60, 2)).plan(list(range(0, 600, 60)))
    assert len(runs) == 1


def test_the_next_group_is_sought_only_when_that_skips_packets():
    index = PacketIndex(packets(200, 50))
    near, far = 50 - READ_ON_PACKETS, 50 - READ_ON_PACKETS - 1
    assert len(index.plan([10 * near, 500])) == 1
    assert len(index.plan([10 * far, 500])) == 2


def test_leading_pictures_start_from_the_group_before():
    # 40 and 50 are decoded after the keyframe 60 but refer to what is before it.
    (run,) = PacketIndex(reordered()).plan([50])
    assert run.key.pts == 0


def test_packets_before_the_first_keyframe_are_left_out():
    cut = reordered()[2:]  # 10 20 60 40 50 90 ...: nothing of 10, 20, 40 and 50 can be decoded
    index = PacketIndex(cut)
    assert index.pts == [60, 70, 80, 90]
    assert index.num_packets == 4


def test_hidden_packets_are_decoded_from_but_not_counted():
    hidden = [PacketInfo(p.pts - 20, p.dts, 10, p.is_keyframe, p.pts >= 20) for p in packets(10, 10)]
    index = PacketIndex(hidden)
    assert index.pts == list(range(0, 80, 10))
    (run,) = index.plan([0])
    assert run.key.pts == -20


def test_times_that_cannot_be_trusted_are_not():
    good = packets(10, 5)
    missing = [*good[:3], PacketInfo(None, None, 10, False), *good[4:]]
    twice = [*good, PacketInfo(90, 100, 10, False)]
    restarted = [*packets(10, 5), *(PacketInfo(p.pts + 5, p.dts, 10, p.is_keyframe) for p in packets(10, 5))]
    for broken in (missing, twice, restarted):
        index = PacketIndex(broken)
        assert not index.is_timed
        assert index.pts == []
        assert index.num_packets == len(broken)


def test_no_packets():
    index = PacketIndex([])
    assert (index.num_packets, index.is_timed, index.can_seek) == (0, False, False)


def test_a_seek_may_land_earlier_but_not_later():
    index = PacketIndex(packets(100, 10))
    assert index.is_at_or_before(100, Keyframe(200, None))
    assert index.is_at_or_before(200, Keyframe(200, None))
    assert not index.is_at_or_before(300, Keyframe(200, None))
    assert not index.is_at_or_before(None, Keyframe(200, None))
    assert not index.is_at_or_before(205, Keyframe(200, None))
