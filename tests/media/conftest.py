"""Videos of numbered frames, for the tests of this wing."""

from pathlib import Path

import pytest

from tests.media.helpers import Film


@pytest.fixture(scope="session")
def film() -> type[Film]:
    return Film


@pytest.fixture(scope="session")
def plain_mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of H.264 at 10 frames per second, with B-frames and a keyframe every second."""
    return Film.write(tmp_path_factory.mktemp("plain") / "plain.mp4")
