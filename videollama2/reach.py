"""Whether the Hugging Face hub can be reached, found out in seconds and before torch is imported.

The hub's own client tries every file of a model six times over half a minute; without a network that adds up to
minutes of warnings before anything is said.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import lru_cache
from typing import Any

from videollama2.errors import CheckpointNotFoundError, first_line

PATIENCE_S = 5.0
"""Seconds after which the hub counts as out of reach."""

_TELLING_FILES = ("config.json", "adapter_config.json")


def hub_options(name_or_path: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Hub options with which a model is opened: with ``local_files_only`` where it is in the cache and no network is.

    Args:
        name_or_path: folder or hub name; of a folder nothing is asked.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        CheckpointNotFoundError: neither a folder nor in the cache, and the hub cannot be reached.
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
            f"{name} is no folder, the cache ({constants.HF_HUB_CACHE}) does not hold it, and {constants.ENDPOINT} "
            f"cannot be reached ({reason})"
        )
    return {**hub, "local_files_only": True}


def _is_cached(name: str, hub: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    place = {"cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    try:
        return any(isinstance(try_to_load_from_cache(name, file, **place), str) for file in _TELLING_FILES)
    except HFValidationError:  # no name that a repository can have
        return False


@lru_cache
def why_unreachable(address: str) -> str | None:
    """Why a server cannot be reached; None where it answers, whatever it says."""
    answers: list[str | None] = []
    # A thread, as looking up a name has no time limit of its own.
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
        # There is a server; whether its certificate is trusted, the hub's client decides by its own list.
        if isinstance(reason, ssl.SSLError):
            return None
        return first_line(reason) if isinstance(reason, BaseException) else str(reason)
