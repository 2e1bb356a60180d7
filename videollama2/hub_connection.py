"""Finds out within seconds, and before torch is imported, whether the Hugging Face hub can be reached.

The hub's own client tries every file of a model six times over half a minute. Without a network, this adds up to
minutes of warnings before an error appears.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import lru_cache
from typing import Any

from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line

PATIENCE_S = 5.0
"""Seconds after which the hub is considered unreachable."""

_TELLING_FILES = ("config.json", "adapter_config.json")


def hub_options(name_or_path: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Return the options for opening a model, with ``local_files_only`` if it is cached and the hub cannot be reached.

    Args:
        name_or_path: folder or hub name; nothing is checked for a folder.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        CheckpointNotFoundError: it is neither a folder nor in the cache, and the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    if hub.get("local_files_only") or os.path.exists(name):
        return hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return hub
    reason = why_unreachable(constants.ENDPOINT)
    if reason is None:
        return hub
    if not _is_cached(name, hub):
        raise CheckpointNotFoundError(
            f"{name} is not a folder, the cache ({constants.HF_HUB_CACHE}) does not hold it, and {constants.ENDPOINT} "
            f"cannot be reached ({reason})"
        )
    return {**hub, "local_files_only": True}


def check_name(name: str) -> None:
    """Check the name of a model that is not a folder.

    Raises:
        CheckpointNotFoundError: it is a file, or the hub could have no repository of this name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if os.path.exists(name):
        raise CheckpointNotFoundError(f"{name} is a file; a checkpoint is a folder or a hub name")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointNotFoundError(f"{name}: there is no such folder") from error


def check_is_there(name: str) -> None:
    """Check within seconds, and without torch, that a model's folder is one or its repository may be opened.

    Raises:
        CheckpointNotFoundError: there is no such folder, and the repository is neither cached nor within reach.
        CheckpointError: the folder is not a checkpoint.
    """
    if os.path.isdir(name):
        if not any(os.path.isfile(os.path.join(name, file)) for file in _TELLING_FILES):
            raise CheckpointError(f"{name} holds neither {' nor '.join(_TELLING_FILES)}, so it is not a checkpoint")
        return
    check_name(name)
    from huggingface_hub import constants

    if constants.is_offline_mode() and not _is_cached(name, {}):
        raise CheckpointNotFoundError(
            f"{name} is not a folder, the cache ({constants.HF_HUB_CACHE}) does not hold it, and HF_HUB_OFFLINE is set"
        )
    hub_options(name)


def _is_cached(name: str, hub: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    place = {"cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    try:
        return any(isinstance(try_to_load_from_cache(name, file, **place), str) for file in _TELLING_FILES)
    except HFValidationError:  # not a valid name of a repository
        return False


@lru_cache
def why_unreachable(address: str) -> str | None:
    """Return why a server cannot be reached, or None if it replies in any way."""
    answers: list[str | None] = []
    # This runs in a thread, because resolving a name has no timeout of its own.
    asking = threading.Thread(target=lambda: answers.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return answers[0] if answers else f"no answer within {PATIENCE_S:g} s"


def _ask(address: str) -> str | None:
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "videollama2"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # The server exists. Whether its certificate is trusted is decided by the hub's client, with its own list.
        if isinstance(reason, ssl.SSLError):
            return None
        return first_line(reason) if isinstance(reason, BaseException) else str(reason)
