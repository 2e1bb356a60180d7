"""Holds the parts of ``train.py``: its flags, the model to train, the training loop, and the files that it writes."""

import sys
import warnings
from importlib.util import find_spec


def _ignore_folder_named_datasets() -> None:
    """Keep transformers from mistaking the folder ``datasets/`` of this repository for the Hugging Face package.

    If the real package is not installed, a folder of that name in the working directory is imported as an empty
    package. transformers then believes that ``datasets`` is available and fails at the first attribute it uses.
    """
    spec = find_spec("datasets")
    if spec is None or spec.origin is not None:
        return
    sys.modules["datasets"] = None  # type: ignore[assignment]
    from transformers.utils.import_utils import is_datasets_available

    if hasattr(is_datasets_available, "cache_clear"):
        is_datasets_available.cache_clear()


_ignore_folder_named_datasets()


def _quiet_libraries() -> None:
    """Ignore warnings that a user can do nothing about."""
    for category, message in (
        # The flag keeps its published name.
        (FutureWarning, "`(is_)?gradient_checkpointing` is deprecated"),
        # Gradients of 1 x 1 convolutions have other strides than their buckets, but the same layout in memory.
        (UserWarning, "Grad strides do not match bucket view strides"),
        # The number of loader workers is the user's choice.
        (UserWarning, "This DataLoader will create"),
        (UserWarning, "'pin_memory' argument is set as true but no accelerator is found"),
    ):
        warnings.filterwarnings("ignore", message, category)


_quiet_libraries()
