"""A server span of our own for a request that enforce mode refuses before its framework starts one: what is refused is evidence too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

from provenance.spans import FOREIGN_TO_HTTP, RecordingSpan, own_span

_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


@contextmanager
def refused_span(headers: Mapping[str, str], *, method: str, target: str) -> Iterator[RecordingSpan | None]:
    """The span, which is over when the block is; None where the request has one already, or ours is not sampled.

    Its parent is what the headers say, which nobody has proven; what the stamp is worth is set on it by whoever asks for it.
    """
    if own_span(SpanKind.SERVER, FOREIGN_TO_HTTP) is not None:
        yield None
        return
    known = method if method in _METHODS else "_OTHER"  # as the semantic conventions want it: callers choose this
    attributes: dict[str, str | int] = {
        "http.request.method": known,
        "url.path": target.partition("?")[0],
        "http.response.status_code": 401,
    }
    tracer = trace.get_tracer("provenance")
    with tracer.start_as_current_span(known, propagate.extract(headers), SpanKind.SERVER, attributes):
        yield own_span(SpanKind.SERVER)
