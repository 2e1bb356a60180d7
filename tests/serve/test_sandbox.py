"""Decoding processes: the same frames as at home, and whatever breaks there stays there."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import golden_dir
from tests.serve.api_fixtures import bomb_png, film, picture, policy, write
from videollama2.inference.lru import LruStore
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.pixels import FrameResize
from videollama2.media.video import read_clip
from videollama2.serve.untrusted_media import process as sandbox_process
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.process import Child, ChildLimits
from videollama2.serve.untrusted_media.replies import frame_bytes
from videollama2.serve.untrusted_media.sandbox import Sandbox

MEDIA = golden_dir() / "media"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells about processes and limits them")


def run(work, **options):
    """Run ``work(sandbox)`` with a fresh sandbox."""

    async def main():
        box = Sandbox(options.pop("policy", policy()), **options)
        try:
            return await work(box)
        finally:
            box.close()

    return asyncio.run(main())


def read(kind, source, options=None, **settings):
    if settings.keys() - {"resize"}:
        return run(lambda box: box.read(kind, source, options), **settings)
    return asyncio.run(shared(**settings).read(kind, source, options))


@lru_cache
def shared(resize=None):
    """A sandbox that tests of good and bad content have in common: nothing they do may break it."""
    box = Sandbox(policy(), resize, jobs_per_process=10_000)
    boxes.append(box)
    return box


boxes = []


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    shared.cache_clear()
    started = [boxes[0].started for _ in boxes]
    while boxes:
        boxes.pop().close()
    assert set(started) <= {1}, "a process was lost on the way"


def refusal(kind, source, options=None, **settings):
    with pytest.raises(RefusedMediaError) as caught:
        read(kind, source, options, **settings)
    return caught.value


# ------------------------------------------------------------------------------------------------------------- frames


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


# -------------------------------------------------------------------------------------------------------- bad content


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


# -------------------------------------------------------------------------------------------------------------- limits


def test_a_bomb_is_refused_by_its_header():
    bomb = bomb_png()
    assert len(bomb) < 4 << 20
    error = refusal("image", bomb)
    assert str(error) == "the image is 60000x60000 pixels; at most 4000000 pixels are accepted"
    assert "60000x60000" in str(refusal("video", [picture(), bomb], {"num_frames": 2}))


def test_a_narrow_picture_cannot_become_a_huge_one():
    """Its short edge would be blown up to the model's, and the other with it."""
    data = picture(1, 20_000)
    assert read("image", data).shape == (20_000, 1, 3)
    assert "too wide or too high" in str(refusal("image", data, resize=FrameResize(336, 3)))
    assert "too wide or too high" in str(refusal("image", data, resize=FrameResize(336, 3, (0, 0, 0))))


def test_large_frames_are_refused():
    data = film(frames=2, width=640, height=480)
    assert refusal("video", data, policy=policy(max_pixels=640 * 480 - 1)).code == "invalid_media"
    assert read("video", data, {"num_frames": 1}, policy=policy(max_pixels=640 * 480)).shape == (1, 480, 640, 3)


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
        ({"num_frames": 65}, "num_frames 65 is more than the 64"),
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
        with pytest.raises(RefusedMediaError, match="65 frames are more than the 64"):
            await box.read("video", [b"1"] * 65)
        return caught.value.status, box.started

    assert run(work, policy=policy(max_bytes=1000)) == (413, 0)


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


# ----------------------------------------------------------------------------------------------- processes that break


def stop(box):
    """The process of a sandbox that has one, stopped so that its job cannot end."""
    (child,) = box._children
    os.kill(child.process.pid, signal.SIGSTOP)
    return child.process


async def job_has_begun(box, task):
    while box.cache.misses < 2 and not task.done():
        await asyncio.sleep(0.005)


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGXCPU])
def test_a_crash_ends_its_own_job_and_nothing_else(number):
    async def work(box):
        await box.read("image", picture(9, 9))
        process = stop(box)
        task = asyncio.ensure_future(box.read("image", picture(10, 10)))
        after = asyncio.ensure_future(box.read("image", picture(11, 11)))
        await job_has_begun(box, task)
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        done = await asyncio.gather(task, after, return_exceptions=True)
        return done, box.started

    (broken, good), started = run(work)
    assert isinstance(broken, RefusedMediaError)
    assert broken.status == 400
    assert broken.code == ("media_timeout" if number == signal.SIGXCPU else "invalid_media")
    assert signal.Signals(number).name in broken.detail
    assert "SIG" not in str(broken)
    assert good.shape == (11, 11, 3)
    assert started == 2


@LINUX
def test_a_job_that_hangs_is_ended():
    async def work(box):
        await box.read("image", picture(9, 9))
        stop(box)
        begun = time.monotonic()
        with pytest.raises(RefusedMediaError) as caught:
            await box.read("image", picture(10, 10))
        return caught.value, time.monotonic() - begun, await box.read("image", picture(11, 11))

    error, seconds, after = run(work, policy=policy(decode_timeout_s=0.5))
    assert error.code == "media_timeout"
    assert "longer to decode than the 0.5 s" in str(error)
    assert seconds < 5
    assert after.shape == (11, 11, 3)


@LINUX
def test_whoever_leaves_takes_the_work_along():
    async def work(box):
        await box.read("image", picture(9, 9))
        process = stop(box)
        task = asyncio.ensure_future(box.read("image", picture(10, 10)))
        await job_has_begun(box, task)
        task.cancel()
        await asyncio.wait([task])
        after = await box.read("image", picture(11, 11))
        return process.poll(), after.shape, box.started

    assert run(work) == (-signal.SIGKILL, (11, 11, 3), 2)


@LINUX
def test_one_of_several_who_leaves_does_not():
    async def work(box):
        await box.read("image", picture(9, 9))
        process = stop(box)
        data = picture(10, 10)
        first, second = (asyncio.ensure_future(box.read("image", data)) for _ in range(2))
        await job_has_begun(box, first)
        while sum(flight.waiting for flight in box._flights.values()) < 2:
            await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.wait([first])
        os.kill(process.pid, signal.SIGCONT)
        return (await second).shape, box.started

    assert run(work) == ((10, 10, 3), 1)


def test_many_who_ask_for_the_same_share_one_decoding():
    async def work(box):
        data = film()
        frames = await asyncio.gather(*(box.read("video", data, {"num_frames": 4}) for _ in range(20)))
        (child,) = box._children
        return frames, child._left

    frames, left = run(work, jobs_per_process=10)
    assert left == 9
    assert all(one is frames[0] for one in frames)


def test_a_process_is_replaced_after_its_jobs():
    async def work(box):
        for number in range(5):
            await box.read("image", picture(5 + number, 5))
        return box.started

    assert run(work, jobs_per_process=2) == 3


def test_a_process_that_cannot_start_is_a_503(monkeypatch):
    monkeypatch.setattr(sandbox_process, "_PROGRAM", "raise SystemExit(3)")
    error = refusal("image", picture(), policy=policy())
    assert (error.status, error.code) == (503, "decoder_unavailable")
    assert "code 3" in error.detail


def test_a_process_that_lies_about_its_reply_is_not_believed(monkeypatch):
    """It may be in a client's hands: shapes that do not fit the bytes are refused."""
    lie = (
        "import sys; sys.path[:] = __import__('json').loads(sys.argv[1])\n"
        "from videollama2.serve.untrusted_media.wire import read_message, write_message\n"
        "i, o = sys.stdin.buffer, sys.stdout.buffer\n"
        "read_message(i, 0); write_message(o, {'ready': []})\n"
        "read_message(i, 1 << 30); write_message(o, {'shapes': [[1 << 40, 9, 3]]}, [b'abc'])\n"
    )
    monkeypatch.setattr(sandbox_process, "_PROGRAM", lie)
    assert str(refusal("image", picture(), policy=policy())) == "the image cannot be decoded"


def test_closing_ends_the_processes():
    async def main():
        box = Sandbox(policy(decode_processes=2))
        await box.start()
        children = list(box._children)
        box.close()
        with pytest.raises(RefusedMediaError) as caught:
            await box.read("image", picture())
        return [child.process.poll() for child in children], caught.value.status

    codes, status = asyncio.run(main())
    assert len(codes) == 2
    assert all(code is not None for code in codes)
    assert status == 503


# ------------------------------------------------------------------------------------------------- what a process may


def in_child(code, memory=1 << 30):
    """Output of ``code`` in a process with the limits of a decoding one."""
    program = (
        "import os, sys\n"
        "from videollama2.serve.untrusted_media import child, limits\n"
        f"limits.die_with_parent(os.getppid())\n"
        f"in_force = limits.restrict({memory}, 60, child._installation())\n{code}"
    )
    root = Path(sandbox_process.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError" not in done.stderr, done.stderr
    return done


@LINUX
def test_limits_are_in_force():
    async def work(box):
        await box.start()
        (child,) = box._children
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        limits = Path(f"/proc/{child.process.pid}/limits").read_text()
        return child.in_force, status, limits

    in_force, status, limits = run(work)
    assert {"AS", "CPU", "CORE", "NOFILE", "FSIZE", "NO_NEW_PRIVS"} <= set(in_force)
    assert "NoNewPrivs:\t1" in status
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()[1:]}
    assert rows["Max core file size"][1] == rows["Max file size"][1] == "0"
    assert rows["Max open files"][1] == "64"
    assert (1 << 30) < int(rows["Max address space"][1]) < (3 << 30)


@LINUX
def test_a_process_writes_no_file_and_takes_no_memory(tmp_path):
    found = in_child("try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    print('no memory')")
    assert found.stdout.strip() == "no memory"
    target = tmp_path / "written"
    found = in_child(
        f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen({str(target)!r}, 'wb').write(b'x')"
    )
    assert found.returncode != 0
    assert not target.exists() or target.stat().st_size == 0


@LINUX
def test_with_landlock_a_process_reads_no_file_of_others_and_connects_nowhere(tmp_path):
    secret = write(tmp_path / "key", b"sk-secret")
    code = (
        "print('LANDLOCK' in in_force)\n"
        f"for attempt in (lambda: open({str(secret)!r}).read(), lambda: open('/etc/passwd').read(),\n"
        "    lambda: __import__('socket').create_connection(('127.0.0.1', 9), 1)):\n"
        "    try:\n        attempt(); print('got through')\n"
        "    except PermissionError:\n        print('refused')\n"
        "    except OSError as error:\n        print(error)\n"
    )
    lines = in_child(code).stdout.split("\n")
    if lines[0] != "True":
        pytest.skip("this kernel has no Landlock")
    assert lines[1:3] == ["refused", "refused"]
    assert "got through" not in lines


@LINUX
def test_a_process_sees_nothing_of_the_servers_environment(monkeypatch):
    monkeypatch.setenv("VIDEOLLAMA2_API_KEY", "sk-secret")

    async def work(box):
        await box.start()
        (child,) = box._children
        # Not dumpable: even its owner reads its environment only as root.
        return Path(f"/proc/{child.process.pid}/environ").read_bytes()

    try:
        assert b"sk-secret" not in run(work)
    except PermissionError:
        pytest.skip("only root reads the environment of such a process")


def test_a_process_imports_no_torch():
    code = (
        "import sys, videollama2.serve.untrusted_media.child\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers', 'fastapi', 'httpx')])"
    )
    root = Path(sandbox_process.__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@LINUX
def test_a_process_dies_with_the_server():
    code = (
        "import asyncio, os, sys\n"
        "from tests.serve.api_fixtures import policy\n"
        "from videollama2.serve.untrusted_media.sandbox import Sandbox\n"
        "box = Sandbox(policy())\n"
        "asyncio.run(box.start())\n"
        "print(next(iter(box._children)).process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(sandbox_process.__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    pid = int(found.stdout)
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --------------------------------------------------------------------------------------------------------------- cache


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
    from videollama2.serve.untrusted_media.sandbox import _key

    assert _key({}, [b"ab", b"c"]) != _key({}, [b"a", b"bc"]) != _key({}, [b"abc"])


def test_the_cache_is_bounded_by_bytes():
    cache = LruStore(100, frame_bytes)
    for number in range(5):
        cache.put(bytes([number]), np.zeros((30,), np.uint8))
    assert cache.used_size == 90
    assert cache.get(b"\0") is None
    assert cache.get(b"\4") is not None
    cache.put(b"big", np.zeros((101,), np.uint8))
    assert cache.get(b"big") is None


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
