"""Decoding processes: the same frames as at home, bad content refused, and limits on what is decoded."""

import io

import av
import numpy as np
import pytest

from tests.conftest import golden_dir
from tests.serve.helpers.media import bomb_png, film, picture, policy, write
from tests.serve.helpers.sandboxes import boxes, read, refusal, run, shared
from videollama2.inference.lru import LruStore
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.pixels import FrameResize
from videollama2.media.video import read_clip
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.process import Child, ChildLimits
from videollama2.serve.untrusted_media.replies import frame_bytes

MEDIA = golden_dir() / "media"


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    shared.cache_clear()
    started = [boxes[0].started for _ in boxes]
    while boxes:
        boxes.pop().close()
    assert set(started) <= {1}, "a process was lost on the way"


# --------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.slow
@pytest.mark.parametrize("name", ["portrait_25fps_57f.mp4", "clip_24fps_240f.webm", "landscape_30fps_90f.mp4"])
@pytest.mark.parametrize("options", [{"num_frames": 8}, {"num_frames": 3, "start": 0.5, "end": 1.5}, {}])
def test_frames_of_a_video_are_those_of_the_file(name, options):
    path = MEDIA / name
    expected = read_clip(path, FrameSampling(**options)).frames_THWC
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read("video", source, options), expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_an_image_is_that_of_the_file(form):
    data = picture(form=form)
    np.testing.assert_array_equal(read("image", data), np.asarray(load_image(data)))


def test_a_list_of_frames_is_a_folder_of_them(tmp_path):
    frames = [picture(40, 30, (number * 9, 10, 10), "JPEG") for number in range(20)]
    for number, frame in enumerate(frames):
        write(tmp_path / f"{number}.jpg", frame)
    expected = read_clip(tmp_path, FrameSampling(num_frames=8)).frames_THWC
    np.testing.assert_array_equal(read("video", frames, {"num_frames": 8}), expected)


def test_frames_of_different_sizes_come_as_a_list():
    frames = read("video", [picture(40, 30), picture(20, 50)], {"num_frames": 2})
    assert [frame.shape for frame in frames] == [(30, 40, 3), (50, 20, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [
        FrameResize(48, 3),
        FrameResize((40, 32), 2),
        FrameResize(48, 3, (120, 110, 100)),
        FrameResize(None, 3, (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("shape", [(64, 48), (31, 77), (48, 48), (1, 1)])
def test_small_frames_give_the_pixels_of_whole_ones(size, shape):
    torch = pytest.importorskip("torch")
    from videollama2.media.pixels import PixelTransform

    transform = PixelTransform(
        size.edge, (0.48, 0.45, 0.4), (0.26, 0.26, 0.27), (40, 40) if size.edge != (40, 32) else None, size.resample
    )
    if size.background is not None:
        transform = PixelTransform(size.edge, tuple(c / 255 + 1e-4 for c in size.background), (0.2,) * 3, (40, 40))
    assert size.background in (None, transform.background)
    ratio = "pad" if size.background is not None else None
    data = picture(*shape)
    small = transform([read("image", data, resize=size)], ratio)
    whole = transform([load_image(data)], ratio)
    assert torch.equal(small, whole)


# ---------------------------------------------------------------------------------------------------------- bad content


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"no media at all",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\xff\xd8\xff\xe0" + bytes(50),
        b"GIF89a\1\0\1\0",
        b"\0\0\0\x18ftypmp42" + bytes(40),
        b"RIFF\0\0\0\0AVI " + bytes(100),
    ],
)
def test_rubbish_is_refused_in_words_of_ours(kind, data):
    error = refusal(kind, data)
    assert (error.status, error.code) == (400, "invalid_media")
    assert str(error).startswith(f"the {kind} cannot be read: it is damaged")
    assert error.detail  # the library's words, for the log


def test_truncated_files_are_refused_or_read_in_part():
    whole = film()
    for part in (0.2, 0.5, 0.8):
        assert refusal("video", whole[: int(len(whole) * part)]).code == "invalid_media"
    image = picture()
    assert refusal("image", image[: len(image) // 2]).code == "invalid_media"


def test_an_empty_medium_has_its_message():
    assert str(refusal("image", b"")) == "the image is empty"
    assert str(refusal("video", [])) == "the video is empty"


def test_a_video_without_frames_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        output.start_encoding()
    assert refusal("video", file.getvalue()).code == "invalid_media"


@pytest.mark.parametrize("form", ["TIFF", "ICO", "TGA", "JPEG2000"])
def test_picture_formats_off_the_list_are_refused(form):
    assert refusal("image", picture(32, 32, form=form)).code == "invalid_media"


def encoded(codec, pixels, container="matroska", sound=False):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
        if sound:
            voice = output.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 12800), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            output.mux(voice.encode(frame))
            output.mux(voice.encode(None))
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number * 9, np.uint8), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_codecs_off_the_list_are_refused():
    assert read("video", encoded("mjpeg", "yuvj420p"), {"num_frames": 2}).shape == (2, 32, 32, 3)
    for codec, pixels, container in (("ffv1", "yuv420p", "matroska"), ("jpeg2000", "rgb24", "mov")):
        data = encoded(codec, pixels, container)
        assert len(read_clip(data, FrameSampling(num_frames=2)).frames_THWC) == 2  # the reader at home takes it
        assert refusal("video", data, {"num_frames": 2}).code == "invalid_media"


def test_sound_beside_the_picture_does_not_matter():
    data = encoded("libx264", "yuv420p", "mp4", sound=True)
    expected = read_clip(data, FrameSampling(num_frames=4)).frames_THWC
    np.testing.assert_array_equal(read("video", data, {"num_frames": 4}), expected)


def test_a_picture_of_one_pixel_is_a_picture():
    assert read("image", picture(1, 1)).shape == (1, 1, 3)
    assert read("image", picture(1, 1), resize=FrameResize(48, 3)).shape == (48, 48, 3)
    assert read("video", [picture(1, 1)] * 2, {"num_frames": 2}, resize=FrameResize(48, 3)).shape == (2, 48, 48, 3)


# --------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.slow
def test_a_bomb_is_refused_by_its_header():
    bomb = bomb_png()
    assert len(bomb) < 4 << 20
    error = refusal("image", bomb)
    assert str(error) == "the image is 60000x60000 pixels; at most 4000000 pixels are accepted"
    assert "60000x60000" in str(refusal("video", [picture(), bomb], {"num_frames": 2}))


@pytest.mark.slow
def test_a_narrow_picture_cannot_become_a_huge_one():
    """Its short edge would be blown up to the model's, and the other with it."""
    data = picture(1, 20_000)
    assert read("image", data).shape == (20_000, 1, 3)
    assert "too wide or too high" in str(refusal("image", data, resize=FrameResize(336, 3)))
    assert "too wide or too high" in str(refusal("image", data, resize=FrameResize(336, 3, (0, 0, 0))))


@pytest.mark.slow
def test_large_frames_are_refused():
    data = film(frames=2, width=640, height=480)
    assert refusal("video", data, policy=policy(max_pixels=640 * 480 - 1)).code == "invalid_media"
    assert read("video", data, {"num_frames": 1}, policy=policy(max_pixels=640 * 480)).shape == (1, 480, 640, 3)


@pytest.mark.slow
def test_long_videos_are_refused():
    data = film(frames=40, fps=10)
    error = refusal("video", data, policy=policy(max_duration_s=3.0))
    assert str(error) == "the video is 4 s long; at most 3 s are accepted"


def test_a_header_that_claims_years_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number in (0, 300_000_000):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "s long; at most 600 s" in str(refusal("video", file.getvalue(), {"num_frames": 2}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_frames": 65}, "num_frames 65 is more than the maximum of 64"),
        ({"num_frames": 0}, "num_frames 0 is outside"),
        ({"start": 5.0, "end": 1.0}, "start 5.0 s is after end 1.0 s"),
        ({"start": -1.0}, "start -1.0 s is negative"),
        ({"start": 100.0}, "start 100 s is after the end of the video (2.00 s)"),
    ],
)
def test_clips_that_are_none_are_explained(options, words):
    assert words in str(refusal("video", film(), options))


def test_too_many_bytes_and_frames_are_refused_before_a_process_sees_them():
    async def work(box):
        with pytest.raises(RefusedMediaError, match="larger than 1000 bytes") as caught:
            await box.read("image", bytes(1001))
        with pytest.raises(RefusedMediaError, match="65 frames are more than the maximum of 64"):
            await box.read("video", [b"1"] * 65)
        return caught.value.status, box.started

    assert run(work, policy=policy(max_bytes=1000)) == (413, 0)


@pytest.mark.slow
def test_memory_is_limited_and_the_next_job_has_all_of_it():
    big = picture(1900, 1900)

    async def work(box):
        with pytest.raises(RefusedMediaError) as caught:
            await box.read("image", big)
        return caught.value, await box.read("image", picture(8, 8))

    error, frames = run(work, policy=policy(decode_memory_bytes=16 << 20))
    assert error.status == 400
    assert error.code in ("media_too_large", "invalid_media")
    assert frames.shape == (8, 8, 3)


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.slow
def test_what_differs_in_anything_is_another_clip():
    async def work(box):
        data = film()
        await box.read("video", data, {"num_frames": 4})
        for options in ({"num_frames": 5}, {"num_frames": 4, "start": 0.1}, {"num_frames": 4, "end": 1.0}):
            await box.read("video", data, options)
        await box.read("video", data + b"\0", {"num_frames": 4})
        one, two = picture(4, 4), picture(5, 5)
        await box.read("video", [one, two], {"num_frames": 2})
        await box.read("video", [two, one], {"num_frames": 2})
        assert box.cache.hits == 0
        again = await box.read("video", data, {"num_frames": 4})
        return box.cache.hits, again.flags.writeable

    assert run(work) == (1, False)


def test_where_a_frame_ends_counts():
    from videollama2.serve.untrusted_media.job import job_key

    assert job_key({}, [b"ab", b"c"]) != job_key({}, [b"a", b"bc"]) != job_key({}, [b"abc"])


def test_the_cache_is_bounded_by_bytes():
    cache = LruStore(100, frame_bytes)
    for number in range(5):
        cache.put(bytes([number]), np.zeros((30,), np.uint8))
    assert cache.used_size == 90
    assert cache.get(b"\0") is None
    assert cache.get(b"\4") is not None
    cache.put(b"big", np.zeros((101,), np.uint8))
    assert cache.get(b"big") is None


@pytest.mark.slow
def test_a_child_of_a_thread_serves_alone():
    """The limits of one process are those of the policy it was made with."""
    child = Child(ChildLimits.of(policy(max_pixels=100), 4))
    try:
        header = {"kind": "image", "sampling": {}, "is_list": False, "resize": None, "cpu_seconds": 5}
        reply, _ = child.ask(header, [picture(11, 11)], 20)
        assert reply["error"] == "refused"
        reply, arrays = child.ask(header, [picture(10, 10)], 20)
        assert reply["shapes"] == [[10, 10, 3]]
        assert len(arrays[0]) == 300
    finally:
        child.end()
