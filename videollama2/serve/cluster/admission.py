"""Which addresses workers may register from and with.

A controller connects to what registers with it, so a registration must not be a way to make it call anything else.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from videollama2.serve.settings import LOOPBACK, Security
from videollama2.serve.untrusted_media.addresses import IPAddress, Resolver, is_never_connected_to, resolve_host
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.urls import WebAddress, parse_web
from videollama2.serve.web.errors import ApiError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESOLVE_S = 5.0


def worker_address(name: str) -> WebAddress:
    """The address that a worker registers as, read once: nothing else of what it wrote is used.

    Raises:
        ApiError: 400, it is not ``http://host:port``.
    """
    try:
        address = parse_web(name)
    except RefusedMediaError:
        address = None
    if address is None or address.target != "/" or "#" in name:
        raise ApiError(
            400,
            "worker_name must be the worker's address, http://host:port",
            code="invalid_worker",
            param="worker_name",
        )
    return address


class WorkerAddresses:
    """Checks callers and the addresses they register.

    Args:
        security: ``allowed_workers`` and ``worker_token``.
        resolver: names -> addresses.
    """

    def __init__(self, security: Security, resolver: Resolver = resolve_host) -> None:
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

    async def admit(self, worker: WebAddress) -> str:
        """Where to connect to for a worker that registers with this address.

        Where a network on the list is what allows it, that is the IP address that was checked: a name could stand for
        another one the next time.

        Raises:
            ApiError: 400, the host has no address; 403, not an allowed one.
        """
        if worker.host in self._hosts:
            return worker.origin
        addresses = [_address(text) for text in await self._resolve(worker.host, worker.port)]
        if not addresses:
            raise ApiError(400, "the host of worker_name has no address", code="invalid_worker", param="worker_name")
        # One forbidden address among others is refused too: which one is connected to must not depend on chance.
        known = [address for address in addresses if address is not None]
        if len(known) < len(addresses) or not all(map(self._is_allowed, known)):
            raise ApiError(
                403, "workers may not have this address; see --allowed-workers", code="forbidden", param="worker_name"
            )
        if self._is_any or worker.scheme == "https" or worker.host == "localhost":
            return worker.origin
        first = min(known, key=lambda address: address.version)
        return replace(worker, host=str(first)).origin

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host; none where it cannot be resolved in time."""
        try:
            return await asyncio.wait_for(self._resolver(host, port), RESOLVE_S)
        except (OSError, UnicodeError, asyncio.TimeoutError):
            return ()

    def _is_allowed(self, address: IPAddress) -> bool:
        return self._is_listed(address) or self._is_any and not is_never_connected_to(address)

    def _is_listed(self, address: IPAddress) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)

    async def _is_host(self, caller: IPAddress) -> bool:
        for host in self._hosts:
            if caller in map(_address, await self._resolve(host, 0)):
                return True
        return False


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
