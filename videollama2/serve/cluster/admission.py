"""Which addresses workers may register from and with.

A controller connects to what registers with it, so a registration must not be a way to make it call anything else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from videollama2.serve.settings import LOOPBACK, Security
from videollama2.serve.web.errors import ApiError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

RESOLVE_S = 5.0


async def resolve(host: str, port: int) -> list[str]:
    """IP addresses of a host, from the system."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class WorkerAddresses:
    """Checks callers and the addresses they register.

    Args:
        security: ``allowed_workers`` and ``worker_token``.
        resolver: names -> addresses.
    """

    def __init__(self, security: Security, resolver: Resolver = resolve) -> None:
        entries = security.allowed_workers
        if entries is None:
            entries = () if security.worker_token else LOOPBACK
            self._is_any = security.worker_token is not None
        else:
            self._is_any = False
        self._networks = [network for entry in entries if (network := _network(entry)) is not None]
        self._hosts = {entry.lower() for entry in entries if _network(entry) is None}
        self._resolver = resolver

    async def check_caller(self, host: str | None) -> None:
        """Whether somebody at this address may speak for a worker.

        Raises:
            ApiError: 403.
        """
        caller = _address(host or "")
        if caller is None or not (self._is_any or self._is_listed(caller) or await self._is_host(caller)):
            raise ApiError(403, "workers may not register from this address; see --allowed-workers", code="forbidden")

    async def admit(self, name: str) -> str:
        """Where to connect to for a worker that registers as ``name``.

        Where a network on the list is what allows it, that is the IP address that was checked: a name could stand for
        another one the next time.

        Raises:
            ApiError: 400, it is no address of a worker; 403, not an allowed one.
        """
        scheme, host, port = _parse(name)
        if host in self._hosts:
            return name
        try:
            found = await asyncio.wait_for(self._resolver(host, port), RESOLVE_S)
        except (OSError, UnicodeError, asyncio.TimeoutError):
            found = []
        addresses = [_address(text) for text in found]
        if not addresses:
            raise ApiError(400, "the host of worker_name has no address", code="invalid_worker", param="worker_name")
        # One forbidden address among others is refused too: which one is connected to must not depend on chance.
        if not all(address is not None and self._is_allowed(address) for address in addresses):
            raise ApiError(
                403, "workers may not have this address; see --allowed-workers", code="forbidden", param="worker_name"
            )
        if self._is_any or scheme == "https" or host == "localhost":
            return name
        first = min(addresses, key=lambda address: address.version)
        return f"{scheme}://{f'[{first}]' if first.version == 6 else first}:{port}"

    def _is_allowed(self, address: IPAddress) -> bool:
        return self._is_listed(address) or self._is_any and not _is_never_meant(address)

    def _is_listed(self, address: IPAddress) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)

    async def _is_host(self, caller: IPAddress) -> bool:
        for host in self._hosts:
            try:
                found = await asyncio.wait_for(self._resolver(host, 0), RESOLVE_S)
            except (OSError, UnicodeError, asyncio.TimeoutError):
                continue
            if caller in map(_address, found):
                return True
        return False


def _parse(name: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(name)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    is_bare = host and not (parts.path or parts.query or parts.fragment or "@" in parts.netloc or "%" in parts.netloc)
    if not is_bare or parts.scheme not in ("http", "https") or "\\" in name:
        raise ApiError(
            400,
            "worker_name must be the worker's address, http://host:port",
            code="invalid_worker",
            param="worker_name",
        )
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def _is_never_meant(address: IPAddress) -> bool:
    """Clouds keep credentials at link-local addresses; others are nobody's or wrap an address."""
    if address.version == 6 and (address.sixtofour or address.teredo or address in _NAT64):
        return True
    return address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _address(text: str) -> IPAddress | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
