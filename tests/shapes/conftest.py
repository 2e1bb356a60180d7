"""Scenes that tests share, and the starting parts of a very small model as the tests of training make them."""

import pytest

from tests.shapes.helpers import ask
from tests.training.conftest import parts
from videollama2.shapes.questions import Question
from videollama2.shapes.scene import Scene, make_scene

__all__ = ["parts"]


@pytest.fixture(scope="session")
def videos() -> list[Scene]:
    return [make_scene(5, index) for index in range(2000)]


@pytest.fixture(scope="session")
def images() -> list[Scene]:
    return [make_scene(5, index, "image") for index in range(500)]


@pytest.fixture(scope="session")
def asked(videos, images) -> list[tuple[Scene, Question]]:
    return [(scene, q) for scene in videos + images for q in ask(scene)]
