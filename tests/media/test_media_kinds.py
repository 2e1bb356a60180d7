"""Of which kind a file is: decided once, by content, for every door."""

import base64
import io

import pytest
from PIL import Image

from videollama2.errors import MediaError
from videollama2.media.kinds import KINDS, TAGS, identify, kind_of, mime_type
from videollama2.serve.cli import RemoteChat
from videollama2.serve.legacy import GenerateRequest, chat_request
from videollama2.serve.page.backends import kind_of_upload


def picture(format_, frames=1, **options):
    drawn = [Image.new("RGB", (40, 30), (20 * i, 90, 200 - 20 * i)) for i in range(frames)]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": drawn[1:], "duration": 100} if frames > 1 else {}
    drawn[0].save(file, format_, **more, **options)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "AVIF"])
def test_a_picture_with_several_frames_is_a_video_and_with_one_an_image(format_):
    assert kind_of(picture(format_, 3), "a.jpg") == "video"
    assert kind_of(picture(format_), "a.mp4") == "image"


def test_an_apng_of_one_frame_is_an_image():
    one = Image.new("RGB", (8, 8))
    file = io.BytesIO()
    one.save(file, "PNG", save_all=True, default_image=False)
    assert kind_of(file.getvalue()) == "image"


def test_a_gif_with_extensions_and_colour_tables_of_its_own():
    frames = [Image.effect_noise((64, 48), 90).convert("P", palette=Image.Palette.ADAPTIVE) for _ in range(2)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0, comment=b"x" * 600, disposal=2)
    assert kind_of(file.getvalue()) == "video"
    file = io.BytesIO()
    frames[0].save(file, "GIF", comment=b"," * 600)
    assert kind_of(file.getvalue()) == "image"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_cut_pictures_are_still_told(share):
    for format_ in ("GIF", "WEBP", "PNG", "AVIF"):
        content = picture(format_, 3)
        assert kind_of(content[: max(int(len(content) * share), 12)]) in ("image", "video")


def test_a_gif_made_to_be_slow_is_not():
    class Counting(io.BytesIO):
        reads = 0

        def read(self, *size):
            self.reads += 1
            return super().read(*size)

    header = b"GIF89a\1\0\1\0\0\0\0" + b",\0\0\0\0\1\0\1\0\0\x08"
    file = Counting(header + b"\1x" * 1_000_000 + b"\0" + header[13:] + b"\1x\0;")
    assert kind_of(file) == "image"
    assert file.reads < 201_000


def test_motion_jpeg_is_told_by_its_name():
    assert kind_of(picture("JPEG"), "cam.mjpeg") == "video"
    assert kind_of(picture("JPEG"), "cam.jpg") == "image"


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac", "a.m4a"])
def test_sound_is_called_sound(name):
    if "audio" in KINDS:
        assert kind_of(b"words " * 100, name) == "audio"
        return
    with pytest.raises(MediaError, match=f"{name}: is a sound file, neither an image nor a video"):
        kind_of(b"words " * 100, name)


def test_bytes_of_nothing_known():
    assert identify(b"words " * 100) is None
    with pytest.raises(MediaError, match="the medium: is neither an image nor a video"):
        kind_of(b"words " * 100)
    with pytest.raises(MediaError, match="b.gif: the file is empty"):
        kind_of(b"", "b.gif")


def test_a_mime_type_agrees_with_the_kind():
    assert mime_type("video", "a.gif") == "image/gif"
    assert mime_type("video", "a.webp") == "image/webp"
    assert mime_type("video", "a.jpg") == "video/mp4"
    assert mime_type("image", "photo") == "image/png"


def test_the_table_is_consistent():
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind.tag == TAGS[name] == f"<{name}>"
        assert kind.fits_mime(kind.mime)
    assert len({kind.sentinel for kind in KINDS.values()}) == len({kind.batch_key for kind in KINDS.values()})


def zero_stream_kind(content, url=""):
    """What the ``\\0`` protocol takes a medium to be: bare base64, or a ``data:`` URL."""
    text = base64.b64encode(content).decode()
    body = GenerateRequest(prompt="What?", images=[url + text])
    (part, _) = chat_request(body, "m").messages[0].content
    return part.type.removesuffix("_url")


@pytest.mark.parametrize(
    ("name", "format_", "frames", "kind"),
    [
        ("still.gif", "GIF", 1, "image"),
        ("moving.gif", "GIF", 3, "video"),
        ("photo", "PNG", 1, "image"),
        ("picture.mp4", "PNG", 1, "image"),
        ("anim.png", "PNG", 3, "video"),
        ("anim.jpg", "WEBP", 3, "video"),
        ("anim.avif", "AVIF", 3, "video"),
    ],
)
def test_every_door_decides_the_same(tmp_path, monkeypatch, name, format_, frames, kind):
    """The terminal, training data, the page, the ``\\0`` protocol and the terminal client."""
    from videollama2.media.sources import kind_of_path

    path = tmp_path / name
    path.write_bytes(picture(format_, frames))
    assert kind_of_path(path) == kind
    assert kind_of_upload(path) == kind
    assert zero_stream_kind(path.read_bytes()) == kind
    for stated in ("data:image/gif;base64,", "data:video/mp4;base64,", "data:image/png;base64,"):
        assert zero_stream_kind(path.read_bytes(), stated) == kind
    part, _ = RemoteChat("http://localhost:1").read_medium(kind_of_path(path), str(path))
    assert part["type"] == f"{kind}_url"
    head = part[part["type"]]["url"].partition(";")[0].removeprefix("data:")
    assert KINDS[kind].fits_mime(head)
