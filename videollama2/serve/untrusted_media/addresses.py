"""Rules over the hosts that media may be fetched from, and the IP addresses that a host name may resolve to.

The operator's list (``--allowed-media-hosts``) has entries of two forms:

* ``cdn.example.com`` allows this host at the default port (80 for http, 443 for https). The name must resolve to
  public addresses, so that the owner of the name cannot point it into the operator's network.
* ``cdn.local:8080`` allows this host at this port only. By naming the port the operator vouches for one particular
  service, which may therefore also be in a private network or on this machine.

An entry is one exact name; there are no wildcards. Some addresses are refused whatever the list says
(:func:`is_never_connected_to`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.urls import DEFAULT_PORTS, WebAddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host and port to IP addresses."""

_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "127.0.0.0/8",
            "::1/128",
            "fc00::/7",
        ),
    )
)
"""Networks that a host listed with a port may also resolve to."""

_WRAPPING = tuple(
    map(
        ipaddress.ip_network,
        (
            "::/96",  # IPv4-compatible
            "::ffff:0:0/96",  # IPv4-mapped
            "::ffff:0:0:0/96",  # IPv4-translated
            "64:ff9b::/96",
            "64:ff9b:1::/48",  # NAT64
            "2001::/32",  # Teredo
            "2002::/16",  # 6to4
        ),
    )
)
"""IPv6 networks whose addresses embed an IPv4 address, to which the network may deliver the packets."""


def check_allowed(address: WebAddress, allowed: Collection[str]) -> bool:
    """Check that an address is on the operator's list, and return whether it may be private.

    Raises:
        RefusedMediaError: the address is not on the list.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host
    listed = {entry.lower() for entry in allowed}
    if listed & {f"{host}:{address.port}", f"{address.host}:{address.port}"}:
        return True
    if address.port == DEFAULT_PORTS[address.scheme] and listed & {host, address.host}:
        return False
    raise RefusedMediaError(
        "media are not fetched from this host: the operator of this server has not allowed it; send a data: URL",
        "media_not_allowed",
        detail=address.origin,
    )


def check_resolved(found: Iterable[str], private: bool) -> list[str]:
    """Return the addresses of a host after checking that all of them may be connected to.

    A single forbidden address refuses the host: which of its addresses is used must not depend on chance.

    Args:
        found: the addresses as the resolver returned them.
        private: whether private and loopback addresses are allowed.

    Raises:
        RefusedMediaError: there are no addresses, or one of them is forbidden.
    """
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not addresses:
        raise RefusedMediaError("the host of a media URL has no address", "media_fetch_failed")
    for address in addresses:
        if not is_allowed(address, private):
            raise RefusedMediaError(
                "the host of a media URL has an address that is not fetched from",
                "media_not_allowed",
                detail=str(address),
            )
    return [str(address) for address in addresses]


def is_allowed(address: IPAddress, private: bool) -> bool:
    """Return whether this server may connect to this IP address to fetch a client's media."""
    if _in(address, _PRIVATE):
        return private
    return address.is_global and not is_never_connected_to(address)


def is_never_connected_to(address: IPAddress) -> bool:
    """Return whether an IP address is refused everywhere in an installation, whatever its operator allows.

    These are link-local addresses (where cloud providers serve credentials), site-local, multicast and reserved
    addresses, and those that embed another address. Loopback addresses are allowed, although IPv6 reserves them.
    """
    if address.is_loopback:
        return False
    if address.version == 6 and (_in(address, _WRAPPING) or address.is_site_local):
        return True
    return address.is_multicast or address.is_reserved or address.is_link_local or address.is_unspecified


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host from the system's resolver.

    Raises:
        OSError: the host has no address.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _in(address: IPAddress, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
