"""Writes messages between server and decoding processes: a JSON header, then raw bytes. Nothing is pickled.

A message consists of the length of the header (4 bytes, big endian), the header (JSON) and the blobs, whose lengths
are given by ``sizes`` in the header. Both ends check lengths before allocating memory for them.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import IO, Any

MAX_HEADER_BYTES = 1 << 20
"""Far above any real header: the sizes of 1024 frames take about 30 kB."""

Readable = io.RawIOBase | io.BufferedIOBase

_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """Raised when the other end has closed the stream, or has sent something that is not a message."""


def write_message(file: IO[bytes], header: dict[str, Any], blobs: Sequence[Any] = ()) -> None:
    """Send a header and blobs (any objects that support the buffer protocol).

    Raises:
        OSError: the other end has closed the stream.
    """
    views = [memoryview(blob).cast("B") for blob in blobs]
    text = json.dumps({**header, "sizes": [len(view) for view in views]}).encode()
    file.write(_LENGTH.pack(len(text)) + text)
    for view in views:
        file.write(view)
    file.flush()


def read_message(file: Readable, max_bytes: int) -> tuple[dict[str, Any], list[bytearray]]:
    """Receive a header and blobs whose total size is at most ``max_bytes``.

    Raises:
        WireError: the stream ended, or the message violates the format or the limit.
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
