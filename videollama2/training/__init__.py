"""Everything ``train.py`` is made of: flags, what is trained, the loop, what is written."""

import sys
import warnings
from importlib.util import find_spec


def _ignore_folder_named_datasets() -> None:
    """Keep transformers from taking the folder ``datasets/`` of this repository for the Hugging Face package.

    A folder in the working directory can be imported as an empty package when no real one is installed.
    transformers then believes it has ``datasets`` and fails at the first look into it.
    """
    spec = find_spec("datasets")
    if spec is None or spec.origin is not None:
        return
    sys.modules["datasets"] = None  # type: ignore[assignment]
    from transformers.utils import is_datasets_available

    if hasattr(is_datasets_available, "cache_clear"):
        is_datasets_available.cache_clear()


_ignore_folder_named_datasets()


def _quiet_libraries() -> None:
    """Keep out of the terminal what no reader can act on."""
    for category, message in (
        # A flag under its published name.
        (FutureWarning, "`(is_)?gradient_checkpointing` is deprecated"),
        # 1 x 1 convolutions, whose gradients have another order of axes but the same one in memory.
        (UserWarning, "Grad strides do not match bucket view strides"),
        # The number of loader workers is the user's choice.
        (UserWarning, "This DataLoader will create"),
        (UserWarning, "'pin_memory' argument is set as true but no accelerator is found"),
    ):
        warnings.filterwarnings("ignore", message, category)


_quiet_libraries()
