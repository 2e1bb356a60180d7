"""Which frames are chosen: the published numbers, and what stands beside them."""

import json

import numpy as np
import pytest

from videollama2.errors import MediaError
from videollama2.media.frames import (
    MAX_NUM_FRAMES,
    FrameSampling,
    fps_indices,
    is_constant_rate,
    select_frames,
    uniform_indices,
)


def test_uniform_equals_the_published_choice(golden):
    rows = json.loads((golden / "frame_sample.json").read_text())["uniform"]
    assert len(rows) == 250
    for row in rows:
        assert uniform_indices(row["duration"], row["num_frames"]) == row["indices"], row


def test_fps_equals_the_published_choice(golden):
    rows = json.loads((golden / "frame_sample.json").read_text())["fps"]
    assert len(rows) == 6
    for row in rows:
        assert fps_indices(row["duration"], row["fps"]) == row["indices"], row


def test_as_many_frames_as_there_are_means_every_frame():
    for total in (1, 2, 7, 8, 33, 100):
        assert uniform_indices(total, total) == list(range(total))


def test_fps_below_one_keeps_every_frame_and_fractions_are_rounded_down():
    assert fps_indices(4, 0.5) == [0, 1, 2, 3]
    assert fps_indices(90, 29.97) == [14, 43, 72]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(MediaError, match="frame rate"):
        fps_indices(10, fps)
    with pytest.raises(MediaError, match="frame rate"):
        select_frames(10, fps, FrameSampling(4))


@pytest.mark.parametrize("num_frames", [0, -3, MAX_NUM_FRAMES + 1, 10**9, 2.5, "8", True])
def test_absurd_numbers_of_frames_are_refused(num_frames):
    with pytest.raises(MediaError, match=f"num_frames {num_frames!r}"):
        FrameSampling(num_frames)
    with pytest.raises(MediaError, match="num_frames"):
        uniform_indices(10, num_frames)


@pytest.mark.parametrize("max_frames", [0, 10**9, 1.5])
def test_absurd_caps_are_refused(max_frames):
    with pytest.raises(MediaError, match="max_frames"):
        FrameSampling(max_frames=max_frames)


def test_numpy_numbers_are_numbers():
    chosen = select_frames(90, 30.0, FrameSampling(np.int64(4), np.float32(0.5), np.float64(1.5)))
    assert len(chosen) == 4
    assert all(type(i) is int for i in chosen)


@pytest.mark.parametrize("num_frames", [33, 64, MAX_NUM_FRAMES])
def test_more_than_32_frames_are_given_when_asked_for(num_frames):
    assert len(select_frames(5000, 25.0, FrameSampling(num_frames))) == num_frames


def test_the_cap_keeps_frames_from_the_whole_clip():
    chosen = select_frames(3600, 30.0, FrameSampling(None, max_frames=32))
    assert len(chosen) == 32
    every_second = fps_indices(3600, 30.0)
    assert set(chosen) <= set(every_second)
    assert chosen[0] < 100
    assert chosen[-1] > 3500
    gaps = np.diff(chosen)
    assert gaps.max() <= 2 * gaps.min()


@pytest.mark.parametrize("rule", ["index", "time"])
@pytest.mark.parametrize(
    ("fps", "start", "end", "count"),
    [(2, None, None, 20), (0.5, None, None, 5), (3.01, 2, 4, 6), (1e-9, None, None, 1)],
)
def test_a_rate_gives_as_many_frames_as_its_number_would(rule, fps, start, end, count):
    """Of 10 s at 25 frames per second."""

    def chosen(**how):
        return select_frames(250, 25.0, FrameSampling(start=start, end=end, sampling=rule, **how))

    found = chosen(fps=fps)
    assert len(found) == count and found == chosen(num_frames=count)
    assert chosen(fps=100) == chosen(num_frames=32) and len(chosen(fps=100, max_frames=7)) == 7


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), True, "2"])
def test_rates_that_are_none(fps):
    with pytest.raises(MediaError, match="fps"):
        FrameSampling(fps=fps)


def test_a_rate_and_a_number_exclude_each_other():
    with pytest.raises(MediaError, match="exclude each other"):
        FrameSampling(4, fps=2)
    assert FrameSampling(fps=2).for_model(16).num_frames is None


def test_bounds_follow_the_published_arithmetic():
    # int(seconds * fps) - 1 at both ends, both included: 0.5 s to 1.5 s at 30 frames per second is 14 to 44.
    assert select_frames(90, 30.0, FrameSampling(31, 0.5, 1.5)) == list(range(14, 45))
    # Equal bounds mean the second from there on.
    assert select_frames(90, 30.0, FrameSampling(31, 1.0, 1.0)) == list(range(29, 60))
    assert select_frames(90, 30.0, FrameSampling(90, 0.0, 1000.0))[-1] == 89


def test_one_bound_alone():
    assert select_frames(90, 30.0, FrameSampling(2, start=2.0))[0] > 58
    assert select_frames(90, 30.0, FrameSampling(2, end=1.0))[-1] < 30
    assert select_frames(90, 30.0, FrameSampling(2, end=0.001)) == [0, 0]


def test_reversed_bounds_raise_unless_swapping_is_asked_for():
    with pytest.raises(MediaError, match=r"start 1.2 s is after end 0.4 s"):
        FrameSampling(8, 1.2, 0.4)
    swapped = select_frames(90, 30.0, FrameSampling(8, 1.2, 0.4, on_reversed="swap"))
    assert swapped == select_frames(90, 30.0, FrameSampling(8, 0.4, 1.2))


@pytest.mark.parametrize(("start", "end"), [(-1.0, 2.0), (None, -1.0), (None, 0), (-2.0, None)])
def test_negative_bounds_raise(start, end):
    with pytest.raises(MediaError, match=r"negative|no part"):
        FrameSampling(8, start, end)


def test_swapping_also_clamps_as_published():
    clamped = select_frames(90, 30.0, FrameSampling(8, -1.0, 1.0, on_reversed="swap"))
    assert clamped == select_frames(90, 30.0, FrameSampling(8, 0.0, 1.0))


@pytest.mark.parametrize("second", [float("nan"), float("inf"), "3", True])
def test_a_bound_must_be_a_number_of_seconds(second):
    with pytest.raises(MediaError, match="start .* is not a number of seconds"):
        FrameSampling(8, second, 5.0)


def test_a_word_for_on_reversed_must_be_known():
    with pytest.raises(MediaError, match="on_reversed 'ignore'"):
        FrameSampling(8, on_reversed="ignore")


@pytest.mark.parametrize("start", [3.01, 3.2, 100.0])
def test_a_start_behind_the_end_of_the_video_names_both(start):
    with pytest.raises(MediaError, match=rf"film.mp4: start {start:g} s is after the end .*3.00 s"):
        select_frames(90, 30.0, FrameSampling(8, start), name="film.mp4")


def test_a_start_at_the_very_end_is_the_last_frame():
    assert select_frames(90, 30.0, FrameSampling(2, 3.0)) == [89, 89]


def test_no_frames_is_an_error():
    with pytest.raises(MediaError, match="film: the video has no frames"):
        select_frames(0, 30.0, FrameSampling(8), name="film")


def test_bounds_use_real_times_where_the_rate_varies():
    # One second at 10 frames per second, then nine seconds at 1: the average rate would be far off.
    times = [i / 10 for i in range(10)] + [1.0 + i for i in range(9)]
    assert not is_constant_rate(times, 1.9)
    chosen = select_frames(19, 1.9, FrameSampling(4, 5.0, 8.0), times=times)
    assert [times[i] for i in chosen] == sorted(times[i] for i in chosen)
    assert all(4.0 <= times[i] <= 8.0 for i in chosen)
    with pytest.raises(MediaError, match="after the end"):
        select_frames(19, 1.9, FrameSampling(4, 11.0), times=times)


def test_constant_times_give_exactly_the_published_arithmetic():
    generator = np.random.default_rng(0)
    for _ in range(200):
        fps = float(generator.choice([10, 23.976, 25, 29.97, 30, 60]))
        total = int(generator.integers(1, 400))
        start = float(generator.uniform(0, total / fps))
        sampling = FrameSampling(5, start, start + float(generator.uniform(0, 5)))
        rounded = [round(i / fps, 3) for i in range(total)]  # Matroska keeps milliseconds
        assert select_frames(total, fps, sampling, times=rounded) == select_frames(total, fps, sampling)
