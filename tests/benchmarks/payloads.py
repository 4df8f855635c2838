"""Trace requests for load: of about 450 bytes and 9 attributes a span, and no span is like another one.

Making every span from nothing would take longer than sending it. So some requests are made whole, and each later one is a
copy of one of them in which every id, hash and time is written over where it lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from collector.otlp.json_form import request_to_json
from collector.otlp.synthetic import START_UNIX_NANO, trace_request

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Encoding = Literal["protobuf", "json"]

TEMPLATES: Final = 24
SERVICES: Final = ("checkout", "cart", "payments", "catalogue", "shipping", "search", "accounts", "frontend")

_HASH, _REQUEST_ID = "provenance.request.hash", "provenance.request_id"


def bodies(spans: int, *, seed: int, start_unix_nano: int, encoding: Encoding = "protobuf") -> Iterator[bytes]:
    """Endless distinct requests with so many spans each; equal arguments give equal bytes, other seeds other spans.

    Traces have up to eight spans, all in one request. A request's spans start a millisecond after each other, and so do requests. The
    first `TEMPLATES` requests take far longer than the later ones.
    """
    rng = np.random.default_rng(seed)
    made: list[Template] = []
    for number in count():
        if number < TEMPLATES:
            made.append(Template.of(spans, seed=seed + number, encoding=encoding))
        yield made[number % TEMPLATES].fresh(rng, start_unix_nano + number * 10**6)


@dataclass(frozen=True, slots=True)
class _Ids:
    """One kind of id in all spans.

    Attributes:
        at: Where its bytes lie, a row an id.
        values: What they are in the template, not as hex.
        hexed: Whether they are written as hex.
    """

    at: Ints
    values: Bytes
    hexed: bool

    def write(self, body: Bytes, values: Bytes) -> None:
        """Put these values in place of the template's."""
        body[self.at] = _hex(values) if self.hexed else values


@dataclass(frozen=True, slots=True)
class Template:
    """A serialised request, and where in it lies what differs from request to request."""

    body: Bytes
    related: tuple[_Ids, ...]  # trace, span and parent ids: what refers to each other must still do so
    alone: tuple[_Ids, ...]  # hashes and request ids
    times_at: Ints
    times: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, spans: int, *, seed: int, encoding: Encoding) -> "Template":
        """Made whole, and searched."""
        request = trace_request(spans, seed=seed, service_name=SERVICES[seed % len(SERVICES)])
        is_json = encoding == "json"
        text = request_to_json(request).encode() if is_json else request.SerializeToString()
        found = _Found(text)
        for span in request.resource_spans[0].scope_spans[0].spans:
            own = {kv.key: kv.value.string_value for kv in span.attributes}
            found.begin(span.trace_id, hexed=is_json)
            found.note("span_id", span.span_id, hexed=is_json)
            if span.parent_span_id:
                found.note("parent_span_id", span.parent_span_id, hexed=is_json)
            found.note("hash", bytes.fromhex(own[_HASH]), hexed=True)
            found.note("request_id", bytes.fromhex(own[_REQUEST_ID]), hexed=True)
            for time in (span.start_time_unix_nano, span.end_time_unix_nano):
                found.note_time(str(time).encode() if is_json else time.to_bytes(8, "little"), time)
        related = [found.ids(name, hexed=is_json) for name in ("trace_id", "span_id", "parent_span_id")]
        alone = [found.ids(name, hexed=True) for name in ("hash", "request_id")]
        body = np.frombuffer(text, np.uint8)
        return cls(body, tuple(filter(None, related)), tuple(filter(None, alone)), *found.times())

    def fresh(self, rng: np.random.Generator, start_unix_nano: int) -> bytes:
        """A request with new ids, hashes and times; its first span starts then."""
        body = self.body.copy()
        mask = np.frombuffer(rng.bytes(16), np.uint8)
        for ids in self.related:
            ids.write(body, ids.values ^ mask[-ids.values.shape[1] :])
        for ids in self.alone:
            ids.write(body, np.frombuffer(rng.bytes(ids.values.size), np.uint8).reshape(ids.values.shape))
        times = self.times + np.uint64(start_unix_nano - START_UNIX_NANO)
        body[self.times_at] = _as_text(times, self.times_at.shape[1])
        return body.tobytes()


class _Found:
    """Where the fields of a template's spans lie: each is looked for from the beginning of its span."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._span = -1
        self._places: dict[str, list[tuple[int, bytes]]] = {}
        self._times: list[tuple[int, int, int]] = []

    def begin(self, trace_id: bytes, *, hexed: bool) -> None:
        """The next span; it begins with its trace id."""
        self._span = self._text.index(trace_id.hex().encode() if hexed else trace_id, self._span + 1)
        self._places.setdefault("trace_id", []).append((self._span, trace_id))

    def note(self, name: str, value: bytes, *, hexed: bool) -> None:
        place = self._text.index(value.hex().encode() if hexed else value, self._span)
        self._places.setdefault(name, []).append((place, value))

    def note_time(self, text: bytes, value: int) -> None:
        self._times.append((self._text.index(text, self._span), len(text), value))

    def ids(self, name: str, *, hexed: bool) -> _Ids | None:
        """All of that name; None where there are none: a trace of one span has no parents."""
        places = self._places.get(name)
        if not places:
            return None
        values = np.array([list(value) for _, value in places], np.uint8)
        width = values.shape[1] * (2 if hexed else 1)
        return _Ids(_rows([place for place, _ in places], width), values, hexed)

    def times(self) -> tuple[Ints, npt.NDArray[np.uint64]]:
        places, widths, values = zip(*self._times, strict=True)
        return _rows(places, widths[0]), np.array(values, np.uint64)


def _rows(places: "list[int] | tuple[int, ...]", width: int) -> Ints:
    return np.array(places, np.int64)[:, None] + np.arange(width)


def _hex(values: Bytes) -> Bytes:
    return np.frombuffer(values.tobytes().hex().encode(), np.uint8).reshape(len(values), -1)


def _as_text(times: npt.NDArray[np.uint64], width: int) -> Bytes:
    """Little-endian, or decimal digits where there is room for them."""
    if width == times.itemsize:
        return times.astype("<u8").view(np.uint8).reshape(len(times), width)
    powers = np.uint64(10) ** np.arange(width - 1, -1, -1, dtype=np.uint64)
    return (times[:, None] // powers % np.uint64(10)).astype(np.uint8) + np.uint8(ord("0"))
