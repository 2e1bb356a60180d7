import pytest

from tests.conftest import golden_dir
from videollama2 import model_init
from videollama2.inference.engine import Engine

from .helpers import load


@pytest.fixture(scope="module")
def small():
    return load("qwen2-stc_connector-clip")


@pytest.fixture(scope="module")
def tiny_golden():
    return model_init(golden_dir() / "models" / "qwen2-stc_connector-clip")


@pytest.fixture
def engine(small):
    with Engine(*small, max_batch=4, max_length=600) as made:
        yield made
