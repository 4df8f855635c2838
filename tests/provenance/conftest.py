"""Spans that can be waited for, and instrumentation in both orders that leaves nothing behind."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from provenance import faults
from provenance.instrumentor import ProvenanceInstrumentor

DEADLINE_SECONDS = 20.0


class Spans(SpanExporter):
    """Ended spans in the order of their end."""

    def __init__(self) -> None:
        self._ended: list[ReadableSpan] = []
        self._changed = threading.Condition()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._changed:
            self._ended.extend(spans)
            self._changed.notify_all()
        return SpanExportResult.SUCCESS

    def of(self, kind: SpanKind, count: int = 1) -> list[ReadableSpan]:
        """Wait until `count` spans of this kind have ended, and demand that there are no more."""

        def found() -> list[ReadableSpan]:
            return [span for span in self._ended if span.kind is kind]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, DEADLINE_SECONDS), (kind, self._ended)
            assert len(found()) == count
            return found()

    def client(self) -> dict[str, object]:
        """The attributes of the one client span."""
        return dict(self.of(SpanKind.CLIENT)[0].attributes or {})

    def server(self) -> dict[str, object]:
        """The attributes of the one server span."""
        return dict(self.of(SpanKind.SERVER)[0].attributes or {})


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The spans of a global tracer provider that lives for one test, of the service `checkout`."""
    collected = Spans()
    provider = TracerProvider(resource=Resource({"service.name": "checkout"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(collected))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield collected
    provider.shutdown()


@pytest.fixture
def no_faults() -> Iterator[None]:
    """The middleware itself did not fail during the test."""
    faults.reset()
    yield
    assert faults.counts() == {}


Activate = Callable[..., None]


@pytest.fixture(params=["ours_first", "ours_last"])
def activate(request: pytest.FixtureRequest) -> Iterator[Activate]:
    """Activates OpenTelemetry's instrumentors that are given, and ours before or after them."""
    active: list[object] = []

    def run(*instrumentors: object) -> None:
        ours = ProvenanceInstrumentor()
        for each in [ours, *instrumentors] if request.param == "ours_first" else [*instrumentors, ours]:
            each.instrument()  # type: ignore[attr-defined]
            active.append(each)

    yield run
    for each in reversed(active):
        each.uninstrument()  # type: ignore[attr-defined]
