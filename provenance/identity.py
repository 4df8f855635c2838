"""Whom a proxy vouched for: the peer's principal from the headers that only a proxy next to us may have written.

Pure. What an application sees in these headers is as trustworthy as the proxy in front of it: on a path without one,
a caller can write them itself. That is for the detector to judge, which knows whether the proxy logged the call.
"""

import re
from typing import Final

XFCC: Final = "x-forwarded-client-cert"
LINKERD_CLIENT_ID: Final = "l5d-client-id"

MAX_HEADER_LENGTH: Final = 8_192
"""Characters that are looked at; Envoy's own limit on all headers is 60 kB, one element has a few hundred."""

_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;"]*)\s*(?:;|$)')


def peer_principal(xfcc: str | None, linkerd_client_id: str | None) -> str | None:
    """The SPIFFE id or Linkerd identity of the peer; None where no proxy vouched for one.

    "Trust only the rightmost element" of x-forwarded-client-cert: with APPEND_FORWARD, Istio's default, Envoy keeps
    what the client itself sent in front of what it verified. No URI there means no principal, whatever stands left.
    """
    if xfcc is not None and (principal := _rightmost_uri(xfcc)):
        return principal
    if linkerd_client_id is not None and 0 < len(linkerd_client_id) <= MAX_HEADER_LENGTH:
        return linkerd_client_id
    return None


def _rightmost_uri(xfcc: str) -> str | None:
    if len(xfcc) > MAX_HEADER_LENGTH:
        return None
    element, at = _last_element(xfcc), 0
    while match := _PAIR.match(element, at):
        if match[1].lower() == "uri":
            return _unquoted(match[2]) or None
        at = match.end()
    return None


def _last_element(xfcc: str) -> str:
    """What follows the last comma outside quotes.

    Read from the right, because only the right end is the proxy's own: a quote that a client left open further left
    must not change how the proxy's element is read.
    """
    quoted = False
    for at in range(len(xfcc) - 1, -1, -1):
        if xfcc[at] == '"' and not _is_escaped(xfcc, at):
            quoted = not quoted
        elif xfcc[at] == "," and not quoted:
            return xfcc[at + 1 :]
    return xfcc


def _is_escaped(text: str, at: int) -> bool:
    before = at
    while before > 0 and text[before - 1] == "\\":
        before -= 1
    return (at - before) % 2 == 1


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
