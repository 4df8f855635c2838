"""What an outgoing call carries: its stamp and headers, decided once for every framework."""

import os
import time
from dataclasses import dataclass
from typing import Final

from provenance import names
from provenance.context import outgoing_request_id, usable
from provenance.digest import render_content_digest
from provenance.spans import RecordingSpan, current_kid, stamp_attributes
from provenance.stamp import NONCE_BYTES, STAMP_VERSION, Stamp, render

_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One stamped call.

    Attributes:
        headers: What is added to the call's headers or metadata, lowercase names, in this order.
        attributes: What the caller's span says of it.
    """

    headers: tuple[tuple[str, str], ...]
    attributes: dict[str, str | int]


def stamp_call(
    *,
    stamp: Stamp,
    request_id: str | None,
    carries_request_id: bool,
    hash_hex: str | None,
    size: int,
) -> Outgoing:
    """Headers and attributes of one call; pure.

    `hash_hex` is None for a body that is only known once it is sent: then no digest travels ahead of it.
    `carries_request_id`: the call has an x-request-id already, and keeps it; `request_id` is None if nobody can use it.
    """
    headers = [(names.STAMP, render(stamp))]
    attributes = stamp_attributes(stamp)
    if hash_hex is not None:
        headers.insert(0, (names.CONTENT_DIGEST, render_content_digest(hash_hex)))
        attributes |= {names.REQUEST_HASH: hash_hex, names.REQUEST_SIZE: size}
    if request_id is not None:
        attributes[names.REQUEST_ID_ATTRIBUTE] = request_id
        if not carries_request_id:
            headers.append((names.REQUEST_ID, request_id))
    return Outgoing(tuple(headers), attributes)


def stamp_now(span: RecordingSpan | None, *, own_request_id: str | None, hash_hex: str | None, size: int) -> Outgoing:
    """`stamp_call` with this moment, fresh randomness and this process's identity.

    `own_request_id` is the x-request-id that the caller's code set on the call itself.
    """
    stamp = Stamp(STAMP_VERSION, current_kid(span), time.time_ns() // _NS_PER_MS, os.urandom(NONCE_BYTES))
    return stamp_call(
        stamp=stamp,
        request_id=outgoing_request_id() if own_request_id is None else usable(own_request_id),
        carries_request_id=own_request_id is not None,
        hash_hex=hash_hex,
        size=size,
    )
