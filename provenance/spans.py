"""Which span is this call's own, and what a stamp looks like as attributes."""

from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from opentelemetry.context import get_current
from opentelemetry.trace import SpanKind, get_current_span, get_tracer_provider

from provenance import names
from provenance.packing import is_packed, pack
from provenance.recording import PLAIN, Recording
from provenance.sdk_spans import is_about, put
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
    span = get_current_span(get_current())  # half of what it takes where it asks for the context itself
    is_own = is_about(span, kind, foreign)
    if is_own is None:  # another's, or none at all
        is_own = span.is_recording() and getattr(span, "kind", None) is kind and _has_none_of(span, foreign)
    return cast("RecordingSpan", span) if is_own else None


def _has_none_of(span: object, foreign: frozenset[str]) -> bool:
    attributes = getattr(span, "attributes", _UNTOLD)  # asked once: it may be a view that is made each time
    return attributes is not _UNTOLD and foreign.isdisjoint(attributes or ())


def add_attributes(span: RecordingSpan, ours: Attributes, where_missing: Attributes) -> None:
    """Set `ours`, and of `where_missing` what the span does not have yet; packed, who unpacks does not put it over what is there."""
    everything = {**ours, **where_missing}
    if is_packed() and (text := pack(everything)) is not None:
        say(span, {names.PACKED: text})
    elif not put(span, everything) and span.is_recording():
        present = frozenset(span.attributes or ())
        say(span, {**ours, **{key: value for key, value in where_missing.items() if key not in present}})


def say(span: RecordingSpan, attributes: Attributes) -> None:
    """Set the attributes, over what the span has; nothing where it has ended."""
    if not put(span, attributes) and span.is_recording():
        span.set_attributes(attributes)


def stamp_attributes(stamp: Stamp | None, signed: bytes | None, recording: Recording = PLAIN) -> dict[str, str | int]:
    """A stamp's content as attributes, with the hash of what is `signed`, as this side saw it; nothing for no stamp."""
    if stamp is None:
        return {}
    _, kid, time_unix_ms, nonce, _, mac = stamp
    attributes: dict[str, str | int] = {
        names.STAMP_KID: kid,
        names.STAMP_NONCE: nonce.hex(),
        names.STAMP_TIME: time_unix_ms,
    }
    if mac is not None and signed is not None:
        attributes[names.STAMP_MAC] = mac.hex()
        recording.add_text(attributes, nonce, mac, signed)
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
