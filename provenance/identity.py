"""Whom a proxy vouched for: the peer's principal from the headers that only a proxy next to us may have written.

Or whom this service's own TLS verified: that goes before any header, because the headers are then that peer's to write.

Pure. What an application sees in these headers is as trustworthy as the proxy in front of it: on a path without one,
a caller can write them itself. That is for the detector to judge, which knows whether the proxy logged the call.
"""

import re
from collections.abc import Iterable
from typing import Final

XFCC: Final = "x-forwarded-client-cert"
LINKERD_CLIENT_ID: Final = "l5d-client-id"

MAX_ELEMENT_LENGTH: Final = 2_048
"""Characters of one proxy's word that are read: an element with certificate hash, subject and names has a few hundred.

What others wrote to its left is never looked at, however long it is.
"""

# Each repetition is possessive: what it took it never gives back, so a match takes as many steps as there are characters.
_PAIR: Final = re.compile(r'\s*+([A-Za-z]++)=(?:"((?:[^"\\]|\\.)*+)"\s*+|([^;"]*+))(?:;|$)')


def peer_principal(xfcc: str | None, linkerd_client_id: str | None) -> str | None:
    """The SPIFFE id or Linkerd identity of the peer; None where no proxy vouched for one.

    "Trust only the rightmost element" of x-forwarded-client-cert: with APPEND_FORWARD, Istio's default, Envoy keeps
    what the client itself sent in front of what it verified. No URI there means no principal, whatever stands left.
    """
    if xfcc is not None and (principal := _rightmost_uri(xfcc)):
        return principal
    if linkerd_client_id is not None and 0 < len(linkerd_client_id) <= MAX_ELEMENT_LENGTH:
        return linkerd_client_id
    return None


def certified_principal(names: Iterable[str]) -> str | None:
    """The principal among the subject alternative names of a certificate that this service's own TLS verified.

    A SPIFFE id; else the one name that there is (Linkerd's identities are DNS names); of several nobody can say which is meant.
    """
    known = [name for name in names if 0 < len(name) <= MAX_ELEMENT_LENGTH]
    ids = [name for name in known if name.startswith("spiffe://")] or known
    return ids[0] if len(ids) == 1 else None


def _rightmost_uri(xfcc: str) -> str | None:
    element, at = _last_element(xfcc), 0
    while match := _PAIR.match(element, at):
        key, quoted, bare = match.groups()
        if key.lower() == "uri":
            return bare.strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
    return None


def _last_element(xfcc: str) -> str:
    """What follows the last comma outside quotes; nothing if that is longer than an element may be.

    Read from the right, because only the right end is the proxy's own: a quote that a client left open further left
    must not change how the proxy's element is read.
    """
    tail = xfcc[-MAX_ELEMENT_LENGTH - 1 :]
    quoted = False
    for at in range(len(tail) - 1, -1, -1):
        if tail[at] == '"' and not _is_escaped(tail, at):
            quoted = not quoted
        elif tail[at] == "," and not quoted:
            return tail[at + 1 :]
    return "" if len(xfcc) > MAX_ELEMENT_LENGTH else xfcc


def _is_escaped(text: str, at: int) -> bool:
    before = at
    while before > 0 and text[before - 1] == "\\":
        before -= 1
    return (at - before) % 2 == 1
