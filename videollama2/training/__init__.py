"""Everything ``train.py`` is made of: flags, what is trained, the loop, what is written."""

import sys
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
