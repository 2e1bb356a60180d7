"""Still images: every mode becomes upright RGB, and bad ones are refused by name."""

import io
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from videollama2.errors import MediaError, MediaNotFoundError
from videollama2.media.image import load_image
from videollama2.media.sources import kind_of_path


@pytest.fixture(scope="module")
def photo():
    """A picture of 40x30 without any symmetry."""
    ramp_HW = np.linspace(0, 255, 1200).reshape(30, 40)
    return Image.fromarray(np.stack([ramp_HW, ramp_HW[::-1], ramp_HW[:, ::-1]], -1).astype(np.uint8))


def encoded(image, format_="PNG", **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that names a size and holds a few bytes of data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


class TestModes:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "YCbCr", "HSV"])
    def test_like_a_plain_conversion(self, photo, mode):
        image = photo.convert(mode)
        loaded = load_image(image)
        assert loaded.mode == "RGB"
        assert np.array_equal(loaded, image.convert("RGB"))

    @pytest.mark.parametrize("name", ["rgba.png", "gray.png", "wide.png", "tall.jpg"])
    def test_reference_files_like_the_published_code(self, golden, name):
        path = golden / "media" / name
        with Image.open(path) as image:
            assert np.array_equal(load_image(path), image.convert("RGB"))

    def test_cmyk_jpeg(self, photo):
        loaded = load_image(encoded(photo.convert("CMYK"), "JPEG", quality=95))
        assert np.abs(np.asarray(loaded, int) - np.asarray(photo, int)).mean() < 8

    def test_palette_with_transparency(self, photo):
        palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
        data = encoded(palette, transparency=3)
        assert np.array_equal(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))

    @pytest.mark.parametrize("format_", ["PNG", "TIFF"])
    def test_16_bits_are_scaled_not_clipped(self, format_):
        values_HW = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
        loaded = np.asarray(load_image(encoded(Image.fromarray(values_HW), format_)))
        assert np.array_equal(loaded[..., 0], values_HW >> 8)
        assert np.array_equal(loaded[..., 0], loaded[..., 2])

    @pytest.mark.parametrize(
        ("values", "expected"), [((0, 100, 255), (0, 100, 255)), ((0, 32768, 65535), (0, 128, 255))]
    )
    def test_32_bit_integers(self, values, expected):
        image = Image.fromarray(np.array([values], np.int32))
        assert tuple(np.asarray(load_image(image))[0, :, 0]) == expected

    @pytest.mark.parametrize(("values", "expected"), [((0, 0.5, 1), (0, 128, 255)), ((0, 50, 200), (0, 50, 200))])
    def test_floats(self, values, expected):
        image = Image.fromarray(np.array([values], np.float32))
        assert tuple(np.asarray(load_image(image))[0, :, 0]) == expected

    def test_premultiplied_alpha(self, photo):
        loaded = load_image(photo.convert("RGBA").convert("RGBa"))
        assert np.array_equal(loaded, photo)

    def test_an_animation_gives_its_first_frame(self, film):
        frames = [Image.fromarray(film.draw(i)) for i in (5, 6, 7)]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert film.number(np.asarray(load_image(data))) == 5


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright(self, photo, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photo, "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(load_image(data), expected)
        assert np.array_equal(load_image(Image.open(io.BytesIO(data))), expected)
        if orientation == 6:  # the camera was held with its right side down: rows become columns
            assert np.array_equal(load_image(data), np.rot90(np.asarray(photo), -1))

    @pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0"])
    def test_a_broken_tag_does_not_cost_the_image(self, photo, exif):
        data = encoded(photo, "JPEG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow says that the tag is broken
            assert load_image(data).size == (40, 30)

    def test_an_impossible_value_is_ignored(self, photo):
        exif = Image.Exif()
        exif[0x0112] = 77
        assert np.array_equal(load_image(encoded(photo, exif=exif)), photo)


class TestSources:
    def test_paths_bytes_and_files(self, photo, tmp_path):
        path = tmp_path / "photo of mine.png"
        photo.save(path)
        data = path.read_bytes()
        with path.open("rb") as file:
            for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, photo):
                assert np.array_equal(load_image(source), photo)

    def test_the_result_is_a_copy(self, photo):
        load_image(photo).putpixel((0, 0), (9, 9, 9))
        assert photo.getpixel((0, 0)) != (9, 9, 9)

    def test_arrays_and_tensors(self, photo):
        values_HWC = np.asarray(photo)
        for source in (
            values_HWC,
            np.moveaxis(values_HWC, -1, 0),
            torch.tensor(values_HWC),
            torch.tensor(values_HWC).permute(2, 0, 1),
            np.dstack([values_HWC, values_HWC[..., 0]]),
        ):
            assert np.array_equal(load_image(source), photo)
        grey_HW = values_HWC[..., 0]
        for source in (grey_HW, grey_HW[..., None], grey_HW[None], grey_HW.astype(np.uint16) << 8):
            assert np.array_equal(load_image(source), np.repeat(grey_HW[..., None], 3, -1))

    @pytest.mark.parametrize(
        "array",
        [np.zeros((4, 4, 3)), np.zeros(4, np.uint8), np.zeros((6, 7, 8), np.uint8), np.zeros((0, 4), np.uint8)],
    )
    def test_arrays_that_are_no_image(self, array):
        with pytest.raises(MediaError, match="array of shape"):
            load_image(array)

    @pytest.mark.parametrize("source", [None, 3, ["a.png"]])
    def test_what_is_no_source(self, source):
        with pytest.raises(MediaError, match="is not an image"):
            load_image(source)


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(MediaNotFoundError, match=r"gone.png: no such file"):
            load_image(tmp_path / "gone.png")

    def test_a_folder(self, tmp_path):
        with pytest.raises(MediaError, match="is a folder, not an image"):
            load_image(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(MediaError, match="a.png: the file is empty"):
            load_image(tmp_path / "a.png")
        with pytest.raises(MediaError, match="the file is empty"):
            load_image(b"")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
    def test_no_image_inside(self, tmp_path, name):
        (tmp_path / name).write_text("words " * 100)
        with pytest.raises(MediaError, match=f"{name}: not an image that can be read"):
            load_image(tmp_path / name)

    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
    def test_truncated(self, tmp_path, format_, share):
        noise_HWC = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
        data = encoded(Image.fromarray(noise_HWC), format_)
        path = tmp_path / f"cut.{format_.lower()}"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match=path.name):
            load_image(path)

    def test_corrupt(self, tmp_path, photo):
        data = bytearray(encoded(photo))
        middle = data.index(b"IDAT") + 10
        data[middle : middle + 40] = bytes(40)
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(MediaError, match="a.png: the image is damaged or truncated"):
            load_image(tmp_path / "a.png")

    @pytest.mark.parametrize("size", [(60000, 60000), (20000, 10000), (2**31 - 1, 2**31 - 1)])
    def test_a_header_of_absurd_size_costs_nothing(self, tmp_path, size):
        (tmp_path / "a.png").write_bytes(png_header(*size))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(MediaError, match="a.png: the image is too large"):
            load_image(tmp_path / "a.png")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # kilobytes on Linux, bytes on macOS
        assert grown < 100_000

    def test_a_pillow_image_of_absurd_size(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # some programs turn Pillow's own check off
        with pytest.raises(MediaError, match="60000x60000 pixels; at most 178956970"):
            load_image(png_header(60000, 60000))

    def test_formats_that_run_programs_are_not_opened(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
        with pytest.raises(MediaError, match="not an image that can be read"):
            load_image(tmp_path / "a.png")


class TestSniffing:
    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "ICO"])
    def test_images_by_content(self, photo, tmp_path, format_):
        path = tmp_path / "a.mp4"
        path.write_bytes(encoded(photo, format_))
        assert kind_of_path(path) == "image"

    @pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "mpegts", "flv", "mpeg", "h264"])
    def test_videos_by_content(self, film, tmp_path, container):
        codec = "mpeg2video" if container == "mpeg" else "libx264"
        path = film.write(tmp_path / "a.png", codec, container=container, frames=3, fps=25)
        assert kind_of_path(str(path)) == "video"

    def test_an_animated_gif_is_a_video(self, golden, photo, tmp_path):
        assert kind_of_path(golden / "media" / "anim_20f.gif") == "video"
        photo.save(tmp_path / "still.gif")
        assert kind_of_path(tmp_path / "still.gif") == "image"

    def test_a_folder_is_a_video(self, golden):
        assert kind_of_path(golden / "media" / "frames_dir") == "video"

    @pytest.mark.parametrize(("name", "modality"), [("a.mp4", "video"), ("A.JPG", "image"), ("a.Mkv", "video")])
    def test_the_extension_decides_where_content_does_not(self, tmp_path, name, modality):
        (tmp_path / name).write_text("words " * 100)
        assert kind_of_path(tmp_path / name) == modality

    @pytest.mark.parametrize("name", ["a.txt", "a", "a.pdf"])
    def test_neither(self, tmp_path, name):
        (tmp_path / name).write_text("words " * 100)
        with pytest.raises(MediaError, match=f"{name}: is neither an image nor a video"):
            kind_of_path(tmp_path / name)

    def test_bad_paths(self, tmp_path):
        with pytest.raises(MediaNotFoundError, match="gone.mp4"):
            kind_of_path(tmp_path / "gone.mp4")
        (tmp_path / "a.mp4").write_bytes(b"")
        with pytest.raises(MediaError, match="a.mp4: the file is empty"):
            kind_of_path(tmp_path / "a.mp4")
        with pytest.raises(MediaError, match="neither a file nor a folder"):
            kind_of_path("/dev/null")
