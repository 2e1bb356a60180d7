"""Which names a server is reached by, so that pages of strangers cannot use a visitor's browser against it.

A foreign page may have its name resolve to this machine (DNS rebinding), and its requests then come from "the same
origin". Servers without a key are therefore known by an address, by ``localhost``, or by a name that the operator
gave.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from videollama2.serve.settings import is_address


def name_of(authority: str) -> str:
    """Host name of a ``Host`` header, or of an ``Origin`` such as ``https://demo.example.org``; empty without one."""
    try:
        return (urlsplit(authority if "://" in authority else f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_known_name(name: str, names: Collection[str] = ()) -> bool:
    """Whether a host name is this machine's own.

    Args:
        names: further names; one that begins with a dot stands for everything below that domain.
    """
    if name == "localhost" or is_address(name):
        return True
    return any(name == known or known.startswith(".") and name.endswith(known) for known in names if name)
