"""Defines a job for a decoding process, and the key under which its result is cached."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any

from videollama2.serve.untrusted_media.process import Child


class Job:
    """A header and blobs for a process. Abandoning the job ends the process that works on it."""

    def __init__(self, header: dict[str, Any], blobs: list[Any]) -> None:
        self.header, self.blobs = header, blobs
        self._child: Child | None = None
        self._abandoned = False
        self._lock = threading.Lock()

    def take(self, child: Child) -> bool:
        """Note the process that works on the job from now on; return False if the job was abandoned before."""
        with self._lock:
            self._child = child
            return not self._abandoned

    def release(self) -> None:
        """Let go of the process and of the blobs, after the process has replied or failed."""
        with self._lock:
            self._child, self.blobs = None, []

    def abandon(self) -> None:
        """Give the job up, and end the process if one works on it."""
        with self._lock:
            self._abandoned = True
            if self._child is not None:
                self._child.kill()


def job_key(header: dict[str, Any], blobs: Sequence[Any]) -> bytes:
    """Return the cache key of a result: a hash of all source bytes, the length of each blob, and how they are read."""
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=32)
    for blob in blobs:
        digest.update(b"%d:" % len(blob))
        digest.update(blob)
    return digest.digest()
