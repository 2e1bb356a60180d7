"""The starting parts of a very small model, as the tests of training make them."""

from tests.training.conftest import SIZES, parts

__all__ = ["SIZES", "parts"]
