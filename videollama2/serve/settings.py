"""Defines the settings of the operator: keys, allow-lists and limits, with the flags that set them.

Keys are read from files or the environment, never from the command line, which every user of a machine can see.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from videollama2.errors import ConfigError
from videollama2.flags import add_count_flag, number, seconds

API_KEY_VARIABLE = "VIDEOLLAMA2_API_KEY"
WORKER_TOKEN_VARIABLE = "VIDEOLLAMA2_WORKER_TOKEN"

MIB = 1 << 20
LOOPBACK = ("127.0.0.0/8", "::1/128")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Security:
    """Access rules of a server.

    Attributes:
        api_keys: keys of clients; without any, no key is required.
        worker_token: token shared by the parts of an installation; None requires none.
        allowed_workers: networks (``10.0.0.0/8``) and hosts that workers may have. None allows only loopback addresses
            without a worker token, and all addresses with one.
        cors_origins: other origins whose web pages may call the server; without any, no CORS headers are sent.
        max_body_bytes: maximum size of one request.
        log_prompts: whether questions are written to the log.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    worker_token: str | None = field(default=None, repr=False)
    allowed_workers: tuple[str, ...] | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 128 * MIB
    log_prompts: bool = False

    @property
    def credential(self) -> str | None:
        """The credential that this part sends to another one: the worker token, or else the first API key."""
        return self.worker_token or next(iter(self.api_keys), None)

    def is_worker(self, bearer: str | None) -> bool:
        """Return whether a caller may register workers. Without a worker token, every client may."""
        if self.worker_token is None:
            return self.is_client(bearer)
        return _matches(bearer, (self.worker_token,))

    def is_client(self, bearer: str | None) -> bool:
        """Return whether a caller may ask questions."""
        if not self.api_keys:
            return True
        return _matches(bearer, (*self.api_keys, *((self.worker_token,) if self.worker_token else ())))


def _matches(bearer: str | None, secrets: Iterable[str]) -> bool:
    """Compare with all secrets, in a time that depends only on their number."""
    given = _digest(bearer or "")
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(given, _digest(secret))
    return found and bearer is not None


@dataclass(frozen=True)
class MediaPolicy:
    """Rules for the media that are fetched and decoded. Sizes are in bytes.

    Attributes:
        allowed_hosts: hosts of http(s) URLs; see :mod:`videollama2.serve.untrusted_media.addresses`.
        media_root: folder of ``file`` URLs; None refuses them.
        max_bytes: maximum encoded size of one medium.
        max_pixels: maximum number of pixels of one frame.
        max_frames: maximum number of frames of one medium.
        max_duration_s: maximum duration of a video or sound in seconds.
        max_media: maximum number of media of one request.
        decode_memory_bytes, decode_timeout_s: limits of one decoding job.
        decode_processes: number of processes that decode in parallel.
    """

    allowed_hosts: frozenset[str] = frozenset()
    media_root: Path | None = None
    max_bytes: int = 256 * MIB
    max_pixels: int = 40_000_000
    max_frames: int = 128
    max_duration_s: float = 4 * 3600.0
    max_media: int = 16
    fetch_timeout_s: float = 30.0
    decode_timeout_s: float = 60.0
    decode_memory_bytes: int = 2048 * MIB
    decode_processes: int = 2


def forwarded(
    args: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], object], exclude: Collection[str] = ()
) -> list[str]:
    """Return the command line that passes flags of this part on to another one.

    Args:
        add_flags: adds the flags to pass on to a parser; ``args`` has a value for each of them.
        exclude: names of values that are not passed on.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    found: list[str] = []
    for action in parser._actions:
        value = None if action.dest in exclude else getattr(args, action.dest)
        if value is None or value is False:
            continue
        flag = action.option_strings[0]
        if value is True:
            found.append(flag)
            continue
        for one in value if isinstance(value, list) else [value]:
            found += [flag, str(one)]
    return found


# ----------------------------------------------------------------------------------------------------------- security


def add_security_flags(parser: argparse.ArgumentParser, worker_flags: bool, registry: bool = False) -> None:
    """Add the flags of :func:`read_security`.

    Args:
        worker_flags: whether this part communicates with other parts of the installation.
        registry: whether workers register with this part.
    """
    group = parser.add_argument_group("keys and limits")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"keys of clients, one per line (also: {API_KEY_VARIABLE}); without any, no key is needed",
    )
    if worker_flags:
        group.add_argument(
            "--worker-token-file",
            type=Path,
            metavar="FILE",
            help=f"token that controller and workers share (also: {WORKER_TOKEN_VARIABLE})",
        )
    if registry:
        group.add_argument(
            "--allowed-workers",
            action="append",
            metavar="NETWORK",
            help="network or host that workers may have, e.g. 10.0.0.0/8; repeatable (default: this "
            "machine, or any with a worker token)",
        )
    group.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="web origin whose pages may call the API, e.g. https://example.com; repeatable (default: none)",
    )
    add_count_flag(group, "--max-body-mb", "largest request", default=128, metavar="MB")


def read_security(args: argparse.Namespace) -> Security:
    """Read keys and limits from flags and the environment.

    Raises:
        ConfigError: a file cannot be read or holds no key, or an entry is malformed.
    """
    keys = _secrets(args.api_key_file, API_KEY_VARIABLE)
    tokens = _secrets(getattr(args, "worker_token_file", None), WORKER_TOKEN_VARIABLE)
    if len(tokens) > 1:
        raise ConfigError(f"expected one worker token, got {len(tokens)} lines")
    allowed = getattr(args, "allowed_workers", None)
    for entry in allowed or ():
        _check_network(entry)
    for origin in args.cors_origin or ():
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise ConfigError(f"--cors-origin must begin with http:// or https://, got {origin!r}")
    return Security(
        api_keys=keys,
        worker_token=tokens[0] if tokens else None,
        allowed_workers=None if allowed is None else tuple(allowed),
        cors_origins=tuple(args.cors_origin or ()),
        max_body_bytes=args.max_body_mb * MIB,
        log_prompts=getattr(args, "log_prompts", False),
    )


def _secrets(file: Path | None, variable: str) -> tuple[str, ...]:
    """Return the lines of a file, or else of an environment variable, without empty lines and comments."""
    if file is None:
        text, place = os.environ.get(variable, ""), variable
        if not text:
            return ()
    else:
        place = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: keys cannot be read ({type(error).__name__})") from error
    lines = [line.strip() for line in text.splitlines()]
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise ConfigError(f"{place} holds no key")
    for key in found:
        # A key that cannot be sent in a header would lock all clients out.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(f"{place}: a key must consist of printable ASCII characters without spaces")
    return found


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Read API keys from a file, or else from the environment, for parts that only send them.

    Raises:
        ConfigError: the file cannot be read or holds no key.
    """
    return _secrets(file, API_KEY_VARIABLE)


def _check_network(entry: str) -> None:
    if "/" in entry:
        try:
            ipaddress.ip_network(entry, strict=False)
        except ValueError as error:
            raise ConfigError(f"--allowed-workers: {entry!r} is not a network ({error})") from error
    elif not entry or any(character in entry for character in " ,:@") and not is_ip_address(entry):
        raise ConfigError(f"--allowed-workers: {entry!r} is neither a network nor a host")


def is_ip_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a server bound to ``host`` can be reached only from this machine."""
    return host == "localhost" or is_ip_address(host) and ipaddress.ip_address(host).is_loopback


# -------------------------------------------------------------------------------------------------------------- media


def add_media_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of :func:`read_media_policy`."""
    default = MediaPolicy()
    group = parser.add_argument_group("images, videos and sounds of clients")
    group.add_argument(
        "--allowed-media-hosts",
        action="append",
        metavar="HOST",
        help="fetch http(s) URLs from this host; HOST:PORT also where it is in a private network; "
        "repeatable (default: none)",
    )
    group.add_argument(
        "--media-root", type=Path, metavar="DIR", help="open file:// URLs below this folder (default: none)"
    )
    limits = (
        ("--max-media", number(1), default.max_media, "N", "media per request"),
        ("--max-media-mb", number(1), default.max_bytes // MIB, "MB", "size of one medium as it is sent"),
        ("--max-pixels", number(1), default.max_pixels, "N", "pixels of one frame"),
        ("--max-frames", number(1), default.max_frames, "N", "frames of one video"),
        ("--max-duration", seconds, default.max_duration_s, "SECONDS", "length of a video or sound"),
        ("--fetch-timeout", seconds, default.fetch_timeout_s, "SECONDS", "time to fetch one URL"),
        ("--decode-timeout", seconds, default.decode_timeout_s, "SECONDS", "time to decode one medium"),
        ("--decode-memory-mb", number(64), default.decode_memory_bytes // MIB, "MB", "memory of a decoding process"),
        ("--decode-processes", number(1), default.decode_processes, "N", "processes that decode side by side"),
    )
    for flag, kind, value, unit, text in limits:
        group.add_argument(flag, type=kind, default=value, metavar=unit, help=f"{text} (default %(default)s)")


def read_media_policy(args: argparse.Namespace) -> MediaPolicy:
    """Read the media policy from flags.

    Raises:
        ConfigError: the media root is not a folder, or a host is invalid.
    """
    root = args.media_root
    if root is not None:
        if not root.is_dir():
            raise ConfigError(f"--media-root: {root} is not a folder")
        root = root.resolve()
    for host in args.allowed_media_hosts or ():
        if not host or any(character in host for character in " ,/@*"):
            raise ConfigError(f"--allowed-media-hosts: {host!r} is neither HOST nor HOST:PORT")
    return MediaPolicy(
        allowed_hosts=frozenset(host.lower() for host in args.allowed_media_hosts or ()),
        media_root=root,
        max_bytes=args.max_media_mb * MIB,
        max_pixels=args.max_pixels,
        max_frames=args.max_frames,
        max_duration_s=args.max_duration,
        max_media=args.max_media,
        fetch_timeout_s=args.fetch_timeout,
        decode_timeout_s=args.decode_timeout,
        decode_memory_bytes=args.decode_memory_mb * MIB,
        decode_processes=args.decode_processes,
    )
