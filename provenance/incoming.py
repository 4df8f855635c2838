"""What a callee's span says of a request, decided once for every framework. Pure."""

from collections.abc import Mapping

from provenance import names
from provenance.context import usable
from provenance.digest import DigestError, parse_content_digest
from provenance.identity import LINKERD_CLIENT_ID, XFCC, peer_principal
from provenance.recording import PLAIN, Recording
from provenance.spans import stamp_attributes
from provenance.stamp import Seen, judge, text_hash


def incoming_attributes(
    headers: Mapping[str, str],
    *,
    method: str,
    target: str,
    hash_hex: str | None,
    size: int,
    certified: str | None = None,
    recording: Recording = PLAIN,
) -> dict[str, str | int]:
    """The attributes of one request.

    Args:
        headers: Values by lowercase name, several lines of one name joined by commas.
        method: The HTTP method; gRPC's is POST.
        target: Path and query as they came; gRPC's is `/package.Service/Method`.
        hash_hex: The body's hash; None where it was not read to its end, or is a stream that is yet to come.
        size: Bytes that the hash covers.
        certified: The peer's principal, where this service's own TLS verified its certificate.
        recording: How hashes are recorded.
    """
    status, stamp, promised = judge(headers.get(names.STAMP), headers.get(names.CONTENT_DIGEST), hash_hex)
    signed = None
    if stamp is not None and stamp.mac is not None:
        signed = text_hash(stamp, Seen(method, target, promised, headers.get(names.TRACEPARENT)))
    attributes = stamp_attributes(stamp, signed, recording)
    attributes[names.STAMP_STATUS] = status
    if hash_hex is not None:
        recording.add_request(attributes, b"" if stamp is None else stamp.nonce, hash_hex, size)
    if request_id := usable(headers.get(names.REQUEST_ID)):
        attributes[names.REQUEST_ID_ATTRIBUTE] = request_id
    if not certified and (XFCC in headers or LINKERD_CLIENT_ID in headers):
        certified = peer_principal(headers.get(XFCC), headers.get(LINKERD_CLIENT_ID))
    if principal := certified:
        attributes[names.PEER_PRINCIPAL] = principal
    return attributes


def promised_hash(digest_header: str | None) -> str | None:
    """The SHA-256 that a `content-digest` promises; None where it promises none, or cannot be read."""
    try:
        return None if digest_header is None else parse_content_digest(digest_header)
    except DigestError:
        return None
