"""Packed attributes arrive as what they stand for: the rows of a span that packs are those of one that does not."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.otlp import decode_traces
from collector.otlp.json_form import json_to_request, request_to_json
from collector.otlp.synthetic import attribute, trace_request
from provenance.names import PACKABLE, PACKED
from provenance.packing import MAX_PACKED_LENGTH, pack, unpack

STAYS = "under.a.name.that.nobody.unpacks"

words = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Z"]), max_size=12)
numbers = st.integers(0, 2**53)
packable: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(sorted(PACKABLE)), st.none(), max_size=8
).flatmap(lambda names: st.fixed_dictionaries({name: numbers if PACKABLE[name] is int else words for name in names}))
packed = packable.filter(bool).map(lambda attributes: pack(attributes) or "")
items = st.sampled_from(sorted(PACKABLE)).flatmap(
    lambda name: st.sampled_from((f"{name}=7", f"{name}=x", f"{name}=", name, "other=1", "", "="))
)
texts = st.one_of(
    packed,
    st.lists(items, max_size=4).map(lambda parts: f"{{{' '.join(parts)}}}"),
    st.text(max_size=20),
    packed.flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])),
)
spans = st.tuples(st.none() | texts, packable)


def request_of(sets: list[dict[str, Any]]) -> ExportTraceServiceRequest:
    request = trace_request(len(sets))
    for span, attributes in zip(request.resource_spans[0].scope_spans[0].spans, sets, strict=True):
        del span.attributes[:]
        span.attributes.extend(attribute(key, value) for key, value in attributes.items())
    return request


def rows(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    batch = decode_traces(request.SerializeToString(), received_unix_nano=1).batches["spans"]
    batch.validate(full=True)
    return [
        {name: sorted(value) if name.startswith("attributes") else value for name, value in row.items()}
        for row in batch.to_pylist()
    ]


@settings(max_examples=80, deadline=None)
@given(st.lists(spans, min_size=1, max_size=5))
@example([("{}", {}), (None, {})])
@example([("{provenance.stamp.kid=a=b}", {"server.port": 1}), ("{", {}), ("}", {}), ("xserver.port=1}", {})])
@example([("{server.port=1 server.port=2}", {}), ("{server.port=" + "9" * 19 + "}", {}), ("{server.port=٣}", {})])
@example([("{provenance.stamp.kid=" + "x" * MAX_PACKED_LENGTH + "}", {})])
def test_packed_spans_have_the_rows_of_others(told: list[tuple[str | None, dict[str, Any]]]) -> None:
    packing = [({} if text is None else {PACKED: text}) | beside for text, beside in told]
    separate = []
    for text, beside in told:
        known = {} if text is None else unpack(text)
        separate.append(({STAYS: text} if known is None else known) | beside)
    expected = rows(request_of(separate))
    for row in expected:
        row["attributes"] = sorted((PACKED if key == STAYS else key, value) for key, value in row["attributes"])

    assert rows(request_of(packing)) == expected


@given(packable.filter(bool))
def test_what_is_packed_is_unpacked(attributes: dict[str, str | int]) -> None:
    text = pack(attributes)

    assert text is not None
    assert unpack(text) == attributes


@given(packed, st.data())
def test_what_was_cut_off_is_nothing(text: str, data: st.DataObject) -> None:
    assert unpack(text[: data.draw(st.integers(0, len(text) - 1))]) is None


def test_json_is_unpacked_too() -> None:
    text = pack({"provenance.stamp.kid": "checkout/3", "provenance.request.size": 5, "server.address": "packed"})
    request = request_of([{PACKED: text, "server.address": "beside"}])
    payload = json_to_request(request_to_json(request), ExportTraceServiceRequest)

    [row] = rows(ExportTraceServiceRequest.FromString(payload))
    assert (row["provenance_stamp_kid"], row["provenance_request_size"]) == ("checkout/3", 5)
    assert row["server_address"] == "beside"
    assert row["attributes"] == []
