"""Videos that are not one file: folders of frames, lists of images, arrays, tensors."""

import numpy as np
import pytest
import torch
from PIL import Image

from videollama2.errors import MediaError, MediaNotFoundError
from videollama2.media.frames import FrameSampling
from videollama2.media.video import open_video, read_clip


@pytest.fixture
def numbered(film):
    """Twelve frames in memory, (T,H,W,C)."""
    return np.stack([film.draw(i) for i in range(12)])


class TestFolder:
    @pytest.fixture
    def folder(self, film, tmp_path):
        for i in range(12):
            Image.fromarray(film.draw(i)).save(tmp_path / f"frame{i}.png")
        return tmp_path

    def test_natural_order(self, film, folder):
        # By character, 10 and 11 would come before 2.
        assert film.numbers(read_clip(folder, FrameSampling(12)).frames_THWC) == list(range(12))

    def test_other_files_are_ignored(self, film, folder):
        (folder / "notes.txt").write_text("not a frame")
        (folder / "Thumbs.db").write_bytes(b"\0")
        (folder / ".frame99.png").write_bytes(b"\0")
        (folder / "sub").mkdir()
        with open_video(folder) as video:
            assert video.num_frames == 12

    def test_three_frames_a_second_unless_told(self, film, folder):
        assert read_clip(folder).indices == [1, 4, 7, 10]
        assert read_clip(folder, FrameSampling(4, 1.0, 2.0)).indices == [2, 3, 4, 5]
        assert read_clip(folder, fps=6.0).indices == [3, 9]
        assert read_clip(folder, fps=6.0).times == [0.5, 1.5]

    def test_only_the_chosen_frames_are_opened(self, film, folder):
        (folder / "frame11.png").write_bytes(b"damaged")
        assert film.numbers(read_clip(folder, FrameSampling(2)).frames_THWC) == [3, 8]
        with pytest.raises(MediaError, match="frame11.png"):
            read_clip(folder, FrameSampling(12))

    def test_grey_and_transparent_frames_become_rgb(self, tmp_path):
        Image.new("L", (8, 6), 100).save(tmp_path / "0.png")
        Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(tmp_path / "1.PNG")
        frames_THWC = read_clip(tmp_path, FrameSampling(2)).frames_THWC
        assert frames_THWC.shape == (2, 6, 8, 3)
        assert frames_THWC[:, 0, 0].tolist() == [[100, 100, 100], [1, 2, 3]]

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "readme.txt").write_text("nothing here")
        with pytest.raises(MediaError, match="holds no images"):
            open_video(tmp_path)


class TestLists:
    def test_images_arrays_and_paths(self, film, tmp_path):
        Image.fromarray(film.draw(2)).save(tmp_path / "2.png")
        mixed = [
            Image.fromarray(film.draw(0)),
            film.draw(1),
            tmp_path / "2.png",
            str(tmp_path / "2.png"),
            (tmp_path / "2.png").read_bytes(),
            torch.from_numpy(film.draw(5)),
        ]
        clip = read_clip(mixed)
        assert clip.indices == [0, 1, 2, 3, 4, 5]
        assert film.numbers(clip.frames_THWC) == [0, 1, 2, 2, 2, 5]

    def test_sampled_when_a_number_is_given(self, film, numbered):
        images = [Image.fromarray(frame_HWC) for frame_HWC in numbered]
        assert film.numbers(read_clip(images, FrameSampling(4)).frames_THWC) == [1, 4, 7, 10]
        assert film.numbers(read_clip(tuple(images[:3]), FrameSampling(5)).frames_THWC) == [0, 1, 1, 1, 2]

    def test_sizes_may_differ(self):
        clip = read_clip([Image.new("RGB", (8, 6)), Image.new("RGB", (4, 10)), Image.new("RGB", (8, 6))])
        assert [frame_HWC.shape for frame_HWC in clip.frames_THWC] == [(6, 8, 3), (10, 4, 3), (6, 8, 3)]

    def test_a_missing_path_is_named(self, tmp_path):
        with pytest.raises(MediaNotFoundError, match="gone.png"):
            read_clip([tmp_path / "gone.png"])

    @pytest.mark.parametrize("empty", [[], ()])
    def test_empty(self, empty):
        with pytest.raises(MediaError, match="there are no frames"):
            open_video(empty)


class TestArrays:
    def test_all_frames_or_a_sample(self, film, numbered):
        assert read_clip(numbered).indices == list(range(12))
        clip = read_clip(numbered, FrameSampling(4))
        assert clip.indices == [1, 4, 7, 10]
        assert film.numbers(clip.frames_THWC) == clip.indices

    def test_the_cap_spreads_over_long_arrays(self):
        clip = read_clip(np.zeros((100, 4, 4, 3), np.uint8))
        assert len(clip.indices) == 32
        assert clip.indices[-1] > 95

    def test_the_result_is_a_copy(self, numbered):
        clip = read_clip(numbered)
        clip.frames_THWC[:] = 7
        assert numbered.max() == 255

    def test_layouts(self, film, numbered):
        for source in (
            torch.from_numpy(numbered),
            np.moveaxis(numbered, -1, 1),
            torch.from_numpy(numbered).permute(0, 3, 1, 2),
            np.concatenate([numbered, numbered[..., :1]], -1),  # a fourth channel is alpha
        ):
            clip = read_clip(source)
            assert clip.frames_THWC.shape == (12, 64, 128, 3)
            assert np.array_equal(clip.frames_THWC, numbered)

    def test_grey(self, film, numbered):
        grey_THW = numbered.mean(-1).astype(np.uint8)
        frames_THWC = read_clip(grey_THW).frames_THWC
        assert frames_THWC.shape == (12, 64, 128, 3)
        assert np.array_equal(frames_THWC[..., 2], grey_THW)

    def test_one_frame(self, film):
        assert film.numbers(read_clip(film.draw(9)).frames_THWC) == [9]

    def test_16_bits_and_booleans(self):
        assert read_clip(np.full((1, 2, 2, 3), 65535, np.uint16)).frames_THWC.max() == 255
        assert read_clip(np.ones((1, 2, 2), bool)).frames_THWC.max() == 255

    @pytest.mark.parametrize(
        ("shape", "dtype", "message"),
        [
            ((0, 4, 4, 3), np.uint8, "no frames"),
            ((2, 6, 7, 5), np.uint8, "shape"),
            ((4, 4), np.uint8, "shape"),
            ((1, 2, 3, 4, 5), np.uint8, "shape"),
            ((2, 0, 4, 3), np.uint8, "without pixels"),
            ((2, 4, 4, 3), np.float32, "float32"),
            ((2, 4, 4, 3), np.int64, "int64"),
        ],
    )
    def test_what_is_no_clip_is_refused(self, shape, dtype, message):
        with pytest.raises(MediaError, match=message):
            read_clip(np.zeros(shape, dtype))


@pytest.mark.parametrize("fps", [0, -3.0])
def test_a_rate_must_be_positive(tmp_path, fps):
    with pytest.raises(MediaError, match="frame rate"):
        open_video([Image.new("RGB", (4, 4))], fps=fps)


@pytest.mark.parametrize("source", [None, 5, {"video": "a.mp4"}, object()])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(MediaError, match="is not a video"):
        open_video(source)


def test_one_image_is_no_video():
    with pytest.raises(MediaError, match="one image, not a video"):
        open_video(Image.new("RGB", (4, 4)))
