"""Files that people have: what players show without a word is read without a word, and what is wrong is told truly."""

import asyncio
import base64
import io
import shutil
import subprocess
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from videollama2.errors import MediaError
from videollama2.media.animation import SHORTEST
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.kinds import kind_of, mime_type
from videollama2.media.probe import check_decodes, check_opens
from videollama2.media.readers import MediaWarning
from videollama2.media.sources import kind_of_path
from videollama2.media.video import open_video, read_clip

CASES = Path(__file__).parent / "cases"
MOVING = ("anim.webp", "anim_apng.png", "anim.avif")


def said(path, sampling=None):
    """The clip, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = read_clip(path, sampling or FrameSampling(4))
    return clip, [str(warning.message) for warning in caught]


# ---------------------------------------------------------------------------------------------------- moving pictures


@pytest.mark.parametrize("name", MOVING)
def test_a_moving_picture_is_a_video_with_times_of_its_own(name):
    assert kind_of_path(CASES / name) == "video"
    for source in (CASES / name, (CASES / name).read_bytes(), io.BytesIO((CASES / name).read_bytes())):
        clip, warned = said(source)
        assert (clip.indices, clip.total, warned) == ([1, 3, 6, 8], 10, [])
        np.testing.assert_allclose(clip.times, [0.1, 0.3, 0.6, 0.8])
        assert clip.fps == pytest.approx(10)
        assert len({frame_HWC.tobytes() for frame_HWC in clip.frames_THWC}) == 4
    with open_video(CASES / name) as reader:
        assert reader.duration == pytest.approx(1.0)


@pytest.mark.parametrize("name", MOVING[:2])
def test_frames_of_a_moving_picture_are_those_that_pillow_shows(name):
    clip = read_clip(CASES / name, FrameSampling(10))
    with Image.open(CASES / name) as image:
        for number, frame_HWC in enumerate(clip.frames_THWC):
            image.seek(number)
            assert np.array_equal(frame_HWC, np.asarray(image.convert("RGB")))


def animation(format_, durations, **options):
    frames = [Image.new("RGB", (24, 16), (60 * i, 20, 200 - 40 * i)) for i in range(len(durations))]
    file = io.BytesIO()
    frames[0].save(file, format_, save_all=True, append_images=frames[1:], duration=durations, **options)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["WEBP", "PNG", "AVIF", "GIF"])
def test_times_follow_the_frames_durations(format_):
    content = animation(format_, [100, 2000, 300, 600], **({"lossless": True} if format_ == "WEBP" else {}))
    assert kind_of(content) == "video"
    with open_video(content) as reader:
        np.testing.assert_allclose(reader.times, [0, 0.1, 2.1, 2.4], atol=2e-3)
        assert reader.duration == pytest.approx(3.0, abs=2e-3)
    by_time = read_clip(content, FrameSampling(6, sampling="time"))
    assert by_time.indices == [1, 1, 1, 1, 2, 3]
    part = read_clip(content, FrameSampling(2, start=2.1, sampling="time"))
    assert part.indices == [2, 3]


@pytest.mark.parametrize("format_", ["WEBP", "PNG"])
def test_a_frame_without_a_duration_is_shown_as_browsers_do(format_):
    with open_video(animation(format_, [0, 0, 0])) as reader:
        assert reader.duration == pytest.approx(3 * SHORTEST)


def test_the_picture_for_old_browsers_is_no_frame_of_an_apng():
    content = animation("PNG", [100, 100, 200], default_image=True)
    with open_video(content) as reader, Image.open(io.BytesIO(content)) as image:
        assert reader.num_frames == image.n_frames - 1 == 2
        image.seek(1)
        assert np.array_equal(reader.get_frames([0])[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_moving_picture_is_read_as_far_as_it_goes_or_refused(name, share):
    content = (CASES / name).read_bytes()
    try:
        clip, warned = said(content[: int(len(content) * share)])
    except MediaError as error:
        assert "bytes in memory>: " in str(error)
    else:
        assert len(clip.frames_THWC) == 4
        assert warned or clip.total < 10


@pytest.mark.parametrize("name", [*MOVING, "glued.ts", "cam.mjpeg", "start1.webm"])
def test_the_cheap_check_takes_what_the_reader_takes(name):
    check_opens(str(CASES / name), kind_of_path(CASES / name))
    assert check_decodes(str(CASES / name), "video") == []


def test_decord_is_not_asked_for_moving_pictures():
    for name in MOVING:
        assert read_clip(CASES / name, FrameSampling(2), backend="pyav").indices == [2, 7]
        pytest.importorskip("decord")
        assert read_clip(CASES / name, FrameSampling(2), backend="decord").indices == [2, 7]


# -------------------------------------------------------------------------------------------------- no false alarm


@pytest.mark.parametrize(("name", "frames"), [("start1.webm", 60), ("start5.mkv", 40), ("glued.ts", 40)])
def test_late_starts_and_joints_are_no_damage(name, frames):
    clip, warned = said(CASES / name)
    assert warned == []
    assert (clip.total, clip.fps) == (frames, 25)


def test_joined_transport_streams_of_one_clock(film, tmp_path):
    """Segments of a live stream: their clock goes on, their packets are numbered from 0."""
    whole = film.write(tmp_path / "a.ts", frames=60, gop=10, b_frames=2)
    parts = b""
    for start, length in ((0, 20), (20, 20), (40, 20)):
        target = tmp_path / f"{start}.ts"
        cut(whole, target, start, length)
        parts += target.read_bytes()
    (tmp_path / "joined.ts").write_bytes(parts)
    clip, warned = said(tmp_path / "joined.ts", FrameSampling(12))
    assert (clip.total, warned) == (60, [])
    assert film.numbers(clip.frames_THWC) == clip.indices


def cut(source, target, start, length):
    """Copy the packets of whole groups of pictures; the clock is kept."""
    with av.open(str(source)) as file, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(file.streams.video[0])
        for packet in [packet for packet in file.demux(video=0) if packet.dts is not None][start : start + length]:
            packet.stream = stream
            output.mux(packet)


# ------------------------------------------------------------------------------------------------------- true sentences


def test_a_song_with_a_cover_is_not_called_a_video():
    with pytest.raises(MediaError, match=r"song.mp3: has no video stream, only audio and a cover picture$"):
        open_video(CASES / "song.mp3")


@pytest.mark.parametrize(
    ("name", "what"), [("start1.webm", "a video"), ("glued.ts", "a video"), ("song.mp3", "a sound file")]
)
def test_what_is_no_image_is_called_what_it_is(name, what):
    with pytest.raises(MediaError, match=f"{name}: is {what}, not an image"):
        load_image(CASES / name)


def test_motion_jpeg_without_a_container_is_a_video():
    assert kind_of_path(CASES / "cam.mjpeg") == "video"
    clip, warned = said(CASES / "cam.mjpeg")
    assert (clip.total, warned) == (40, [])
    assert read_clip((CASES / "cam.mjpeg").read_bytes(), FrameSampling(4)).indices == clip.indices
    one = (CASES / "cam.mjpeg").read_bytes().split(b"\xff\xd9\xff\xd8")[0] + b"\xff\xd9"
    with pytest.raises(MediaError, match="is a still image, not a video"):
        open_video(one)


# ------------------------------------------------------------------------------------------------------- lost packets


def without_packet(path, number):
    """A transport stream that lost the packet of its picture with this number."""
    packets = [path[at : at + 188] for at in range(0, len(path), 188)]
    picture = [i for i, packet in enumerate(packets) if (packet[1] & 31) << 8 | packet[2] == 256]
    return b"".join(packet for i, packet in enumerate(packets) if i != picture[number])


@pytest.mark.parametrize("number", [1, 3, 20, 60])
def test_one_lost_packet_does_not_cost_the_rest(film, tmp_path, number):
    """A clip whose only keyframe is its first frame."""
    whole = film.write(tmp_path / "a.ts", frames=200, gop=250).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        with open_video(without_packet(whole, number)) as reader:
            assert reader.num_frames >= 198
            numbers = film.numbers(reader.get_frames(range(reader.num_frames)))
    assert all(abs(shown - index) <= 2 for index, shown in enumerate(numbers))


# ------------------------------------------------------------------------------------------------------- lying headers


@pytest.mark.parametrize(("fps", "b_frames"), [(10, 0), (10, 2), (25, 3), (30, 2)])
def test_an_avi_with_placeholders_is_not_halved(film, tmp_path, fps, b_frames):
    """FFmpeg copies H.264 into avi with an empty chunk behind each frame, which the header counts as frames."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("there is no ffmpeg to copy streams with")
    film.write(tmp_path / "a.mp4", frames=60, fps=fps, gop=30, b_frames=b_frames)
    command = ["ffmpeg", "-v", "error", "-i", "a.mp4", "-c", "copy", "-bsf:v", "h264_mp4toannexb", "a.avi"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with av.open(str(tmp_path / "a.avi")) as file:
        assert file.streams.video[0].average_rate == 2 * fps  # what the header says
    clip, warned = said(tmp_path / "a.avi", FrameSampling(6))
    assert (clip.total, clip.fps, warned) == (60, fps, [])
    assert film.numbers(clip.frames_THWC) == clip.indices
    with open_video(tmp_path / "a.avi") as reader:
        assert reader.duration == pytest.approx(60 / fps, rel=0.05)
    per_second = read_clip(tmp_path / "a.avi", FrameSampling(None))
    assert per_second.indices == read_clip(tmp_path / "a.mp4", FrameSampling(None)).indices


# ------------------------------------------------------------------------------------------------------------ by time


def test_a_screen_recording_is_spread_over_its_seconds_on_request():
    """3 frames that last a minute each, then 37 in a second and a half."""
    path = CASES / "vfr_screenrec.mkv"
    assert read_clip(path, FrameSampling(8)).indices == [2, 7, 12, 17, 22, 27, 32, 37]
    assert read_clip(path, FrameSampling(8, sampling="time")).indices == [0, 0, 0, 1, 1, 2, 2, 2]
    each_second = read_clip(path, FrameSampling(None, sampling="time", max_frames=1024)).indices
    assert len(each_second) == 182 and each_second[:3] == [0, 0, 0] and each_second[-1] > 2
    last = read_clip(path, FrameSampling(4, start=180, end=181, sampling="time"))
    assert all(180 <= time <= 181 for time in last.times) and len(set(last.indices)) == 4
    with pytest.raises(MediaError, match="start 500 s is after the end of the video"):
        read_clip(path, FrameSampling(4, start=500, sampling="time"))


def test_on_a_constant_rate_both_choices_agree(film, tmp_path):
    path = film.write(tmp_path / "a.mp4", frames=40)
    for count in (1, 4, 5, 8, 20, 40):
        by_index = read_clip(path, FrameSampling(count)).indices
        by_time = read_clip(path, FrameSampling(count, sampling="time")).indices
        assert all(abs(a - b) <= 1 for a, b in zip(by_index, by_time, strict=True)), count
    assert read_clip(path, FrameSampling(40, sampling="time")).indices == list(range(40))


# ---------------------------------------------------------------------------------------------------- through the doors


@pytest.mark.parametrize("name", [*MOVING, "cam.mjpeg"])
def test_decoding_processes_read_moving_pictures_too(name):
    """What clients send is decoded with fewer formats than files at home; these are among them."""
    from tests.serve.helpers.media import policy
    from videollama2.serve.untrusted_media.sandbox import Sandbox
    from videollama2.serve.untrusted_media.urls import parse_data

    url = f"data:{mime_type('video', name)};base64,{base64.b64encode((CASES / name).read_bytes()).decode()}"

    async def work():
        box = Sandbox(policy(max_duration_s=30.0))
        try:
            content = parse_data(url, "video", 1 << 20, 64)
            return await box.read("video", content, {"num_frames": 4, "sampling": "time"})
        finally:
            box.close()

    expected = read_clip(CASES / name, FrameSampling(4, sampling="time")).frames_THWC
    assert np.array_equal(asyncio.run(work()), expected)


def test_a_processor_and_a_message_part_may_ask_for_frames_by_time(golden):
    from videollama2.processing import ReadOptions, VideoLlama2Processor

    processor = VideoLlama2Processor.from_pretrained(golden / "models" / "qwen2-stc_connector_v35-siglip")
    path = CASES / "vfr_screenrec.mkv"
    by_time = processor["video"](path, num_frames=4, sampling="time")
    assert not torch.equal(by_time, processor["video"](path, num_frames=4))
    options = ReadOptions.of("video", {"num_frames": 4, "sampling": "time"})
    assert torch.equal(processor.read("video", path, options), by_time)
    with pytest.raises(MediaError, match="sampling 'seconds' is neither 'index' nor 'time'"):
        processor["video"](path, sampling="seconds")


def test_flags_and_fields_of_requests_ask_for_frames_by_time():
    from videollama2.cli import build_parser
    from videollama2.flags import frame_options
    from videollama2.serve.api.request import ChatRequest
    from videollama2.serve.cli import build_parser as client_parser

    asked = build_parser("ask").parse_args(["ask", "clip.mp4", "What?", "--sampling", "time"])
    assert frame_options(asked) == {"sampling": "time"}
    assert frame_options(client_parser().parse_args(["clip.mp4", "--sampling", "time"])) == {"sampling": "time"}
    url = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    content = [url, {"type": "text", "text": "What?"}]
    fields = {"model": "m", "messages": [{"role": "user", "content": content}]}
    request = ChatRequest.model_validate({**fields, "mm_processor_kwargs": {"sampling": "time"}})
    assert request.mm_processor_kwargs.given() == {"sampling": "time"}
