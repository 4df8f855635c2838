"""Which span is this call's own, and what a stamp looks like as attributes."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

from opentelemetry.trace import SpanKind, get_current_span, get_tracer_provider

from provenance import names
from provenance.packing import is_packed, pack
from provenance.recording import PLAIN, Recording
from provenance.stamp import Stamp, make_kid

Attributes = Mapping[str, str | int]

_UNTOLD: Final[Any] = object()


class RecordingSpan(Protocol):
    """What we need of a recording span: the SDK's has it, and so have the wrappers of the vendors around it."""

    @property
    def attributes(self) -> Mapping[str, Any] | None:
        """The attributes so far."""

    def is_recording(self) -> bool:
        """False once it has ended."""

    def set_attribute(self, key: str, value: str) -> None:
        """Add this one."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add these."""


UNKNOWN_SERVICE: Final = "unknown_service"
FOREIGN_TO_RPC: Final = frozenset(
    {"http.request.method", "http.method", "db.system.name", "db.system", "messaging.system"}
)
FOREIGN_TO_HTTP: Final = frozenset({"rpc.system.name", "rpc.system", "db.system.name", "db.system", "messaging.system"})
"""Attributes whose presence says that a span is about another kind of call, and so somebody else's."""


def own_span(kind: SpanKind, foreign: frozenset[str] = frozenset()) -> RecordingSpan | None:
    """The current span if it records, has this kind and carries no `foreign` attribute; else None.

    The stamp travels all the same: a call that is not sampled, or that nobody instruments, is still a stamped call.
    """
    span = get_current_span()
    if not span.is_recording() or getattr(span, "kind", None) is not kind:
        return None
    attributes = getattr(span, "attributes", _UNTOLD)  # asked once: the SDK makes a view of them each time
    return cast("RecordingSpan", span) if attributes is not _UNTOLD and foreign.isdisjoint(_keys(attributes)) else None


def _keys(attributes: Mapping[str, Any] | None) -> Iterable[str]:
    """What is there: the SDK takes longer to say that one key is missing than to name all, and to name them than to copy them."""
    return attributes.copy() if isinstance(attributes, MappingProxyType) else attributes or ()


def add_attributes(span: RecordingSpan, ours: Attributes, where_missing: Attributes) -> None:
    """Set `ours`, and of `where_missing` what the span does not have yet; packed, who unpacks does not put it over what is there."""
    if is_packed() and (text := pack({**ours, **where_missing})) is not None:
        span.set_attribute(names.PACKED, text)
        return
    present = _keys(span.attributes)
    if not where_missing.keys().isdisjoint(present):
        there = frozenset(present)
        where_missing = {key: value for key, value in where_missing.items() if key not in there}
    span.set_attributes({**ours, **where_missing})


def stamp_attributes(stamp: Stamp | None, signed: bytes | None, recording: Recording = PLAIN) -> dict[str, str | int]:
    """A stamp's content as attributes, with the hash of what is `signed`, as this side saw it; nothing for no stamp."""
    if stamp is None:
        return {}
    attributes: dict[str, str | int] = {
        names.STAMP_KID: stamp.kid,
        names.STAMP_NONCE: stamp.nonce.hex(),
        names.STAMP_TIME: stamp.time_unix_ms,
    }
    if stamp.mac is not None and signed is not None:
        attributes[names.STAMP_MAC] = stamp.mac.hex()
        attributes |= recording.text(stamp.nonce.hex(), stamp.mac, signed)
    return attributes


def current_service(span: RecordingSpan | None) -> str:
    """The name of the service that this span, or else the global tracer provider, speaks for, as an unsigned stamp's kid."""
    resource = getattr(get_tracer_provider() if span is None else span, "resource", None)
    global _last_service  # noqa: PLW0603  (a process has one resource, nearly always)
    known, service = _last_service
    if known is not resource or resource is None:
        name = None if resource is None else resource.attributes.get("service.name")
        service = make_kid(name if isinstance(name, str) else UNKNOWN_SERVICE)
        _last_service = (resource, service)
    return service


_last_service: tuple[object, str] = (None, UNKNOWN_SERVICE)
"""The resource that was asked last, which never changes, and its answer."""
