"""Fetches the bytes of media that a client names, under the operator's policy.

``data:`` URLs are always read, ``http(s)`` URLs only if the operator listed the host (see
:mod:`~videollama2.serve.untrusted_media.addresses`), and ``file`` URLs only below the folder that the operator named.
A host name is resolved once, all of its IP addresses are checked, and the connection goes to one of the checked
addresses, so that a name which resolves differently a moment later gains nothing. Redirects are followed one by one,
each through the same checks.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from videollama2.serve.long_text import Text, beginning
from videollama2.serve.untrusted_media.addresses import Resolver, check_allowed, check_resolved, resolve_host
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.files import read_below
from videollama2.serve.untrusted_media.urls import (
    MAX_URL_LENGTH,
    WebAddress,
    follow,
    parse_data,
    parse_file,
    parse_web,
    scheme_of,
)

if TYPE_CHECKING:
    import httpcore

MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_log = logging.getLogger(__name__)


class MediaFetcher:
    """Fetches the bytes of media.

    Args:
        policy: ``allowed_hosts``, ``media_root``, ``max_bytes``, ``max_frames``, ``fetch_timeout_s`` of
            :class:`videollama2.serve.settings.MediaPolicy`.
        resolve: function that resolves host names to addresses.
        tls: TLS context with the trusted certificate authorities; None trusts the usual public ones.
    """

    def __init__(self, policy: Any, resolve: Resolver = resolve_host, tls: ssl.SSLContext | None = None) -> None:
        self.policy = policy
        self._resolve, self._tls = resolve, tls

    async def fetch(self, url: Text, kind: str) -> bytes | list[bytes]:
        """Return the bytes of one medium, or a list of encoded frames if the video was sent as such a list.

        Args:
            kind: a key of :data:`~videollama2.media.kinds.KINDS`.

        Raises:
            RefusedMediaError: the policy forbids the medium, or it cannot be fetched.
        """
        scheme = scheme_of(url)
        if scheme == "data":
            return await asyncio.to_thread(parse_data, url, kind, self.policy.max_bytes, self.policy.max_frames)
        url = beginning(url, MAX_URL_LENGTH + 1)  # a longer one is refused
        if scheme == "file":
            return await asyncio.to_thread(read_below, self.policy.media_root, parse_file(url), self.policy.max_bytes)
        address = parse_web(url)
        check_allowed(address, self.policy.allowed_hosts)
        try:
            return await asyncio.wait_for(self._download(address), self.policy.fetch_timeout_s)
        except asyncio.TimeoutError:
            raise RefusedMediaError(
                f"a media URL was not fetched within {self.policy.fetch_timeout_s:g} s", "media_timeout"
            ) from None

    def size_bound(self, url: Text) -> int:
        """Return the largest number of bytes that :meth:`fetch` can return for a URL."""
        return len(url) * 3 // 4 if beginning(url, 5).lower() == "data:" else self.policy.max_bytes

    # ------------------------------------------------------------------------------------------------------ the web

    async def _download(self, address: WebAddress) -> bytes:
        async with self._connections() as connections:
            return await self._follow(connections, address)

    async def _follow(self, connections: httpcore.AsyncConnectionPool, address: WebAddress) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            private = check_allowed(address, self.policy.allowed_hosts)
            try:
                found = await self._resolve(address.host, address.port)
            except (OSError, UnicodeError) as error:
                raise _failed(f"{address.origin}: {error}") from error
            content, location = await self._get(connections, address, check_resolved(found, private))
            if content is not None:
                return content
            address = follow(address, location)
        raise RefusedMediaError(f"a media URL leads through more than {MAX_REDIRECTS} redirects", "media_fetch_failed")

    async def _get(
        self, connections: httpcore.AsyncConnectionPool, address: WebAddress, ips: Sequence[str]
    ) -> tuple[bytes | None, str]:
        """Return the content, or the target of a redirect. The host's addresses are tried until one can be reached."""
        import httpcore

        for number, ip in enumerate(ips, 1):
            try:
                return await self._get_from(connections, address, ip)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                if number == len(ips):
                    raise _failed(f"{address.origin}: {error}") from error
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
                raise _failed(f"{address.origin}: {type(error).__name__}: {error}") from error
        raise _failed(f"{address.origin}: no address")

    async def _get_from(
        self, connections: httpcore.AsyncConnectionPool, address: WebAddress, ip: str
    ) -> tuple[bytes | None, str]:
        import httpcore

        # The URL is passed in parts, so that no second parser reads what the client wrote.
        url = httpcore.URL(
            scheme=address.scheme.encode(), host=ip.encode(), port=address.port, target=address.target.encode()
        )
        headers: dict[bytes | str, bytes | str] = {
            "Host": address.host_header,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        extensions = {
            "sni_hostname": address.host,
            "timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.policy.fetch_timeout_s),
        }
        async with connections.stream("GET", url, headers=headers, extensions=extensions) as response:
            told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS:
                return None, told.get("location", "")
            if response.status != 200:
                raise _failed(f"{address.origin}: status {response.status}")
            return await self._read(response.aiter_stream(), told), ""

    async def _read(self, chunks: AsyncIterable[bytes], headers: Mapping[str, str]) -> bytes:
        limit = self.policy.max_bytes
        # Compressed content can expand to any size, and media formats are compressed already.
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise _failed("compressed content")
        stated = headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated[:20]) > limit:
            raise RefusedMediaError(f"a media URL holds more than {limit} bytes", "media_too_large", 413)
        content = bytearray()
        async for chunk in chunks:
            content += chunk
            if len(content) > limit:
                raise RefusedMediaError(f"a media URL holds more than {limit} bytes", "media_too_large", 413)
        if not content:
            raise RefusedMediaError("a media URL holds nothing")
        return bytes(content)

    def _connections(self) -> httpcore.AsyncConnectionPool:
        """Make a pool for a single fetch: a shared pool would keep the unsent requests of cancelled fetches."""
        import httpcore
        import httpx

        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        # Proxies from the environment are not used, since a proxy would resolve the name again. Connections are not
        # kept alive because the pool tells hosts apart by IP address, which two names may share.
        return httpcore.AsyncConnectionPool(ssl_context=self._tls, max_keepalive_connections=0)


def _failed(detail: str) -> RefusedMediaError:
    return RefusedMediaError("a media URL could not be fetched", "media_fetch_failed", detail=detail)
