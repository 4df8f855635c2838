"""Whom a request asks for, by its Host header.

A page in a browser may point a name of its own at this machine (DNS rebinding), and is then no foreign page any more. But
it cannot make the browser send another name than its own. So a collector that only this machine may reach answers to this
machine's names and to addresses, never to any other name.
"""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what is bound to this address or name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return _is_loopback_name(host)


def names_this_machine(header: str) -> bool:
    """Whether a Host header names an address or a loopback name, with any port; no Host at all comes from no browser."""
    if not header:
        return True
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:  # brackets around what is no address
        return False
    try:
        ip_address(host)
    except ValueError:
        return _is_loopback_name(host)
    return True


def _is_loopback_name(host: str) -> bool:
    """RFC 6761, 6.3: `localhost` and every name that ends in `.localhost` are loopback."""
    name = host.lower().removesuffix(".")
    return name in _LOOPBACK_NAMES or name.endswith(".localhost")
