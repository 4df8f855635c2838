"""The spans that every client sends, the JavaScript one (`client.mjs`) too: a span's values follow from its number."""

import json

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, set_span_in_context

START = 1_763_859_600_000_000_000
STATUS = ("ERROR", "OK", "UNSET")


class Kept(SpanProcessor):
    """Keeps what has ended."""

    def __init__(self):
        self.ended = []

    def on_end(self, span):
        self.ended.append(span)


def make_spans(service_name, count):
    """Spans as the SDK hands them to an exporter."""
    kept = Kept()
    provider = TracerProvider(resource=Resource({"service.name": service_name, "host.name": "węzeł"}))
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("clients", "1.2.3")
    parent = None
    for i in range(count):
        span = tracer.start_span(
            f"GET /größe 测试 {i}",
            context=parent if i % 5 else None,
            kind=SpanKind.CLIENT if i % 2 else SpanKind.SERVER,
            attributes=attributes(i),
            links=[Link(SpanContext(i + 1, i + 2, is_remote=False), {"why": f"батч {i}", "n": i})],
            start_time=START + i * 1_000_000,
        )
        if i % 5 == 0:
            parent = set_span_in_context(span)
        span.add_event("wystąpiło", {"exception.message": f"błąd {i}", "attempt": i}, START + i * 1_000_000 + 5)
        if i % 3 == 0:
            span.set_status(Status(StatusCode.ERROR, f"nie działa {i}"))
        elif i % 3 == 1:
            span.set_status(Status(StatusCode.OK))
        span.end(START + i * 1_000_000 + i * 1_000 + 7)
    return kept.ended


def attributes(i):
    return {
        "http.route": f"/naïve/{{größe}}/{i}",
        "http.response.status_code": 200 + i % 300,
        "text": f'Zażółć 测试 🚀 "{i}"\n',
        "yes": i % 2 == 0,
        "integer": i * 1_000_003 - 7,
        "fraction": i + 0.5,
        "texts": ["a", f"ß{i}"],
        "flags": [True, False],
        "integers": [i, -i - 1],
        "fractions": [0.25, i + 0.5],
    }


def expected_span(i, ids):
    """What the store says of span `i`; `ids` are (trace_id, span_id) in hex, in the order of the numbers."""
    every = attributes(i)
    start = START + i * 1_000_000
    return {
        "trace_id": ids[i][0],
        "span_id": ids[i][1],
        "parent_span_id": ids[i - i % 5][1] if i % 5 else None,
        "name": f"GET /größe 测试 {i}",
        "kind": "CLIENT" if i % 2 else "SERVER",
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + i * 1_000 + 7,
        "duration_ns": i * 1_000 + 7,
        "status_code": STATUS[i % 3],
        "status_message": None if i % 3 else f"nie działa {i}",
        "http_route": every["http.route"],
        "http_response_status_code": every["http.response.status_code"],
        "attributes": {"text": every["text"]},
        "attributes_json": {k: v for k, v in every.items() if k != "text" and not k.startswith("http.")},
        "event": ("wystąpiło", start + 5, {"exception.message": f"błąd {i}"}, {"attempt": i}),
        "link": (f"{i + 1:032x}", f"{i + 2:016x}", {"why": f"батч {i}"}, {"n": i}),
        "host": "węzeł",
        "scope": ("clients", "1.2.3"),
    }


_SQL = """
SELECT s.*, replace(s.trace_id::VARCHAR, '-', '') AS trace, e.name AS event_name, e.time_unix_nano AS event_time,
  e.attributes AS event_texts, e.attributes_json AS event_json, replace(l.linked_trace_id::VARCHAR, '-', '') AS linked_trace,
  l.linked_span_id, l.attributes AS link_texts, l.attributes_json AS link_json, r.attributes['host.name'] AS host,
  c.name AS scope, c.version AS scope_version
FROM spans s JOIN span_events e USING (trace_id, span_id) JOIN span_links l USING (trace_id, span_id)
JOIN resources r USING (resource_id) JOIN scopes c USING (scope_id) WHERE s.service_name = '{}'
"""


def stored_spans(source, service_name):
    """What the store says of a service's spans, by (trace_id, span_id) in hex; each must have one event and one link."""
    rows = source.query(_SQL.format(service_name)).to_dicts()
    spans = {(row["trace"], hex16(row["span_id"])): _stored(row) for row in rows}
    assert len(spans) == len(rows), "a span is there twice"
    return spans


def hex16(number):
    return None if number is None else f"{number:016x}"


def _stored(row):
    plain = {
        "trace_id": row["trace"],
        "span_id": hex16(row["span_id"]),
        "parent_span_id": hex16(row["parent_span_id"]),
        "attributes": texts(row["attributes"]),
        "attributes_json": values(row["attributes_json"]),
        "event": (row["event_name"], row["event_time"], texts(row["event_texts"]), values(row["event_json"])),
        "link": (
            row["linked_trace"],
            hex16(row["linked_span_id"]),
            texts(row["link_texts"]),
            values(row["link_json"]),
        ),
        "host": row["host"],
        "scope": (row["scope"], row["scope_version"]),
    }
    return {key: plain.get(key, row.get(key)) for key in expected_span(0, [("", "")])}


def texts(map_):
    """A DuckDB map, as `collector.client` gives it."""
    return dict(map_)


def values(map_):
    return {key: json.loads(value) for key, value in texts(map_).items()}
