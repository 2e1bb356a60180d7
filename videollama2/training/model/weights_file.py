"""Finds the file of weights that a flag names, such as ``--pretrain_mm_mlp_adapter``."""

from __future__ import annotations

from pathlib import Path

from videollama2.errors import CheckpointNotFoundError
from videollama2.hub import find_file


def weights_file(flag: str, name: str) -> Path:
    """Return the path of the file ``name``, which may also be ``owner/repository/file`` on the hub.

    Args:
        flag: the flag that names the file, for messages.

    Raises:
        CheckpointNotFoundError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    found = None
    if not path.is_absolute() and file:
        try:
            found = find_file(f"{owner}/{repository}", file)
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(
                f"--{flag} {name} is neither a file nor one on a hub that can be reached"
            ) from error
    if found is None:
        raise CheckpointNotFoundError(f"--{flag} {name}: there is no such file")
    return found
