"""Find the file of connector weights that ``--pretrain_mm_mlp_adapter`` names."""

from __future__ import annotations

from pathlib import Path

from videollama2.errors import CheckpointNotFoundError
from videollama2.hub import find_file


def connector_file(name: str) -> Path:
    """Return the path of the file ``name``, which may also be ``owner/repository/file`` on the hub.

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
                f"--pretrain_mm_mlp_adapter {name}: neither a file nor on a hub that can be reached"
            ) from error
    if found is None:
        raise CheckpointNotFoundError(f"--pretrain_mm_mlp_adapter {name}: there is no such file")
    return found
