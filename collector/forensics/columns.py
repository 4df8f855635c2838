"""What several relations read from the same columns, once each: a request's key, whether a span failed, where it dialled."""

from typing import Final

import ibis
import ibis.expr.types as ir

REQUEST_ID_LENGTH: Final = 36
"""Envoy packs its sampling decision into character 14 of any x-request-id of exactly this length."""

_ERROR_GRPC: Final = (2, 4, 12, 13, 14, 15)
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what the conventions call a server's error."""


def request_key_of(request_id: ir.StringValue) -> ir.StringValue:
    """The request id without the character that Envoy overwrites with its sampling decision; NULL if empty."""
    packed = request_id.length() == REQUEST_ID_LENGTH
    return ibis.ifelse(packed, request_id.substr(0, 14) + request_id.substr(15), request_id).nullif("")


def is_error(table: ir.Table) -> ir.BooleanValue:
    """Whether a span failed: status ERROR, an HTTP status of 500 and above, or a gRPC status that is the server's fault."""
    return (
        (table.status_code == "ERROR")
        | (table.http_response_status_code >= 500).fill_null(False)
        | table.rpc_grpc_status_code.isin(_ERROR_GRPC).fill_null(False)
    )
