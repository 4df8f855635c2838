"""Every field that OTLP defines is stored, or is listed here with the reason why it is not."""

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from collector.otlp import decode_traces
from collector.otlp.projection import FILE
from collector.otlp.synthetic import attribute
from collector.schema import TABLES

MESSAGES = {
    m.name: m
    for m in (
        trace_service_pb2.ExportTraceServiceRequest.DESCRIPTOR,
        trace_pb2.ResourceSpans.DESCRIPTOR,
        trace_pb2.ScopeSpans.DESCRIPTOR,
        trace_pb2.Span.DESCRIPTOR,
        trace_pb2.Span.Event.DESCRIPTOR,
        trace_pb2.Span.Link.DESCRIPTOR,
        trace_pb2.Status.DESCRIPTOR,
        resource_pb2.Resource.DESCRIPTOR,
        common_pb2.InstrumentationScope.DESCRIPTOR,
        common_pb2.KeyValue.DESCRIPTOR,
        common_pb2.AnyValue.DESCRIPTOR,
        common_pb2.ArrayValue.DESCRIPTOR,
        common_pb2.KeyValueList.DESCRIPTOR,
    )
}

NOT_STORED = {
    "Resource.entity_refs": "in development; it only names keys of attributes, and the attributes are stored",
    "KeyValue.key_strindex": "for profiles only: 'Implementations of ... traces ... MUST NOT populate'",
    "AnyValue.string_value_strindex": "for profiles only, as above: the value reads as null",
}

COLUMNS = {
    "ResourceSpans.schema_url": "resources.schema_url",
    "ScopeSpans.schema_url": "scopes.schema_url",
    "Span.attributes": "spans.attributes",
    "Span.events": "span_events.name",
    "Span.links": "span_links.linked_span_id",
    "Span.status": "spans.status_code",
    "Event.attributes": "span_events.attributes",
    "Link.trace_id": "span_links.linked_trace_id",
    "Link.span_id": "span_links.linked_span_id",
    "Link.attributes": "span_links.attributes",
    "Status.message": "spans.status_message",
    "Status.code": "spans.status_code",
}
TABLE_OF = {
    "Span": "spans",
    "Event": "span_events",
    "Link": "span_links",
    "Resource": "resources",
    "InstrumentationScope": "scopes",
}
STRUCTURE = {
    "ExportTraceServiceRequest.resource_spans",
    "ResourceSpans.resource",
    "ResourceSpans.scope_spans",
    "ScopeSpans.scope",
    "ScopeSpans.spans",
    *(f"{m}.{f.name}" for m in ("KeyValue", "AnyValue", "ArrayValue", "KeyValueList") for f in MESSAGES[m].fields),
}
"""Fields that hold others: what is in them has a column, they have none."""

FIELDS = [f"{name}.{field.name}" for name, message in MESSAGES.items() for field in message.fields]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_decoded_or_excused(field):
    message, name = field.split(".")
    declared = FILE.message_types_by_name.get({"ExportTraceServiceRequest": "Request"}.get(message, message))
    assert declared is not None, f"otlp.proto has no message {message}"
    if field in NOT_STORED:
        assert name not in declared.fields_by_name
        return
    ours, theirs = declared.fields_by_name[name], MESSAGES[message].fields_by_name[name]
    assert (ours.number, ours.is_repeated) == (theirs.number, theirs.is_repeated)
    if field not in STRUCTURE:
        table, column = COLUMNS.get(field, f"{TABLE_OF.get(message)}.{name}").split(".")
        assert column in {c.name for c in TABLES[table]}


def test_every_excuse_is_about_a_field_that_exists():
    assert set(NOT_STORED) | set(COLUMNS) <= set(FIELDS)


def test_a_request_with_everything_leaves_no_column_of_otlps_own_empty():
    pairs = [attribute("s", "x"), attribute("i", 1)]
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(schema_url="https://example.org/resource")
    resource_spans.resource.attributes.extend([*pairs, attribute("service.name", "cart")])
    resource_spans.resource.attributes.extend([attribute("service.namespace", "n"), attribute("host.name", "h")])
    resource_spans.resource.dropped_attributes_count = 1
    scope_spans = resource_spans.scope_spans.add(schema_url="https://example.org/scope")
    scope_spans.scope.name, scope_spans.scope.version, scope_spans.scope.dropped_attributes_count = "s", "1", 2
    scope_spans.scope.attributes.extend(pairs)
    ids = {"trace_id": b"t" * 16, "span_id": b"s" * 8, "trace_state": "a=b", "flags": 1, "dropped_attributes_count": 3}
    span = scope_spans.spans.add(**ids, parent_span_id=b"p" * 8, name="n", kind=2, attributes=pairs)
    span.start_time_unix_nano, span.end_time_unix_nano = 1, 3
    span.dropped_events_count, span.dropped_links_count = 4, 5
    span.status.code, span.status.message = trace_pb2.Status.STATUS_CODE_ERROR, "m"
    span.events.add(time_unix_nano=2, name="e", attributes=pairs, dropped_attributes_count=6)
    span.links.add(**ids, attributes=pairs)
    decoded = decode_traces(request.SerializeToString(), received_unix_nano=9)
    hot = (
        {c.name for c in TABLES["spans"]}
        - {c.name for c in TABLES["spans"][:19]}
        - {c.name for c in TABLES["spans"][-5:]}
    )
    for table, batch in decoded.batches.items():
        (row,) = batch.to_pylist()
        empty = {name for name, value in row.items() if value in (None, [], 0, "")}
        assert empty == (hot if table == "spans" else set()), table
