"""Tells the names of a server, so that foreign web pages cannot attack it through a visitor's browser.

A foreign page can make its own name resolve to this machine (DNS rebinding); its requests are then of the "same
origin". A server without a key therefore accepts only IP addresses, ``localhost``, and names that the operator gave.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from videollama2.serve.settings import is_ip_address


def name_of(authority: str) -> str:
    """Return the host name of a ``Host`` header or an ``Origin`` (``https://demo.example.org``); "" without one."""
    try:
        return (urlsplit(authority if "://" in authority else f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_known_name(name: str, names: Collection[str] = ()) -> bool:
    """Return whether a host name belongs to this machine.

    Args:
        names: further names; a name that begins with a dot covers everything below that domain.
    """
    if name == "localhost" or is_ip_address(name):
        return True
    return any(name == known or known.startswith(".") and name.endswith(known) for known in names if name)
