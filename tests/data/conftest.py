"""A small video and a picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videollama2.shapes.encoding import encode_video


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A folder with a video, a picture, and a video without content."""
    folder = tmp_path_factory.mktemp("media")
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    (folder / "v.mp4").write_bytes(encode_video(frames))
    Image.fromarray(frames[0]).save(folder / "i.png")
    (folder / "empty.mp4").write_bytes(b"")
    return folder
