"""Parses media URLs, each exactly once: the same :class:`WebAddress` is checked and then fetched.

If two parsers read one URL differently, a forbidden host can slip through the check. The parsing is therefore strict: a
URL that is not plain is refused.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

from videollama2.media.kinds import AUDIO, KINDS, VIDEO, identify, with_article
from videollama2.serve.long_text import Text, beginning, pieces
from videollama2.serve.untrusted_media.errors import RefusedMediaError

MAX_URL_LENGTH = 8192
"""Maximum number of characters of an http or file URL."""

DEFAULT_PORTS = {"http": 80, "https": 443}

# ASCII only, so that IDNA cannot map a letter to another one; no backslash, user name, or percent sign in the host.
_WEB = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!$->@-\[\]-~]*)?(?P<query>\?[!$-\[\]-~]*)?(?:#[!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_MAX_DATA_HEAD = 1024
_DATA = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+)(?:;[a-z0-9_-]+=[^;,\"\\]*)*;base64,", re.IGNORECASE | re.ASCII)

FRAME_LIST_TYPE = "video/jpeg"
"""``data:video/jpeg;base64,FRAME,FRAME,...`` holds a video as frames (vLLM's form)."""


@dataclass(frozen=True)
class WebAddress:
    """The parts of an http(s) URL. ``host`` is lower case, without brackets; ``target`` is the path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """The value of the HTTP Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and host, for the log. Path and query are left out because they may hold a client's credentials."""
        return f"{self.scheme}://{self.host_header}"

    def __str__(self) -> str:
        return self.origin + self.target


def scheme_of(url: Text) -> str:
    """Return the scheme of a media URL: ``data``, ``file``, ``http`` or ``https``.

    Raises:
        RefusedMediaError: the URL has another scheme.
    """
    scheme = beginning(url, 8).partition(":")[0].lower()
    if scheme not in ("data", "file", "http", "https"):
        raise RefusedMediaError("a media URL must be a data:, http(s):// or file:// URL", "invalid_media_url")
    return scheme


def parse_web(url: str) -> WebAddress:
    """Parse an http(s) URL.

    Raises:
        RefusedMediaError: the URL is not plain in the sense of this module.
    """
    found = _WEB.fullmatch(url) if len(url) <= MAX_URL_LENGTH else None
    if found is None:
        raise _no_url()
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"]) if found["port"] else DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise _no_url()
    return WebAddress(scheme, _check_host(host), port, (found["path"] or "/") + (found["query"] or ""))


def _check_host(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _no_url() from None
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _no_url()
    if _NUMBER.fullmatch(labels[-1]):
        # Browsers read a host that ends in a number as an IPv4 address with 1 to 4 decimal, octal or hexadecimal parts.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _no_url() from None
    return host


def _no_url() -> RefusedMediaError:
    return RefusedMediaError("a media URL is not a plain http(s) URL: http(s)://host[:port]/path", "invalid_media_url")


def follow(address: WebAddress, location: str) -> WebAddress:
    """Return the address that a redirect leads to.

    Raises:
        RefusedMediaError: the target is not a plain URL, or leads from https to http.
    """
    if location.startswith("//"):
        location = f"{address.scheme}:{location}"
    elif location.startswith("/"):
        location = f"{address.scheme}://{address.host_header}{location}"
    elif "://" not in location.partition("?")[0]:
        folder = address.target.partition("?")[0].rpartition("/")[0]
        location = f"{address.scheme}://{address.host_header}{folder}/{location}"
    next_address = parse_web(location)
    if address.scheme == "https" and next_address.scheme == "http":
        raise RefusedMediaError("a media URL leads from https to http", "media_not_allowed")
    return next_address


def parse_file(url: str) -> str:
    """Return the path of a ``file:///path`` URL.

    Raises:
        RefusedMediaError: the URL names a host, contains ``..``, or has characters that are not valid in a path.
    """
    rest = url[len("file:") :]
    if len(url) <= MAX_URL_LENGTH and rest.startswith("///"):
        try:
            path = unquote(rest[2:], errors="strict")
        except UnicodeDecodeError:
            path = ""
        is_plain = not re.search(r"[\0-\x1f\\]", path) and not re.search(r"[?#]|^////", rest)
        if path and is_plain and ".." not in path.split("/"):
            return path
    raise RefusedMediaError("a file URL must be file:/// and an absolute path without '..'", "invalid_media_url")


def parse_data(url: Text, kind: str, max_bytes: int, max_frames: int) -> bytes | list[bytes]:
    """Return the bytes of a ``data:`` URL, or a list of frames for :data:`FRAME_LIST_TYPE`.

    Counts and lengths are checked before anything is decoded.

    Args:
        kind: a key of :data:`~videollama2.media.kinds.KINDS`.

    Raises:
        RefusedMediaError: the URL is not base64, is of another kind, is too large, or has too many frames.
    """
    found = _DATA.match(beginning(url, _MAX_DATA_HEAD))
    if found is None:
        raise RefusedMediaError("a data URL must be data:TYPE/SUBTYPE;base64,...", "invalid_media_url")
    mime = found["type"].lower()
    main = mime.partition("/")[0]
    # Clients that do not know the type send octet-stream.
    if not KINDS[kind].fits_mime(mime) and mime != "application/octet-stream":
        raise RefusedMediaError(f"a data URL of type {main}/... is not {with_article(kind)}", "invalid_media_url")
    start = found.end()
    if (len(url) - start) * 3 // 4 > max_bytes:
        raise RefusedMediaError(f"{with_article(kind)} is larger than {max_bytes} bytes", "media_too_large", 413)
    if mime != FRAME_LIST_TYPE or kind != VIDEO:
        return _decode(pieces(url, start), kind)
    return [_decode(frame, VIDEO) for frame in _frames(pieces(url, start), max_frames)]


def _frames(text: Iterable[str], most: int) -> list[list[str]]:
    """Return the pieces of each of the frames, which are separated by commas."""
    frames: list[list[str]] = [[]]
    count = 1
    try:
        for piece in text:
            count += piece.count(",")
            if count <= most:
                rest, *more = piece.split(",")
                frames[-1].append(rest)
                frames += [[part] for part in more]
    except ValueError:
        raise _no_base64(VIDEO) from None
    if count > most:
        raise RefusedMediaError(f"a video of {count} frames has more than the {most} that are accepted")
    return frames


def is_of_video(url: Text, content: Any) -> bool:
    """Return whether a sound is that of a video, by the type that the URL states or else by its content.

    Args:
        content: what was found there; anything but bytes tells nothing.

    Raises:
        MediaError: the content is empty, or something else stands in its place.
    """
    found = _DATA.match(beginning(url, _MAX_DATA_HEAD))
    stated = found["type"].lower().partition("/")[0] if found else ""
    if stated in (AUDIO, VIDEO):
        return stated == VIDEO
    name = "" if stated else PurePath(beginning(url, MAX_URL_LENGTH).partition("?")[0]).name
    return isinstance(content, bytes) and identify(content, name) == VIDEO


def decode_base64(text: Iterable[str]) -> bytes:
    """Decode strict base64, given in pieces of any length; other threads can run between two of them.

    Line breaks, which MIME's base64 has after every 76 characters, are skipped.

    Raises:
        ValueError: the text has a character outside base64, or its padding is missing, too long or not at the end.
    """
    decoded = io.BytesIO()  # a join of the pieces would copy them all in one call
    rest, is_padded = "", False
    for each in text:
        piece = rest + each.replace("\r", "").replace("\n", "")
        if is_padded and piece:
            raise ValueError("padding within")
        end = len(piece) - len(piece) % 4
        decoded.write(base64.b64decode(piece[:end].encode("ascii"), validate=True))
        rest, is_padded = piece[end:], is_padded or "=" in piece
    if rest:
        raise ValueError("the padding is missing, or too long")
    return decoded.getvalue()


def _decode(text: Iterable[str], kind: str) -> bytes:
    try:
        data = decode_base64(text)
    except ValueError:
        raise _no_base64(kind) from None
    if not data:
        raise RefusedMediaError(f"the data URL of {with_article(kind)} is empty")
    return data


def _no_base64(kind: str) -> RefusedMediaError:
    return RefusedMediaError(f"the data URL of {with_article(kind)} is not valid base64")
