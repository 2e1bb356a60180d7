"""Bad files: one clear error, or a warning where frames can be read. Both name the file and what is wrong."""

import struct
import warnings

import av
import numpy as np
import pytest
from PIL import Image

from videollama2.errors import MediaError, MediaNotFoundError
from videollama2.media.frames import FrameSampling
from videollama2.media.limits import OWN_FILES
from videollama2.media.readers import MediaWarning
from videollama2.media.video import open_video, read_clip


def cut(path, share):
    """Keep the first ``share`` of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_missing(tmp_path):
    for name in ("gone.mp4", "gone.gif", "gone/"):
        with pytest.raises(MediaNotFoundError, match="gone.*no such file") as info:
            open_video(tmp_path / name)
        assert isinstance(info.value, FileNotFoundError)
        assert str(info.value).startswith(str(tmp_path))


@pytest.mark.parametrize("address", ["http://host/a.mp4", "https://host/a.mp4", "rtsp://host/a"])
def test_addresses_are_not_opened(address):
    with pytest.raises(MediaError, match=f"{address}: addresses are not opened"):
        open_video(address)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_empty(tmp_path, backend):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(MediaError, match="a.mp4: the file is empty"):
        open_video(tmp_path / "a.mp4", backend)
    with pytest.raises(MediaError, match="the file is empty"):
        open_video(b"", backend)


def test_text_renamed(tmp_path):
    (tmp_path / "a.mp4").write_text("These are words.\n" * 100)
    with pytest.raises(MediaError, match="a.mp4: is not a video or a sound in a format that can be read"):
        open_video(tmp_path / "a.mp4")


def test_a_playlist_does_not_open_other_files(tmp_path, plain_mp4):
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:2,", str(plain_mp4), "#EXT-X-ENDLIST", "")
    (tmp_path / "a.mp4").write_text("\n".join(lines))
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile '{plain_mp4}'\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(MediaError, match="is not a video or a sound in a format that can be read"):
            open_video(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_an_image_renamed(tmp_path, suffix):
    Image.new("RGB", (20, 20)).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="a.mp4: is a still image, not a video"):
        open_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.m4a"])
def test_sound_only(film, tmp_path, name):
    path = film.write_audio(tmp_path / name)
    with pytest.raises(MediaError, match=f"{name}: has no video stream, only audio"):
        open_video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_no_frames(film, tmp_path, name):
    path = film.write(tmp_path / name, frames=0)
    with pytest.raises(MediaError, match=f"{name}: "):
        open_video(path)


class TestTruncated:
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
    def test_mp4_with_its_index_behind(self, film, tmp_path, share):
        path = cut(film.write(tmp_path / "a.mp4"), share)
        with pytest.raises(MediaError, match="a.mp4: the file is truncated or damaged"):
            open_video(path)

    def test_mp4_with_its_index_in_front(self, film, tmp_path):
        path = cut(film.write(tmp_path / "a.mp4", movflags="faststart"), 0.7)
        with pytest.raises(MediaError, match=r"a.mp4: .* promises 30 frames, but only 1?\d are there"):
            open_video(path)

    @pytest.mark.parametrize(
        ("name", "share"),
        [("a.mkv", 0.6), ("a.webm", 0.6), ("a.avi", 0.8), ("a.flv", 0.6), ("a.gif", 0.6), ("fragments.mp4", 0.6)],
    )
    def test_what_can_be_read_is_used_with_a_warning(self, film, tmp_path, name, share):
        codec = {"webm": "libvpx-vp9", "gif": "gif"}.get(name.split(".")[1], "libx264")
        path = film.write(
            tmp_path / name,
            codec,
            b_frames=0,
            pixel_format="rgb8" if codec == "gif" else "yuv420p",
            movflags="frag_keyframe+empty_moov" if name.startswith("frag") else None,
        )
        cut(path, share)
        message = rf"{name}: the file is damaged or truncated; its \d+ readable frames"
        with pytest.warns(MediaWarning, match=message):
            clip = read_clip(path, FrameSampling(4))
        assert 5 < clip.total < 30
        assert film.numbers(clip.frames_THWC) == clip.indices

    def test_a_transport_stream_is_read_as_far_as_it_goes(self, film, tmp_path):
        path = cut(film.write(tmp_path / "a.ts"), 0.6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)  # nothing in the format tells how long it should be
            clip = read_clip(path, FrameSampling(4))
        assert 5 < clip.total < 30
        assert film.numbers(clip.frames_THWC) == clip.indices

    def test_a_whole_file_does_not_warn(self, film, tmp_path):
        for name in ("a.mkv", "a.avi", "a.flv", "a.ts"):
            path = film.write(tmp_path / name)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                clip = read_clip(path, FrameSampling(2))
            assert [str(warning.message) for warning in said] == [], name
            assert clip.total == 30, name
            assert film.numbers(clip.frames_THWC) == clip.indices == [7, 22], name


class TestDamaged:
    def damage(self, path, share_from, share_to):
        """Overwrite the packets whose data lies in this share of the file."""
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        for position, size in spans[int(len(spans) * share_from) : int(len(spans) * share_to)]:
            data[position : position + size] = bytes([0x55]) * size
        path.write_bytes(data)
        return path

    def test_a_few_frames(self, film, tmp_path):
        path = self.damage(film.write(tmp_path / "a.mp4", gop=1, b_frames=0), 0.3, 0.4)
        with pytest.warns(MediaWarning, match=r"a.mp4: 3 of the 30 frames needed are damaged"):
            clip = read_clip(path, FrameSampling(30))
        # What is on screen at that time: the last frame before the damage.
        assert film.numbers(clip.frames_THWC) == [*range(9), 8, 8, 8, *range(12, 30)]

    def test_frames_beside_the_damage_are_untouched(self, film, tmp_path):
        path = self.damage(film.write(tmp_path / "a.mp4", gop=1, b_frames=0), 0.3, 0.4)
        with warnings.catch_warnings(), open_video(path) as video:
            warnings.simplefilter("error")
            assert film.numbers(video.get_frames([8, 12])) == [8, 12]

    def test_most_frames(self, film, tmp_path):
        path = self.damage(film.write(tmp_path / "a.mp4", gop=1, b_frames=0), 0.1, 1.0)
        with pytest.raises(MediaError, match=r"a.mp4: 7 of the 8 frames needed cannot be decoded"):
            read_clip(path, FrameSampling(8))

    def test_all_frames(self, film, tmp_path):
        path = self.damage(film.write(tmp_path / "a.mp4"), 0, 1)
        with pytest.raises(MediaError, match=r"a.mp4: "):
            read_clip(path, FrameSampling(8))

    def test_lost_packets_of_a_stream(self, film, tmp_path):
        """Frames that refer to a lost one would show it wrongly: the next ones offered start at a keyframe."""
        padding = "nal-hrd=cbr:bitrate=200:vbv-maxrate=200:vbv-bufsize=200:filler=1"
        path = film.write(
            tmp_path / "a.ts",
            frames=60,
            gop=20,
            b_frames=0,
            options={"x264-params": f"scenecut=0:{padding}", "b": "200k"},
        )
        with av.open(str(path)) as container:
            packet = [*container.demux(video=0)][25]
        assert packet.size > 5 * 188
        data = path.read_bytes()
        path.write_bytes(data[: packet.pos + 3 * 188] + data[packet.pos + 4 * 188 :])
        with pytest.warns(MediaWarning, match="a.ts: the file is damaged or truncated"), open_video(path) as video:
            numbers = film.numbers(video.get_frames(range(video.num_frames)))
        # FFmpeg may blame the frame before as well.
        assert numbers in ([*range(24), *range(40, 60)], [*range(25), *range(40, 60)])

    def test_random_bytes_never_crash(self, film, tmp_path):
        generator = np.random.default_rng(0)
        whole = [film.write(tmp_path / name).read_bytes() for name in ("a.mp4", "a.mkv", "a.ts", "a.avi")]
        read = 0
        for round_ in range(80):
            data = np.frombuffer(whole[round_ % 4], np.uint8).copy()
            data[generator.integers(0, len(data), 30)] = generator.integers(0, 256, 30)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MediaWarning)
                try:
                    read += len(read_clip(data.tobytes(), FrameSampling(4)).frames_THWC) == 4
                except MediaError as error:
                    assert "bytes in memory>: " in str(error)
        assert read > 10


class TestAbsurdSizes:
    def test_headers(self, tmp_path):
        frames = [Image.new("P", (8, 8), i) for i in range(3)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        data = bytearray((tmp_path / "a.gif").read_bytes())
        data[6:10] = struct.pack("<HH", 60000, 60000)
        (tmp_path / "a.gif").write_bytes(data)
        (tmp_path / "a.y4m").write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(1000))
        for name in ("a.gif", "a.y4m"):
            with pytest.raises(MediaError, match=f"{name}: "):
                read_clip(tmp_path / name, FrameSampling(2))

    def test_limits(self):
        OWN_FILES.check_frames(7680, 4320, 32, "8k.mp4")
        for width, height in ((16385, 4), (12000, 12000)):
            with pytest.raises(MediaError, match=f"wide.mp4: frames of {width}x{height}"):
                OWN_FILES.check_frames(width, height, 1, "wide.mp4")
        with pytest.raises(MediaError, match="long.mp4: 1024 frames of 3840x2160 take more than 8 GiB"):
            OWN_FILES.check_frames(3840, 2160, 1024, "long.mp4")


@pytest.mark.parametrize("start", [3.1, 1e9])
def test_a_start_after_the_end(plain_mp4, start):
    with pytest.raises(MediaError, match=r"plain.mp4: start .* is after the end of the video \(3.00 s\)"):
        read_clip(plain_mp4, FrameSampling(8, start))
