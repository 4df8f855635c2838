"""What a trace request says, read span by span from OTLP's own protobuf classes: slow, plain, and nothing shared with the decoder."""

import base64
import json
import math
from collections import Counter
from uuid import UUID

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.schema import HOT_ATTRIBUTES

KINDS = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
CODES = ["UNSET", "OK", "ERROR"]
LIMIT = 2**63 - 1


def plain(value):
    match value.WhichOneof("value"):
        case "string_value" | "bool_value" | "int_value" as member:
            return getattr(value, member)
        case "double_value":
            number = value.double_value
            if math.isfinite(number):
                return number
            return {"doubleValue": "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"}
        case "bytes_value":
            return {"bytesValue": base64.b64encode(value.bytes_value).decode()}
        case "array_value":
            return [plain(v) for v in value.array_value.values]
        case "kvlist_value":
            return {kv.key: plain(kv.value) for kv in value.kvlist_value.values}
        case _:
            return None


def two_maps(attributes):
    """Strings by key, and the JSON of the others by key; the last of two equal keys wins."""
    last = {kv.key: kv.value for kv in attributes}
    texts = {k: v.string_value for k, v in last.items() if v.WhichOneof("value") == "string_value"}
    others = {k: json.dumps(plain(v), ensure_ascii=False) for k, v in last.items() if k not in texts}
    return texts, others


def hot_columns(attributes):
    """The typed columns, and the keys that they took out of the maps."""
    last = {kv.key: kv.value for kv in attributes}
    columns: dict[str, str | int | None] = {}
    taken: set[str] = set()
    for hot in HOT_ATTRIBUTES:
        member = {"VARCHAR": "string_value", "BIGINT": "int_value"}[hot.type]
        columns[hot.column] = None
        for key in (hot.key, *hot.older):
            if key in last and last[key].WhichOneof("value") == member:
                columns[hot.column] = getattr(last[key], member)
                if key == hot.key:
                    taken.add(key)
                break
    return columns, taken


def reason_to_reject(span):
    if len(span.SerializeToString()) < 28:
        return "span is shorter than a trace_id and a span_id"
    if len(span.trace_id) != 16:
        return "trace_id is not 16 bytes"
    if not any(span.trace_id):
        return "trace_id is all zeros"
    if len(span.span_id) != 8:
        return "span_id is not 8 bytes"
    if not any(span.span_id):
        return "span_id is all zeros"
    if len(span.parent_span_id) not in {0, 8}:
        return "parent_span_id is neither empty nor 8 bytes"
    if max(span.start_time_unix_nano, span.end_time_unix_nano) > LIMIT:
        return "a time is beyond 2^63 - 1 ns"
    return None


def text_of(attributes, *keys):
    texts, _ = two_maps(attributes)
    return next((texts[k] for k in keys if texts.get(k)), None)


def reference_spans(payload: bytes, received_unix_nano: int):
    """Rows of spans, span_events, span_links, without resource_id and scope_id; and the rejected by reason."""
    spans, events, links = [], [], []
    rejected: Counter[str] = Counter()
    for rs in ExportTraceServiceRequest.FromString(payload).resource_spans:
        resource = rs.resource.attributes
        service = text_of(resource, "service.name") or "unknown_service"
        for ss in rs.scope_spans:
            for span in ss.spans:
                if reason := reason_to_reject(span):
                    rejected[reason] += 1
                    continue
                ids = {"trace_id": UUID(bytes=span.trace_id), "span_id": int.from_bytes(span.span_id, "big")}
                hot, taken = hot_columns(span.attributes)
                texts, others = two_maps(span.attributes)
                proxy = (
                    hot["component"] == "proxy"
                    or text_of(resource, "telemetry.sdk.name") == "envoy"
                    or "linkerd-proxy" in {service, ss.scope.name}
                )
                spans.append(
                    {
                        **ids,
                        "parent_span_id": int.from_bytes(span.parent_span_id, "big") or None,
                        "trace_state": span.trace_state or None,
                        "flags": span.flags,
                        "name": span.name,
                        "kind": KINDS[span.kind] if 0 <= span.kind < 6 else "UNSPECIFIED",
                        "start_time_unix_nano": span.start_time_unix_nano,
                        "end_time_unix_nano": span.end_time_unix_nano,
                        "duration_ns": span.end_time_unix_nano - span.start_time_unix_nano,
                        "status_code": CODES[span.status.code] if 0 <= span.status.code < 3 else "UNSET",
                        "status_message": span.status.message or None,
                        "service_name": service,
                        "service_namespace": text_of(resource, "service.namespace"),
                        "service_instance_id": text_of(resource, "service.instance.id", "k8s.pod.name", "host.name"),
                        "witness": "proxy" if proxy else "app",
                        "received_unix_nano": received_unix_nano,
                        **hot,
                        "attributes": {k: v for k, v in texts.items() if k not in taken},
                        "attributes_json": {k: v for k, v in others.items() if k not in taken},
                        "dropped_attributes_count": span.dropped_attributes_count,
                        "dropped_events_count": span.dropped_events_count,
                        "dropped_links_count": span.dropped_links_count,
                    }
                )
                events += [event_row(ids, e) for e in span.events if e.time_unix_nano <= LIMIT]
                links += [
                    link_row(ids, link)
                    for link in span.links
                    if len(link.trace_id) == 16 and len(link.span_id) == 8 and any(link.trace_id) and any(link.span_id)
                ]
    return spans, events, links, dict(rejected)


def event_row(ids, event):
    texts, others = two_maps(event.attributes)
    return {
        **ids,
        "time_unix_nano": event.time_unix_nano,
        "name": event.name,
        "attributes": texts,
        "attributes_json": others,
        "dropped_attributes_count": event.dropped_attributes_count,
    }


def link_row(ids, link):
    texts, others = two_maps(link.attributes)
    return {
        **ids,
        "linked_trace_id": UUID(bytes=link.trace_id),
        "linked_span_id": int.from_bytes(link.span_id, "big"),
        "trace_state": link.trace_state or None,
        "flags": link.flags,
        "attributes": texts,
        "attributes_json": others,
        "dropped_attributes_count": link.dropped_attributes_count,
    }
