"""google.rpc.Status, in which OTLP says why a request failed: as protobuf or JSON over HTTP, in a trailer over gRPC.

"The response body for all HTTP 4xx and HTTP 5xx responses MUST be a Protobuf-encoded Status message" (OTLP/HTTP,
Failures). Its details carry what a program may act on: `RetryInfo` (when to send again) and `BadRequest` (which field).
"""

import json
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

RETRY_AFTER_S: Final = 1
"""Longer than a group commit, shorter than a sender's patience: exporters give up after 10 s by default."""

DEFECT: Final = "the collector failed on this request: its log says why"
"""All that a sender is told of a defect of ours."""

GRPC_DETAILS: Final = "grpc-status-details-bin"
"""The trailer in which gRPC carries a Status with details."""


def status(code: int, message: str, *details: Message) -> status_pb2.Status:
    """A Status with these details."""
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


def unavailable(message: str, retry_after_s: int = RETRY_AFTER_S) -> status_pb2.Status:
    """Send the same request again, after so many seconds."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = retry_after_s
    return status(code_pb2.UNAVAILABLE, message, retry)


def bad_request(message: str, field: str = "", reason: str = "") -> status_pb2.Status:
    """Not worth sending again: what is wrong, and with which field of the request, as far as it is known."""
    details = error_details_pb2.BadRequest()
    details.field_violations.add(field=field, description=reason or message)
    return status(code_pb2.INVALID_ARGUMENT, message, details)


def as_json(message: status_pb2.Status) -> str:
    """Protobuf's JSON mapping of a Status, its details with their `@type`."""
    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False)


def grpc_trailer(message: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """What `ServicerContext.set_trailing_metadata` takes, for senders to find the details."""
    return ((GRPC_DETAILS, message.SerializeToString()),)
