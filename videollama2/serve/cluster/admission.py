"""Checks the addresses that workers register from, and those that they register.

A controller connects to every address that is registered with it, so a registration must not be a way to make the
controller call anything other than a worker.
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
    """Parse the address that a worker registers. Only the parsed address is used from then on.

    Raises:
        ApiError: 400, the address is not of the form ``http://host:port``.
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
    """Checks callers and the addresses that they register.

    Args:
        security: settings, of which ``allowed_workers`` and ``worker_token`` are used.
        resolver: function that resolves host names to addresses.
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
        """Check that a caller at this address may register, report or unregister workers.

        Raises:
            ApiError: 403, it may not.
        """
        caller = _address(host or "")
        if caller is None or not (self._is_any or self._is_listed(caller) or await self._is_host(caller)):
            raise ApiError(403, "workers may not register from this address; see --allowed-workers", code="forbidden")

    async def admit(self, worker: WebAddress) -> str:
        """Return the URL to connect to for a worker that registers with this address.

        If the worker is allowed because it is in an allowed network, this is the URL of the checked IP address, since
        the name could resolve to a different one the next time.

        Raises:
            ApiError: 400, the host has no address; 403, the address is not allowed.
        """
        if worker.host in self._hosts:
            return worker.origin
        addresses = [_address(text) for text in await self._resolve(worker.host, worker.port)]
        if not addresses:
            raise ApiError(400, "the host of worker_name has no address", code="invalid_worker", param="worker_name")
        # A single forbidden address refuses the host: which of its addresses is used must not depend on chance.
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
        """Return the addresses of a host, or none if it cannot be resolved in time."""
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
