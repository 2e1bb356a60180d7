"""A judge's replies on disk, one small file per request, named by its content. Safe for several processes at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videollama2.eval.atomic import write_atomically
from videollama2.eval.judging.client import Reply

_VERSION = 2


def content_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of everything the reply depends on. The address is no part of it: the same model is often reached by
    another one (a port, a proxy), and the results name the model that the server says it served."""
    text = json.dumps([_VERSION, request], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by key. With ``folder`` None nothing is kept."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = Path(folder) if folder is not None else None

    def get(self, key: str) -> Reply | None:
        """The stored reply, or None. A damaged file counts as absent: asking again repairs it."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("key") != key or not isinstance(record.get("raw"), str):
            return None
        return Reply(record["raw"], str(record.get("model")), dict(record.get("usage") or {}))

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply whole or not at all."""
        if self.folder is not None:
            write_atomically(self._path(key), json.dumps({"key": key, **reply._asdict()}, ensure_ascii=False))

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
