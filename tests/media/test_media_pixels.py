"""From file to pixels: the published numbers, and transformers' own processors bit for bit."""

import json
from dataclasses import replace

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import GOLDEN_COPY, golden_dirs
from videollama2.errors import ConfigError, MediaError
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.image import load_image
from videollama2.media.pixels import PixelTransform, center_crop, pad_to_square
from videollama2.media.video import open_video, read_clip

TOLERANCE = 2e-3  # the reference is stored in half precision
GIF = "anim_20f.gif"

# Rows on which the published code fails: (file, start, end) -> what ours does.
PUBLISHED_ERRORS = {
    ("short_10fps_5f.mp4", 1.0, 1.0): "after the end",
    ("one_frame.mp4", 0.5, 1.5): "after the end",
    ("one_frame.mp4", 1.2, 0.4): "after the end",
    ("one_frame.mp4", 1.0, 1.0): "after the end",
    (GIF, 1.0, 1.0): [10, 13, 15, 18],  # its own times say that there is a second left
}


# Clips whose pixels are compared: in the whole set, and in the part of it that lies in tests/.
VIDEOS = {("whole", "clip"): 35, ("whole", "siglip"): 28, ("copy", "clip"): 11, ("copy", "siglip"): 12}
GIF_CLIPS = {"whole": 4, "copy": 1}


def rows(golden, **fields):
    """Rows of the reference that have these values."""
    all_rows = json.loads((golden / "pixels.json").read_text())
    return [row for row in all_rows if all(row.get(name) == value for name, value in fields.items())]


def sampling_of(row):
    """The sampling a row was made with; the published code swaps reversed bounds."""
    return FrameSampling(row["num_frames"], row["start"], row["end"], on_reversed="swap")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def tower(request):
    return request.param


def size_of_set(golden):
    return "copy" if golden == GOLDEN_COPY else "whole"


@pytest.fixture(scope="class")
def reference(golden):
    return load_file(golden / "pixels.safetensors")


def transform_of(golden, tower):
    return PixelTransform.from_preprocessor_config(golden / f"{tower}-tiny")


@pytest.mark.parametrize("golden", golden_dirs(), ids=lambda folder: size_of_set(folder), scope="class")
class TestPublished:
    def test_images(self, golden, reference, tower):
        transform = transform_of(golden, tower)
        selected = rows(golden, tower=tower, modal="image")
        assert len(selected) == 8
        for row in selected:
            pixels_TCHW = transform(load_image(golden / "media" / row["file"]), row["aspect_ratio"])
            difference = (pixels_TCHW - reference[row["key"]].float()).abs().max().item()
            assert difference < TOLERANCE, row["key"]

    def test_videos(self, golden, reference, tower):
        transform = transform_of(golden, tower)
        compared = 0
        for row in rows(golden, tower=tower, modal="video", published_error=None):
            if row["file"] == GIF and row["start"] is not None:
                continue  # see test_gif_clips
            clip = read_clip(golden / "media" / row["file"], sampling_of(row))
            pixels_TCHW = transform(clip.frames_THWC, row["aspect_ratio"])
            assert list(pixels_TCHW.shape) == row["shape"], row["key"]
            if row["key"] in reference:  # of a few rows only the shape was kept
                difference = (pixels_TCHW - reference[row["key"]].float()).abs().max().item()
                assert difference < TOLERANCE, row["key"]
                compared += 1
        assert compared == VIDEOS[size_of_set(golden), tower]

    def test_gif_clips(self, golden, reference):
        """The published code takes 25 gif frames for a second: with that rate, its choice is ours too."""
        path = golden / "media" / GIF
        clipped = [row for row in rows(golden, file=GIF, published_error=None) if row["start"]]
        assert len(clipped) == GIF_CLIPS[size_of_set(golden)]
        for row in clipped:
            transform = transform_of(golden, row["tower"])
            with open_video(path) as video:
                frames_THWC = video.get_frames(select_frames(20, 25.0, sampling_of(row)))
            difference = (transform(frames_THWC) - reference[row["key"]].float()).abs().max().item()
            assert difference < TOLERANCE, row["key"]
            assert read_clip(path, sampling_of(row)).times[0] == pytest.approx(min(row["start"], row["end"]), abs=0.11)

    def test_where_the_published_code_fails(self, golden, tower):
        failing = [row for row in rows(golden, tower=tower) if row.get("published_error")]
        assert {(row["file"], row["start"], row["end"]) for row in failing} == set(PUBLISHED_ERRORS)
        for row in failing:
            expected = PUBLISHED_ERRORS[row["file"], row["start"], row["end"]]
            path = golden / "media" / row["file"]
            if isinstance(expected, str):
                with pytest.raises(MediaError, match=f"{row['file']}: .*{expected}"):
                    read_clip(path, sampling_of(row))
            else:
                assert read_clip(path, sampling_of(row)).indices == expected


def same_order(frame_HWC, transform):
    """Whether the Pillow installed resizes the width first, as we do with any; Pillow 13 does not always."""
    if transform.size is None or int(PIL.__version__.split(".")[0]) < 13:
        return True
    height, width = frame_HWC.shape[:2]
    new_height, new_width = transform.resize().target(height, width)
    return not (height > new_height and height - new_height > 2 * (width - new_width))


class TestLikeTransformers:
    """Exactly the numbers of the Pillow image processors."""

    SIZES = ((57, 31), (31, 57), (56, 56), (56, 91), (200, 113), (300, 41), (20, 13), (1, 1), (640, 360))

    def frames(self):
        generator = np.random.default_rng(1)
        return [generator.integers(0, 256, (height, width, 3), np.uint8) for width, height in self.SIZES]

    @pytest.mark.parametrize("pads", [False, True])
    def test_the_towers(self, golden, tower, pads):
        from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

        kind = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}[tower]
        processor = kind.from_pretrained(golden / f"{tower}-tiny")
        transform = transform_of(golden, tower)
        assert transform == PixelTransform.from_image_processor(processor)
        compared = 0
        for frame_HWC in self.frames():
            padded_HWC = pad_to_square(frame_HWC, transform.background) if pads else frame_HWC
            if not same_order(padded_HWC, transform):
                continue
            compared += 1
            ours = transform([frame_HWC], "pad" if pads else None)
            theirs = processor(Image.fromarray(padded_HWC), return_tensors="pt")["pixel_values"]
            assert torch.equal(ours, theirs)
        assert compared >= 6

    @pytest.mark.parametrize(
        "settings",
        [
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 56, "width": 48}},
            {"size": {"shortest_edge": 61}, "crop_size": {"height": 56, "width": 33}, "resample": 2},
            {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "do_normalize": False},
            {"size": {"height": 21, "width": 40}, "do_center_crop": False, "do_rescale": False},
            {"do_resize": False, "crop_size": {"height": 50, "width": 51}, "rescale_factor": 0.01},
        ],
    )
    def test_other_settings(self, settings):
        from transformers import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil(**settings)
        transform = PixelTransform.from_image_processor(processor)
        frames = [frame_HWC for frame_HWC in self.frames()[:6] if same_order(frame_HWC, transform)]
        assert len(frames) >= 3
        for frame_HWC in frames:
            theirs = processor(Image.fromarray(frame_HWC), return_tensors="pt")["pixel_values"]
            assert torch.equal(transform([frame_HWC]), theirs.float())


class TestOrderOfPasses:
    """The width is resized before the height, as Pillow 10 of the published environment does."""

    @pytest.mark.parametrize("size", [(40, 90), (30, 57), (60, 60), (90, 40), (56, 90), (50, 70)])
    def test_width_first(self, golden, size):
        width, height = size
        transform = replace(transform_of(golden, "siglip"), size=(30, 30), crop_size=None)
        noise_HWC = np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * 255
        image = Image.fromarray(noise_HWC)
        vertical = image.resize((width, 30), transform.resample).resize((30, 30), transform.resample)
        horizontal = image.resize((30, height), transform.resample).resize((30, 30), transform.resample)
        pixels = transform([noise_HWC])
        assert torch.equal(pixels, replace(transform, size=None)([horizontal]))
        if width != 30:  # one direction alone has no order
            assert not torch.equal(pixels, replace(transform, size=None)([vertical]))


class TestPad:
    def test_bars_in_the_mean_colour(self, golden):
        transform = transform_of(golden, "clip")
        assert transform.background == (122, 116, 104)
        wide_HWC = np.full((3, 8, 3), 200, np.uint8)
        square_HWC = pad_to_square(wide_HWC, transform.background)
        assert square_HWC.shape == (8, 8, 3)
        assert (square_HWC[2:5] == 200).all()
        assert (square_HWC[[0, 1, 5, 6, 7]] == transform.background).all()
        tall_HWC = pad_to_square(wide_HWC.swapaxes(0, 1), transform.background)
        assert np.array_equal(tall_HWC, square_HWC.swapaxes(0, 1))

    def test_square_is_none_and_other_words_are_refused(self, golden):
        transform = transform_of(golden, "clip")
        frames = [np.zeros((30, 50, 3), np.uint8)]
        assert torch.equal(transform(frames, "square"), transform(frames))
        with pytest.raises(ConfigError, match="aspect ratio 'anyres'"):
            transform(frames, "anyres")


def test_inputs_may_be_arrays_lists_or_images(golden):
    transform = transform_of(golden, "clip")
    frames_THWC = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8)
    expected = transform(frames_THWC)
    assert expected.shape == (3, 3, 56, 56)
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()
    assert torch.equal(transform(list(frames_THWC)), expected)
    assert torch.equal(transform([Image.fromarray(frame_HWC) for frame_HWC in frames_THWC]), expected)
    assert torch.equal(transform(Image.fromarray(frames_THWC[0])), expected[:1])
    mixed = [frames_THWC[0], np.zeros((10, 99, 3), np.uint8)]
    assert torch.equal(transform(mixed)[:1], expected[:1])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        ([np.zeros((4, 4), np.uint8)], "not .H,W,3."),
        ([np.zeros((4, 4, 4), np.uint8)], "not .H,W,3."),
        ([np.zeros((4, 4, 3), np.float32)], "float32"),
    ],
)
def test_frames_that_are_none(golden, frames, message):
    with pytest.raises(MediaError, match=message):
        transform_of(golden, "clip")(frames)


def test_frames_must_come_out_at_one_size():
    transform = PixelTransform(16, (0.5,) * 3, (0.5,) * 3)
    assert transform.output_size is None
    with pytest.raises(MediaError, match="different sizes"):
        transform([np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8)])


def test_center_crop_of_smaller_frames_is_black_outside():
    cropped = center_crop(np.full((3, 9, 3), 5, np.uint8), (5, 4))
    assert cropped.shape == (5, 4, 3)
    assert cropped[:, 0, 0].tolist() == [0, 5, 5, 5, 0]


class TestConfig:
    def test_sizes_as_openai_wrote_them(self):
        """The config of clip-vit-large-patch14-336 has plain numbers and no rescaling fields."""
        fields = {
            "crop_size": 336,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "resample": 3,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "size": 336,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        transform = PixelTransform.from_preprocessor_config(fields)
        assert (transform.size, transform.crop_size, transform.output_size) == (336, (336, 336), (336, 336))
        assert transform.rescale_factor == 1 / 255

    def test_a_number_without_a_crop_is_a_square(self):
        fields = {"size": 384, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False}
        assert PixelTransform.from_preprocessor_config(fields).output_size == (384, 384)

    def test_transforms_compare_and_hash(self, golden):
        first, second = transform_of(golden, "clip"), transform_of(golden, "clip")
        assert first == second
        assert len({first, second, transform_of(golden, "siglip")}) == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_mean": None}, "image_mean"),
            ({"size": {"longest_edge": 3}}, "size"),
            ({"size": 0}, "size 0"),
            ({"size": "big"}, "'big'"),
            ({"image_std": [0, 1, 1]}, "std"),
            ({"image_mean": [0.5]}, "mean"),
            ({"resample": 9}, "resample 9"),
            ({"crop_size": {"height": -5, "width": 5}}, "crop_size"),
        ],
    )
    def test_bad_fields_are_named(self, golden, tmp_path, change, message):
        fields = json.loads((golden / "clip-tiny" / "preprocessor_config.json").read_text())
        fields.update(change)
        fields = {name: value for name, value in fields.items() if value is not None}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
        with pytest.raises(ConfigError, match=f"preprocessor_config.json: .*{message}"):
            PixelTransform.from_preprocessor_config(tmp_path)

    def test_bad_files_are_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"preprocessor_config.json: cannot be read"):
            PixelTransform.from_preprocessor_config(tmp_path)
        for text in ("{", "[]"):
            (tmp_path / "p.json").write_text(text)
            with pytest.raises(ConfigError, match=r"p.json: is not"):
                PixelTransform.from_preprocessor_config(tmp_path / "p.json")
