"""Caches a judge's replies on disk. Each reply is a small file, named by a hash of its request.

Several processes may use a cache at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videollama2.eval.atomic import write_atomically
from videollama2.eval.judging.client import JudgeReply

_VERSION = 2


def request_key(request: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything on which a reply depends.

    The server's address is not part of it, because the same model is often reached by another one (a port, a proxy).
    The results name the model that the server says it used.
    """
    text = json.dumps([_VERSION, request], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """A store of replies by key. If ``folder`` is None, it stores nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder) if folder is not None else None

    def get(self, key: str) -> JudgeReply | None:
        """Return the stored reply, or None. A damaged file counts as absent, since the next reply replaces it."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("key") != key or not isinstance(record.get("raw"), str):
            return None
        return JudgeReply(record["raw"], str(record.get("model")), dict(record.get("usage") or {}))

    def put(self, key: str, reply: JudgeReply) -> None:
        """Store a reply atomically."""
        if self.folder is not None:
            write_atomically(self._path(key), json.dumps({"key": key, **reply._asdict()}, ensure_ascii=False))

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
