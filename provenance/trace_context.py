"""W3C Trace Context Level 2: `traceparent` and `tracestate`, read as strictly as the specification allows.

Pure functions, text in and values out, and a propagator over them: `OTEL_PROPAGATORS=w3c_strict,baggage`. A traceparent
that cannot be read starts a new trace; a tracestate that cannot be read is dropped whole, and its traceparent is kept.
"""

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from typing import Final, NamedTuple, Self

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

SAMPLED: Final = 0x01
RANDOM_TRACE_ID: Final = 0x02
KNOWN_FLAGS: Final = SAMPLED | RANDOM_TRACE_ID
"""What Level 2 defines: "vendors MUST set [other flags] to zero"."""

MAX_MEMBERS: Final = 32
MAX_KEY_LENGTH: Final = 256
MAX_VALUE_LENGTH: Final = 256
MAX_TRACESTATE_LENGTH: Final = MAX_MEMBERS * (MAX_KEY_LENGTH + len("=") + MAX_VALUE_LENGTH + len(",")) - 1
"""Characters of all tracestate headers together that are read: the longest list, without optional whitespace."""

_OWS: Final = " \t"  # RFC 9110 section 5.6.3

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_VERSION_0_LENGTH: Final = 55

# A key of Level 2 may hold any number of @, and may begin with a digit without one: Level 1, and with it OpenTelemetry,
# knew at most one, between a tenant and a system. Possessive, so nothing is matched twice.
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}+")
_VALUE: Final = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}+(?<! )")


class Traceparent(NamedTuple):
    """What a traceparent says; `flags` are those that Level 2 defines."""

    trace_id: int
    parent_id: int
    flags: int


class Level2TraceState(TraceState):
    """A `TraceState` with the keys and the limits of Level 2; immutable, the most recent member first.

    `TraceState` itself refuses keys that Level 2 allows, and gives its own class back when it is changed. Members that
    the grammar does not allow are left out, as there; so are a key's later members, and the members after the 32nd.
    """

    def __init__(self, entries: Iterable[tuple[str, str]] | None = None) -> None:
        super().__init__()
        self._members: dict[str, str] = {}
        for key, value in entries or ():
            if len(self._members) == MAX_MEMBERS:
                break
            if is_member(key, value):
                self._members.setdefault(key, value)

    def __getitem__(self, key: str) -> str:
        return self._members[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._members.items())!r})"

    # `TraceState` answers the following from a dictionary of its own, which stays empty here.

    def keys(self) -> KeysView[str]:
        """The members' keys, leftmost first."""
        return self._members.keys()

    def values(self) -> ValuesView[str]:
        """The members' values, leftmost first."""
        return self._members.values()

    def items(self) -> ItemsView[str, str]:
        """The members, leftmost first."""
        return self._members.items()

    def to_header(self) -> str:
        """The header's value."""
        return ",".join(f"{key}={value}" for key, value in self._members.items())

    @classmethod
    def from_header(cls, header_list: list[str]) -> Self:
        """Read one or more tracestate headers; empty where they cannot be read."""
        return cls(parse_tracestate(header_list))

    def add(self, key: str, value: str) -> "Level2TraceState":
        """With a new member on the left; unchanged if the key is there or the member is invalid."""
        return self if key in self else self.update(key, value)

    def update(self, key: str, value: str) -> "Level2TraceState":
        """With this member on the left, whether its key is new or not; unchanged if the member is invalid.

        Where it would be the 33rd, "the right-most list-member should be removed".
        """
        return Level2TraceState([(key, value), *self.items()]) if is_member(key, value) else self

    def delete(self, key: str) -> "Level2TraceState":
        """Without this member."""
        return Level2TraceState([member for member in self.items() if member[0] != key])


class W3CTraceContextPropagator(TextMapPropagator):
    """Carries a span's context in `traceparent` and `tracestate`."""

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """`context` with the caller's span, or as it was where the carrier has no traceparent that can be read."""
        if context is None:
            context = Context()
        traceparent = parse_traceparent(getter.get(carrier, TRACEPARENT) or ())
        if traceparent is None:
            return context  # "if the vendor failed to parse traceparent, it MUST NOT attempt to parse tracestate"
        span_context = SpanContext(
            traceparent.trace_id,
            traceparent.parent_id,
            is_remote=True,
            trace_flags=TraceFlags(traceparent.flags),
            trace_state=Level2TraceState.from_header(getter.get(carrier, TRACESTATE) or []),
        )
        return set_span_in_context(NonRecordingSpan(span_context), context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the current span of `context`; nothing where there is none, and no tracestate that would be empty."""
        span_context = get_current_span(context).get_span_context()
        if not span_context.is_valid:
            return
        traceparent = Traceparent(span_context.trace_id, span_context.span_id, span_context.trace_flags)
        setter.set(carrier, TRACEPARENT, render_traceparent(traceparent))
        if span_context.trace_state:
            setter.set(carrier, TRACESTATE, span_context.trace_state.to_header())

    @property
    def fields(self) -> set[str]:
        """The headers that `inject` writes."""
        return {TRACEPARENT, TRACESTATE}


def parse_traceparent(headers: Sequence[str]) -> Traceparent | None:
    """Read the one traceparent header; None, and with it a new trace, where there are several or it is invalid.

    Of versions that are yet to come the part that version 00 defines is read, "at the end of the string or followed by
    a dash"; what follows is not looked at, so its length does not matter.
    """
    if len(headers) != 1:
        return None
    text = headers[0].strip(_OWS)
    match = _TRACEPARENT.match(text)
    if match is None:
        return None
    version, trace_id, parent_id, flags = match.groups()
    if version == "ff" or (len(text) > _VERSION_0_LENGTH and (version == "00" or text[_VERSION_0_LENGTH] != "-")):
        return None
    traceparent = Traceparent(int(trace_id, 16), int(parent_id, 16), int(flags, 16) & KNOWN_FLAGS)
    return traceparent if traceparent.trace_id and traceparent.parent_id else None


def render_traceparent(traceparent: Traceparent) -> str:
    """The header's value, always of version 00."""
    return f"00-{traceparent.trace_id:032x}-{traceparent.parent_id:016x}-{traceparent.flags & KNOWN_FLAGS:02x}"


def parse_tracestate(headers: Sequence[str]) -> list[tuple[str, str]]:
    """The members of all tracestate headers from left to right; none if one is invalid or there are more than 32.

    Empty members are skipped and not counted. Of duplicate keys the leftmost is kept, because it is the most recent:
    "vendors MAY also discard duplicate keys that were not generated by them".
    """
    if sum(map(len, headers)) + len(headers) - 1 > MAX_TRACESTATE_LENGTH:
        return []
    members: dict[str, str] = {}
    count = 0
    for text in ",".join(headers).split(","):  # RFC 9110 section 5.3
        member = text.strip(_OWS)
        if not member:
            continue
        count += 1
        key, equals, value = member.partition("=")
        if count > MAX_MEMBERS or not equals or not is_member(key, value):
            return []
        members.setdefault(key, value)
    return list(members.items())


def is_member(key: str, value: str) -> bool:
    """Whether Level 2 allows this key and this value, which may begin with spaces but not end with one."""
    return _KEY.fullmatch(key) is not None and _VALUE.fullmatch(value) is not None
