"""Every header, metadata key and span attribute that stamps and witnesses use, once.

Keys from OpenTelemetry's semantic conventions keep their names; what the conventions lack is `provenance.*`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# --- on the wire: HTTP headers and gRPC metadata (lowercase: HTTP/2 and gRPC demand it) ---------------------------

CONTENT_DIGEST: Final = "content-digest"
"""RFC 9530: `sha-256=:<base64>:` over the request body as sent (for gRPC: the serialised message)."""

STAMP: Final = "provenance"
"""RFC 9651 dictionary: `v=1, kid="checkout/3", t=<unix ms>, n=:<12 random bytes>:`, signed `s=:<span id>:, mac=:…:` too."""

TRACEPARENT: Final = "traceparent"
"""W3C Trace Context: which trace the call belongs to; a signed stamp covers it."""

REQUEST_ID: Final = "x-request-id"
"""The only join key that Istio's and Envoy's access logs share with a call by default: read, recorded and forwarded."""

# --- span attributes of our own -----------------------------------------------------------------------------------

REQUEST_HASH: Final = "provenance.request.hash"
"""Lowercase hex SHA-256 of the request's wire bytes, as this side of the call saw them."""

KEYED_HASH: Final = "provenance.request.keyed_hash"
"""Instead of `provenance.request.hash`, where hashes are keyed: two are only comparable where `HASH_KEY` is the same."""

HASH_KEY: Final = "provenance.request.hash_key"
"""Which key the recorded hashes are keyed with (`provenance.recording`); no attribute: they are as they are."""

REQUEST_SIZE: Final = "provenance.request.size"
"""Bytes of the request that `provenance.request.hash` covers."""

RESPONSE_SIZE: Final = "provenance.response.size"
"""Bytes of the response body (gRPC: the serialised message)."""

REQUEST_ID_ATTRIBUTE: Final = "provenance.request_id"
"""The `x-request-id` that travelled with the call."""

STAMP_STATUS: Final = "provenance.stamp.status"
"""On SERVER spans, what the middleware found: one of `STAMP_STATUSES`. No attribute: no middleware looked."""

STAMP_KID: Final = "provenance.stamp.kid"
"""Whose key made the stamp, `service/version`; an unsigned stamp names the calling service alone."""

STAMP_NONCE: Final = "provenance.stamp.nonce"
"""Lowercase hex of the stamp's 12 random bytes."""

STAMP_TIME: Final = "provenance.stamp.time_unix_ms"
"""When the caller made the stamp, by its clock."""

STAMP_MAC: Final = "provenance.stamp.mac"
"""Lowercase hex of a signed stamp's MAC."""

STAMP_TEXT_HASH: Final = "provenance.stamp.text_hash"
"""Lowercase hex SHA-256 of what the MAC is over (`provenance.stamp.signed_text`), as this side of the call saw it."""

EGRESS_STATUS: Final = "provenance.egress.status"
"""On a client span, where an egress guard is configured: unlisted, refused. Absent: its list has the destination, or it does not leave."""

PEER_PRINCIPAL: Final = "provenance.peer.principal"
"""The authenticated identity of the peer (SPIFFE id, Linkerd identity), where a proxy vouched for one."""

PACKED: Final = "provenance.call"
"""Instead of the attributes in `PACKABLE`, where a service packs them: all of them in one text (`provenance.packing`)."""

STAMP_ABSENT: Final = "absent"
STAMP_MALFORMED: Final = "malformed"
STAMP_MISMATCHED: Final = "mismatched"
STAMP_UNSIGNED: Final = "unsigned"
STAMP_SIGNED: Final = "signed"
STAMP_STATUSES: Final = (STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED, STAMP_UNSIGNED, STAMP_SIGNED)
"""absent: no stamp; malformed: not parseable; mismatched: `content-digest` differs from the body's; unsigned: well-formed, no MAC;
signed: with one, which whoever has the keys verifies."""

# --- semantic conventions that the middleware sets where nobody else did --------------------------------------------

SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"

PACKABLE: Final[Mapping[str, type[str] | type[int]]] = MappingProxyType(
    dict.fromkeys(
        (
            REQUEST_HASH,
            KEYED_HASH,
            HASH_KEY,
            REQUEST_ID_ATTRIBUTE,
            STAMP_STATUS,
            STAMP_KID,
            STAMP_NONCE,
            STAMP_MAC,
            STAMP_TEXT_HASH,
            PEER_PRINCIPAL,
            SERVER_ADDRESS,
            NETWORK_PEER_ADDRESS,
        ),
        str,
    )
    | dict.fromkeys((REQUEST_SIZE, RESPONSE_SIZE, STAMP_TIME, SERVER_PORT, NETWORK_PEER_PORT), int)
)
"""What `PACKED` may hold, and of which type each is."""
