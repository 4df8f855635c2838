"""Rows of the tables → ExportTraceServiceRequests: what `otlp.decode` made of a request, turned back.

Equal up to what decoding normalises: attributes come typed columns first; of a key that was there twice the last value
is left; what was not UTF-8, not a known enum or not a valid id was amended or refused on arrival. Two values of one span
under a current and an older name of the same thing, equal, come back under the older name alone.
"""

import base64
import binascii
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector.otlp.decode import KINDS, STATUS_CODES
from collector.schema import HOT_ATTRIBUTES, TABLES

REQUEST_SPANS: Final = 1000

Row = tuple[Any, ...]
Key = tuple[str, int]
"""Trace id, as the store says it, and span id."""

_KIND: Final = {name: number for number, name in enumerate(KINDS)}
_STATUS: Final = {name: number for number, name in enumerate(STATUS_CODES)}


def _positions(table: str) -> dict[str, int]:
    return {column.name: position for position, column in enumerate(TABLES[table])}


_SPAN: Final = _positions("spans")
_EVENT: Final = _positions("span_events")
_LINK: Final = _positions("span_links")
_HOT: Final = tuple((_SPAN[hot.column], hot) for hot in HOT_ATTRIBUTES)


@dataclass(frozen=True, slots=True)
class Origins:
    """Resources and scopes by their ids, with their schema URLs."""

    resources: Mapping[int, tuple[Resource, str]]
    scopes: Mapping[int, tuple[InstrumentationScope, str]]


def resources_of(frame: pl.DataFrame) -> dict[int, tuple[Resource, str]]:
    """Rows of `resources` as OTLP says them."""
    return {
        row["resource_id"]: (
            Resource(attributes=_attributes(row), dropped_attributes_count=row["dropped_attributes_count"] or 0),
            row["schema_url"] or "",
        )
        for row in frame.iter_rows(named=True)
    }


def scopes_of(frame: pl.DataFrame) -> dict[int, tuple[InstrumentationScope, str]]:
    """Rows of `scopes` as OTLP says them."""
    return {
        row["scope_id"]: (
            InstrumentationScope(
                name=row["name"],
                version=row["version"] or "",
                attributes=_attributes(row),
                dropped_attributes_count=row["dropped_attributes_count"] or 0,
            ),
            row["schema_url"] or "",
        )
        for row in frame.iter_rows(named=True)
    }


def requests(
    spans: pl.DataFrame, events: pl.DataFrame, links: pl.DataFrame, origins: Origins
) -> Iterator[ExportTraceServiceRequest]:
    """Requests of up to `REQUEST_SPANS` spans, in the order of the rows; frames have the columns of their tables."""
    events_of = _by_span(events)
    links_of = _by_span(links)
    for start in range(0, spans.height, REQUEST_SPANS):
        request = ExportTraceServiceRequest()
        groups: dict[tuple[int, int], Any] = {}
        resources: dict[int, Any] = {}
        for row in spans.slice(start, REQUEST_SPANS).iter_rows():
            ids = (row[_SPAN["resource_id"]], row[_SPAN["scope_id"]])
            if (group := groups.get(ids)) is None:
                group = groups[ids] = _group(request, resources, ids, origins)
            key = (row[_SPAN["trace_id"]], row[_SPAN["span_id"]])
            # Taken away: should a store have a span twice, its events are still there once.
            _write_span(group.spans.add(), row, events_of.pop(key, ()), links_of.pop(key, ()))
        yield request


def _by_span(frame: pl.DataFrame) -> dict[Key, list[Row]]:
    rows: defaultdict[Key, list[Row]] = defaultdict(list)
    for row in frame.iter_rows():
        rows[row[0], row[1]].append(row)
    return rows


def _group(
    request: ExportTraceServiceRequest, resources: dict[int, Any], ids: tuple[int, int], origins: Origins
) -> Any:
    """The ScopeSpans of a resource and a scope."""
    resource_id, scope_id = ids
    if (resource_spans := resources.get(resource_id)) is None:
        resource_spans = resources[resource_id] = request.resource_spans.add()
        resource, resource_spans.schema_url = origins.resources[resource_id]
        resource_spans.resource.CopyFrom(resource)
    scope_spans = resource_spans.scope_spans.add()
    scope, scope_spans.schema_url = origins.scopes[scope_id]
    scope_spans.scope.CopyFrom(scope)
    return scope_spans


# --- spans --------------------------------------------------------------------------------------------------------------


def _write_span(span: Span, row: Row, events: Any, links: Any) -> None:
    span.trace_id = _trace_id(row[_SPAN["trace_id"]])
    span.span_id = _span_id(row[_SPAN["span_id"]])
    parent = row[_SPAN["parent_span_id"]]
    if parent is not None:
        span.parent_span_id = _span_id(parent)
    span.name = row[_SPAN["name"]]
    span.kind = _KIND[row[_SPAN["kind"]]]  # type: ignore[assignment]
    span.start_time_unix_nano = row[_SPAN["start_time_unix_nano"]]
    span.end_time_unix_nano = row[_SPAN["end_time_unix_nano"]]
    span.trace_state = row[_SPAN["trace_state"]] or ""
    span.flags = row[_SPAN["flags"]] or 0
    span.dropped_attributes_count = row[_SPAN["dropped_attributes_count"]] or 0
    span.dropped_events_count = row[_SPAN["dropped_events_count"]] or 0
    span.dropped_links_count = row[_SPAN["dropped_links_count"]] or 0
    code, message = _STATUS[row[_SPAN["status_code"]]], row[_SPAN["status_message"]]
    if code or message:
        span.status.CopyFrom(Status(code=code, message=message or ""))  # type: ignore[arg-type]
    texts, others = _map(row[_SPAN["attributes"]]), _map(row[_SPAN["attributes_json"]])
    _write_hot(span, row, texts, others)
    _write_maps(span.attributes, texts, others)
    for event in events:
        _write_event(span.events.add(), event)
    for link in links:
        _write_link(span.links.add(), link)


def _write_hot(span: Span, row: Row, texts: Mapping[str, str], others: Mapping[str, str]) -> None:
    """The typed columns; not those that an older name filled, which the maps still have."""
    for position, hot in _HOT:
        value = row[position]
        if value is None or (hot.older and value == _older_value(hot.older, hot.type, texts, others)):
            continue
        pair = span.attributes.add()
        pair.key = hot.key
        if hot.type == "VARCHAR":
            pair.value.string_value = value
        else:
            pair.value.int_value = value


def _older_value(older: tuple[str, ...], type_: str, texts: Mapping[str, str], others: Mapping[str, str]) -> object:
    """What the first of the older names that fits would have filled the column with."""
    for name in older:
        if type_ == "VARCHAR" and name in texts:
            return texts[name]
        if type_ == "BIGINT" and name in others and _is_integer(others[name]):
            return int(others[name])
    return None


def _is_integer(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _write_event(event: Span.Event, row: Row) -> None:
    event.time_unix_nano = row[_EVENT["time_unix_nano"]]
    event.name = row[_EVENT["name"]]
    event.dropped_attributes_count = row[_EVENT["dropped_attributes_count"]] or 0
    _write_maps(event.attributes, _map(row[_EVENT["attributes"]]), _map(row[_EVENT["attributes_json"]]))


def _write_link(link: Span.Link, row: Row) -> None:
    link.trace_id = _trace_id(row[_LINK["linked_trace_id"]])
    link.span_id = _span_id(row[_LINK["linked_span_id"]])
    link.trace_state = row[_LINK["trace_state"]] or ""
    link.flags = row[_LINK["flags"]] or 0
    link.dropped_attributes_count = row[_LINK["dropped_attributes_count"]] or 0
    _write_maps(link.attributes, _map(row[_LINK["attributes"]]), _map(row[_LINK["attributes_json"]]))


def _trace_id(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def _span_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


# --- attributes ---------------------------------------------------------------------------------------------------------


def _attributes(row: Mapping[str, Any]) -> list[KeyValue]:
    pairs: list[KeyValue] = []
    texts, others = _map(row["attributes"]), _map(row["attributes_json"])
    pairs.extend(KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in texts.items())
    pairs.extend(KeyValue(key=key, value=any_value(json.loads(value))) for key, value in others.items())
    return pairs


def _write_maps(attributes: Any, texts: Mapping[str, str], others: Mapping[str, str]) -> None:
    for key, value in texts.items():
        pair = attributes.add()
        pair.key = key
        pair.value.string_value = value
    for key, value in others.items():
        attributes.append(KeyValue(key=key, value=any_value(json.loads(value))))


def _map(value: Any) -> dict[str, str]:
    """A map as frames hold it: a dict, or a list of structs of `key` and `value`."""
    if isinstance(value, dict):
        return value
    return {entry["key"]: entry["value"] for entry in value or ()}


def any_value(value: Any) -> AnyValue:
    """A value of `attributes_json` (see `otlp.values`) as OTLP says it."""
    match value:
        case str():
            return AnyValue(string_value=value)
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(v) for v in value]))
        case {"bytesValue": str(text)} if len(value) == 1 and (raw := _bytes(text)) is not None:
            return AnyValue(bytes_value=raw)
        case {"doubleValue": "NaN" | "Infinity" | "-Infinity" as name} if len(value) == 1:
            return AnyValue(double_value=float(name))
        case dict():
            pairs = [KeyValue(key=key, value=any_value(v)) for key, v in value.items()]
            return AnyValue(kvlist_value=KeyValueList(values=pairs))
        case _:
            return AnyValue()


def _bytes(text: str) -> bytes | None:
    """Base64 in the one way that decoding writes it; None for what only looks like it."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == text else None
