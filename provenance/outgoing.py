"""What an outgoing call carries: its stamp and headers, decided once for every framework."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from provenance import names
from provenance.context import REQUEST_ID_BYTES, outgoing_request_id, usable
from provenance.digest import render_content_digest
from provenance.incoming import promised_hash
from provenance.keys import Key
from provenance.recording import PLAIN, Recording, current_recording
from provenance.signing import signing_key
from provenance.spans import RecordingSpan, current_service, stamp_attributes
from provenance.stamp import NONCE_BYTES, Seen, Stamp, render, signed_stamp, trusted

_NS_PER_MS: Final = 1_000_000


_OURS: Final = re.compile(r"sha-256=:[A-Za-z0-9+/]{43}=:")
"""A `content-digest` in the form that `render_content_digest` gives it."""

_STAMP_ALONE: Final = frozenset({names.STAMP})
_WITH_DIGEST: Final = frozenset({names.STAMP, names.CONTENT_DIGEST})

OwnHeaders = Mapping[str, Sequence[str]]
"""What the caller's code set on the call itself: values in their order by lowercase name."""


class Outgoing(NamedTuple):
    """One stamped call.

    Attributes:
        headers: What is added to the call's headers or metadata, lowercase names, in this order.
        replaced: Which of the caller's own are left out, lowercase names: they are another call's, forwarded.
        attributes: What the caller's span says of it.
    """

    headers: tuple[tuple[str, str], ...]
    replaced: frozenset[str]
    attributes: dict[str, str | int]


def own_headers(headers: Iterable[tuple[str, str]]) -> OwnHeaders:
    """The caller's own headers, as `stamp_call` wants them."""
    own: dict[str, list[str]] = {}
    for key, value in headers:
        own.setdefault(key.lower(), []).append(value)
    return own


class Request(NamedTuple):
    """What is sent, as far as it is known before it is.

    Attributes:
        method: The HTTP method; gRPC's is POST.
        target: Path and query; gRPC's is `/package.Service/Method`.
        hash_hex: None for a body that is only known once it is sent: then no digest travels ahead of it.
        size: Bytes that the hash covers.
        own: The headers that it has without us.
    """

    method: str
    target: str
    hash_hex: str | None
    size: int
    own: OwnHeaders


def stamp_call(
    request: Request, stamp: Stamp, *, key: Key | None, request_id: str | None, recording: Recording = PLAIN
) -> Outgoing:
    """Headers and attributes of one call; pure.

    With a `key`, the stamp goes signed, with the span id of the trace context that the call carries.

    `request_id` is None if nobody can use the one that the call has. An x-request-id of the caller's own stays, and so
    does a `content-digest`: ours beside it would be another line of the same dictionary, and alter what it says.
    """
    method, target, hash_hex, size, own = request
    replaced, promised, headers = _STAMP_ALONE, hash_hex, []
    if names.CONTENT_DIGEST in own and not _digest_of_another_call(own, hash_hex):
        promised = promised_hash(_combined(own, names.CONTENT_DIGEST))
    elif hash_hex is not None:
        headers.append((names.CONTENT_DIGEST, render_content_digest(hash_hex)))
        if names.CONTENT_DIGEST in own:
            replaced = _WITH_DIGEST
    signed = None
    if key is not None:
        seen = tuple.__new__(Seen, (method, target, promised, _combined(own, names.TRACEPARENT)))
        stamp, signed = signed_stamp(stamp, seen, key)
    headers.append((names.STAMP, render(stamp)))
    attributes = stamp_attributes(stamp, signed, recording)
    if hash_hex is not None:
        recording.add_request(attributes, stamp[3], hash_hex, size)
    if request_id is not None:
        attributes[names.REQUEST_ID_ATTRIBUTE] = request_id
        if names.REQUEST_ID not in own:
            headers.append((names.REQUEST_ID, request_id))
    return tuple.__new__(Outgoing, (tuple(headers), replaced, attributes))


def stamp_now(span: RecordingSpan | None, request: Request) -> Outgoing:
    """`stamp_call` with this moment, fresh randomness and this process's identity and key."""
    service, own = current_service(span), request.own
    randomness = os.urandom(NONCE_BYTES + REQUEST_ID_BYTES)
    if names.REQUEST_ID in own:
        request_id = usable(own[names.REQUEST_ID][0])
    else:
        request_id = outgoing_request_id(randomness[NONCE_BYTES:])
    stamp = trusted(service, time.time_ns() // _NS_PER_MS, randomness[:NONCE_BYTES], None, None)
    return stamp_call(request, stamp, key=signing_key(service), recording=current_recording(), request_id=request_id)


def _combined(own: OwnHeaders, name: str) -> str | None:
    """All lines of one header as one, as a callee combines them; None where there is none."""
    return ", ".join(own[name]) if name in own else None


def _digest_of_another_call(own: OwnHeaders, hash_hex: str | None) -> bool:
    """Whether a gateway that copies all headers forwarded a stamp with its digest, and sends another body than came.

    Only a digest that stands beside a stamp, which the caller knows, looks like ours and is provably not this body's.
    """
    if hash_hex is None or names.STAMP not in own:
        return False
    match own.get(names.CONTENT_DIGEST):
        case [digest]:
            return _OURS.fullmatch(digest) is not None and digest != render_content_digest(hash_hex)
    return False
