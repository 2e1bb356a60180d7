"""Reading video files: every container and codec gives the frames asked for, and decodes few others."""

import os
import struct
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videollama2.errors import ConfigError, MediaError, MissingDependencyError
from videollama2.media.frames import FrameSampling
from videollama2.media.pyav.reader import PyAVReader
from videollama2.media.readers import MediaWarning
from videollama2.media.video import BACKENDS, open_video, read_clip

FORMATS = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mov": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "h264.avi": {"codec": "libx264"},
    "h264.ts": {"codec": "libx264"},
    "h264.flv": {"codec": "libx264"},
    "h264.h264": {"codec": "libx264"},
    "h264_open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"}},
    "h264_intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "h264_short_gop.mp4": {"codec": "libx264", "gop": 2},
    "fragments.mp4": {"codec": "libx264", "movflags": "frag_keyframe+empty_moov"},
    "faststart.mp4": {"codec": "libx264", "movflags": "faststart"},
    "hevc.mp4": {"codec": "libx265"},
    "hevc.mkv": {"codec": "libx265"},
    "hevc_closed.mp4": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:pools=none:open-gop=0"},
    },
    "vp8.webm": {"codec": "libvpx", "b_frames": 0, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "b_frames": 0},
    "vp9.mp4": {"codec": "libvpx-vp9", "b_frames": 0},
    "av1.mp4": {"codec": "libsvtav1", "b_frames": 0},
    "av1.webm": {"codec": "libsvtav1", "b_frames": 0},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_plain.avi": {"codec": "mpeg4", "b_frames": 0},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "container": "mpeg"},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25},
    "mjpeg.avi": {"codec": "mjpeg", "b_frames": 0, "pixel_format": "yuvj420p"},
    "gif.gif": {"codec": "gif", "b_frames": 0, "pixel_format": "rgb8"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_frames_asked_for(film, tmp_path, name):
    path = film.write(tmp_path / name, **FORMATS[name])
    fps = FORMATS[name].get("fps", 25 if name.endswith(".h264") else 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_video(path) as video:
            assert video.num_frames == 30
            assert video.fps == pytest.approx(fps, rel=0.01)
            assert video.duration == pytest.approx(30 / fps, abs=0.06)
            assert video.times == pytest.approx([i / fps for i in range(30)], abs=1e-3)
            for indices in ([29], [0, 11, 12, 29], [5, 5, 5], [28, 3, 17, 3], list(range(30))):
                frames = video.get_frames(indices)
                assert frames.shape == (len(indices), 64, 128, 3)
                assert frames.dtype == np.uint8
                assert film.numbers(frames) == indices


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mkv", "av1.mp4", "h264.ts"])
def test_seeking_gives_the_very_pixels_of_reading_in_order(film, tmp_path, name):
    path = film.write(tmp_path / name, **FORMATS[name])
    with av.open(str(path)) as container:
        in_order = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with open_video(path) as video:
        for indices in ([3, 27], [14], [9, 10, 25]):
            assert np.array_equal(video.get_frames(indices), np.stack([in_order[i] for i in indices]))


def test_no_frame_count_in_the_header(film, tmp_path):
    path = film.write(tmp_path / "a.mkv")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    with open_video(path) as video:
        assert video.num_frames == 30


def _point_all_cues_at_the_last_cluster(path: Path) -> None:
    data = bytearray(path.read_bytes())
    cues = data.rindex(b"\x1c\x53\xbb\x6b")
    # CueClusterPosition: id F1, length 81 or 82, then that many bytes.
    places = [i for i in range(cues, len(data) - 3) if data[i] == 0xF1 and data[i + 1] in (0x81, 0x82)]
    last_value = bytes(data[places[-1] : places[-1] + 2 + (data[places[-1] + 1] & 0x0F)])
    same_length = [i for i in places if data[i + 1] == last_value[1]]
    assert len(same_length) >= 3
    for i in same_length:
        data[i : i + len(last_value)] = last_value
    path.write_bytes(data)


class TestDecodingLittle:
    def test_a_long_clip_is_sought_in(self, film, tmp_path):
        path = film.write(tmp_path / "long.mp4", frames=240, gop=60, b_frames=0)
        with PyAVReader(path, "long") as video:
            assert film.numbers(video.get_frames([61, 181])) == [61, 181]
            assert video.decoded_frames == 4  # 60 61 and 180 181

    @pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
    def test_with_b_frames_too(self, film, tmp_path, name):
        path = film.write(tmp_path / name, frames=240, gop=60, options={"x264-params": "scenecut=0"})
        with PyAVReader(path, name) as video:
            assert film.numbers(video.get_frames([65, 185])) == [65, 185]
            assert video.decoded_frames < 20

    def test_fragments_with_neighbouring_keyframes(self, film, tmp_path):
        """There a seek to the presentation time lands on the keyframe behind; the decoding time is exact."""
        path = film.write(
            tmp_path / "a.mp4",
            frames=120,
            gop=250,
            keyframes=(60, 61, 62),
            movflags="frag_keyframe+empty_moov",
            options={"x264-params": "scenecut=0", "forced-idr": "1"},
        )
        with PyAVReader(path, "a") as video:
            assert film.numbers(video.get_frames([60])) == [60]
            assert video.decoded_frames < 5

    def test_frames_nobody_refers_to_are_not_decoded(self, film, tmp_path):
        options = {"x264-params": "scenecut=0:b-adapt=0:b-pyramid=none"}
        path = film.write(tmp_path / "b.mp4", frames=61, gop=250, b_frames=2, options=options)
        with PyAVReader(path, "b") as video:
            assert film.numbers(video.get_frames([10, 59])) == [10, 59]
            assert video.decoded_frames < 30

    def test_near_frames_are_read_on_to(self, film, tmp_path):
        path = film.write(tmp_path / "short.mp4", frames=60, gop=5, b_frames=0)
        with PyAVReader(path, "short") as video:
            assert film.numbers(video.get_frames(list(range(0, 60, 4)))) == list(range(0, 60, 4))
            assert video.decoded_frames == 57

    def test_a_stream_without_an_index_is_never_sought_in(self, film, tmp_path):
        path = film.write(tmp_path / "a.ts", frames=60, gop=10, b_frames=0)
        with PyAVReader(path, "a") as video:
            assert film.numbers(video.get_frames([5, 55])) == [5, 55]
            assert video.decoded_frames == 56

    def test_opening_decodes_nothing(self, plain_mp4):
        with PyAVReader(plain_mp4, "plain") as video:
            assert video.decoded_frames == 0

    def test_a_wrong_index_in_the_file_is_noticed(self, film, tmp_path):
        """Cues that point at the wrong cluster: times give it away, and the file is read in order."""
        path = film.write(tmp_path / "a.mkv", frames=120, fps=1, gop=30, b_frames=0)
        _point_all_cues_at_the_last_cluster(path)
        with PyAVReader(path, "a") as video:
            assert film.numbers(video.get_frames([35, 65])) == [35, 65]
            assert video.decoded_frames >= 66
            assert film.numbers(video.get_frames([1, 95])) == [1, 95]


class TestRotation:
    @pytest.mark.parametrize("degrees", [0, 90, 180, -90])
    def test_applied(self, film, tmp_path, degrees):
        path = film.write(tmp_path / "a.mp4", rotation=degrees)
        with open_video(path) as video:
            (frame_HWC,) = video.get_frames([13])
        assert frame_HWC.shape == ((128, 64, 3) if degrees % 180 else (64, 128, 3))
        # set_display_rotation counts counter-clockwise, as numpy does.
        upright_HWC = np.rot90(frame_HWC, -degrees // 90)
        assert film.number(upright_HWC) == 13
        assert upright_HWC[50, 10].argmax() == 0  # red is on the left

    def test_mirrored(self, film, tmp_path):
        path = film.write(tmp_path / "a.mp4", rotation=0)
        data = bytearray(path.read_bytes())
        upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
        matrix = data.index(upright, data.index(b"tkhd"))
        data[matrix : matrix + 36] = struct.pack(">9i", -65536, 0, 0, 0, 65536, 0, 128 << 16, 0, 0x40000000)
        path.write_bytes(data)
        with open_video(path) as video:
            assert film.number(video.get_frames([13])[0][:, ::-1]) == 13


class TestOddTimes:
    TIMES = tuple(100 * i + 15 * i * i for i in range(30))  # ever slower

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
    def test_variable_rate(self, film, tmp_path, name):
        path = film.write(tmp_path / name, times_ms=self.TIMES)
        with open_video(path) as video:
            assert video.times == pytest.approx([time / 1000 for time in self.TIMES], abs=2e-3)
            assert film.numbers(video.get_frames([0, 7, 22, 29])) == [0, 7, 22, 29]
            assert video.fps == pytest.approx(29 / 15.5, rel=0.1)  # the headers say 10, or nothing
        clip = read_clip(path, FrameSampling(4, start=6.0, end=9.0))
        assert film.numbers(clip.frames_THWC) == clip.indices
        # One frame early at both ends, as everywhere (published).
        assert clip.times[0] >= 5.0
        assert clip.times[-1] <= 9.0

    def test_an_edit_list_hides_frames(self, film, tmp_path):
        path = film.write(tmp_path / "a.mp4")
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            ticks = round(0.1 / container.streams.video[0].time_base)
        at = data.index(b"elst") + 12
        length, start = struct.unpack(">Ii", data[at : at + 8])
        data[at : at + 8] = struct.pack(">Ii", length - 700, start + 7 * ticks)
        path.write_bytes(data)
        with open_video(path) as video:
            assert video.num_frames == 23
            assert film.numbers(video.get_frames([0, 1, 10, 22])) == [7, 8, 17, 29]

    def test_a_stream_cut_out_of_a_broadcast(self, film, tmp_path):
        """It starts in the middle of a group of pictures: what cannot be decoded is not offered."""
        path = film.write(tmp_path / "a.ts", container="mpegts", options={"x264-params": "scenecut=0"})
        data = path.read_bytes()
        tables, packets = data[: 3 * 188], data[3 * 188 :]
        path.write_bytes(tables + packets[len(packets) // 5 // 188 * 188 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)
            with open_video(path) as video:
                assert 15 <= video.num_frames < 30
                numbers = film.numbers(video.get_frames(range(video.num_frames)))
        assert numbers == list(range(30 - len(numbers), 30))

    def test_hidden_reference_frames_are_no_frames(self, film, tmp_path):
        path = film.write(tmp_path / "a.webm", "libvpx", b_frames=0)
        with av.open(str(path)) as container:
            hidden = bytes([*container.demux(video=0)][13])
        data = bytearray(path.read_bytes())
        data[data.index(hidden)] &= ~0x10  # show_frame, RFC 6386 section 9.1
        path.write_bytes(data)
        shown = [i for i in range(30) if i != 13]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with open_video(path) as video:
                assert video.num_frames == 29
                assert film.numbers(video.get_frames(range(29))) == shown

    def test_gif_delays(self, tmp_path, film):
        images = [Image.fromarray(film.draw(i)) for i in range(4)]
        delays = [100, 500, 200, 1000]
        images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=delays)
        with open_video(tmp_path / "a.gif") as video:
            assert video.times == pytest.approx([0, 0.1, 0.6, 0.8])
            assert video.duration == pytest.approx(1.8)
            assert film.numbers(video.get_frames([3, 0])) == [3, 0]

    def test_gif_seconds_are_counted_as_published(self, golden):
        """25 frames make a second, whatever the gif says: the middle of 20 frames is all there is to take."""
        clip = read_clip(golden / "media" / "anim_20f.gif")
        assert clip.indices == [10]
        assert clip.fps == 10
        assert clip.times == pytest.approx([1.0])


class TestBackends:
    def test_an_unknown_name(self, plain_mp4):
        with pytest.raises(ConfigError, match="'opencv' is not one of auto, pyav, decord"):
            open_video(plain_mp4, "opencv")

    def test_decord_that_is_not_installed(self, plain_mp4, monkeypatch):
        monkeypatch.setitem(sys.modules, "decord", None)
        with pytest.raises(MissingDependencyError, match="pip install decord"):
            open_video(plain_mp4, "decord")

    @pytest.mark.parametrize(
        "name",
        [
            "h264.mp4",
            "h264.mkv",
            "hevc_closed.mp4",
            "vp9.webm",
            "mpeg4_plain.avi",
            "landscape",
            "portrait",
            "clip_24fps",
        ],
    )
    def test_both_give_the_same_frames(self, film, tmp_path, golden, name):
        pytest.importorskip("decord", reason="decord is not installed")
        if name in FORMATS:
            path = film.write(tmp_path / name, **FORMATS[name])
        else:
            (path,) = [p for p in (golden / "media").iterdir() if name in p.name]
        for sampling in (FrameSampling(8), FrameSampling(None), FrameSampling(4, 0.3, 1.7)):
            ours, theirs = read_clip(path, sampling, "pyav"), read_clip(path, sampling, "decord")
            assert ours.indices == theirs.indices
            assert ours.times == pytest.approx(theirs.times, abs=2e-3)
            assert ours.fps == pytest.approx(theirs.fps)
            assert np.abs(ours.frames_THWC.astype(int) - theirs.frames_THWC).max() == 0

    def test_both_turn_upright(self, film, tmp_path):
        pytest.importorskip("decord", reason="decord is not installed")
        path = film.write(tmp_path / "a.mp4", rotation=-90)
        ours, theirs = (read_clip(path, FrameSampling(2), backend).frames_THWC for backend in BACKENDS)
        assert np.array_equal(ours, theirs)

    def test_decord_reads_bytes_and_refuses_clearly(self, film, plain_mp4, tmp_path):
        pytest.importorskip("decord", reason="decord is not installed")
        clip = read_clip(plain_mp4.read_bytes(), FrameSampling(3), "decord")
        assert film.numbers(clip.frames_THWC) == [5, 15, 24]
        (tmp_path / "text.mp4").write_text("no video\n" * 100)
        with pytest.raises(MediaError, match=r"text.mp4: decord cannot read"):
            open_video(tmp_path / "text.mp4", "decord")

    def test_gifs_do_not_ask_decord(self, golden):
        assert len(read_clip(golden / "media" / "anim_20f.gif", FrameSampling(4), "decord").frames_THWC) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_decord_says_that_it_cannot_take_the_name(film, tmp_path):
    pytest.importorskip("decord", reason="decord is not installed")
    path = film.write(tmp_path / "a.mp4").rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    assert film.numbers(read_clip(path, FrameSampling(1)).frames_THWC) == [15]
    with pytest.raises(MediaError, match="decord cannot read"):
        read_clip(path, FrameSampling(1), "decord")
