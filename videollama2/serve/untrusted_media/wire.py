"""The messages of server and decoding processes: a header of JSON, then raw bytes. Nothing is ever unpickled.

A message is ``length of the header (4 bytes, big endian)``, ``header (JSON)`` and the blobs, whose lengths are the
header's ``sizes``. Both ends check lengths before they take memory for them.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import IO, Any

MAX_HEADER_BYTES = 1 << 20
"""Far above any true header: 1024 frames with their sizes are some 30 kB."""

Readable = io.RawIOBase | io.BufferedIOBase

_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The other end has gone, or what it sent is not a message."""


def write_message(file: IO[bytes], header: dict[str, Any], blobs: Sequence[Any] = ()) -> None:
    """Send a header and blobs (anything with a buffer).

    Raises:
        OSError: the other end has gone.
    """
    views = [memoryview(blob).cast("B") for blob in blobs]
    text = json.dumps({**header, "sizes": [len(view) for view in views]}).encode()
    file.write(_LENGTH.pack(len(text)) + text)
    for view in views:
        file.write(view)
    file.flush()


def read_message(file: Readable, max_bytes: int) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive a header and blobs of at most ``max_bytes`` together.

    Raises:
        WireError: the stream ended, or the message breaks the format or the bound.
    """
    (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise WireError(f"a header of {length} bytes is longer than {MAX_HEADER_BYTES}")
    try:
        header = json.loads(_exactly(file, length))
    except ValueError as error:
        raise WireError("a header is not JSON") from error
    sizes = header.get("sizes") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise WireError("a header names no sizes")
    if sum(sizes) > max_bytes:
        raise WireError(f"a message of {sum(sizes)} bytes is longer than {max_bytes}")
    return header, [_exactly(file, size) for size in sizes]


def _exactly(file: Readable, count: int) -> bytearray:
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = file.readinto(view[have:])
        if not got:
            raise WireError("the stream ended in the middle of a message" if have else "the stream ended")
        have += got
    return data
