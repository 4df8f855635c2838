"""Large messages are checked by a declaration with fewer fields: with it and the decoder they must be refused as by the whole one, and nothing else."""

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.errors import DecodeError
from collector.otlp import origins, projection
from collector.otlp.fields import fields_of
from collector.otlp.projection import EVENT, KEY_VALUE, LINK, REQUEST, RESOURCE_SPANS, SCOPE_SPANS, SPAN, view_of
from collector.otlp.synthetic import trace_request

KINDS = [REQUEST, RESOURCE_SPANS, SCOPE_SPANS, SPAN, EVENT, LINK, KEY_VALUE]
SPAN_BYTES = trace_request(1, seed=1).resource_spans[0].scope_spans[0].spans[0].SerializeToString()


@st.composite
def damaged(draw):
    """A span with some bytes replaced, cut off or put in; or no span at all."""
    data = bytearray(draw(st.sampled_from([SPAN_BYTES, draw(st.binary(max_size=60))])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


def is_accepted(parse, data):
    try:
        parse(data)
    except DecodeError:
        return False
    return True


@given(damaged(), st.sampled_from(KINDS))
@example(b"\x00\x01", EVENT)  # field number 0: upb takes it for unknown in a message that has no fields, and only there
def test_the_check_refuses_what_the_message_refuses_and_rows_would_not(data, kind):
    is_checked = is_accepted(lambda d: kind._parsed(kind._check, d), data)
    has_rows = is_accepted(lambda d: kind.rows(pa.array([d], pa.binary())), data)
    if is_accepted(kind.parse, data):
        assert is_checked
    else:
        assert not (is_checked and has_rows)


@given(damaged(), st.sampled_from(KINDS), st.integers(0, 2))
@example(b"\x0b" * 60 + b"\x0c" * 60, SCOPE_SPANS, 0)
def test_what_is_known_to_be_flat_and_is_not_checked_has_the_same_rows(data, kind, padding):
    """Beyond `COUNTED_BYTES`, of a message with no group at its top and no message in it, ptars sees what upb did not."""
    data += b"\xfa\x3f\x01x" * padding

    def rows():
        try:
            return kind.rows(pa.array([data], pa.binary()))
        except DecodeError:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "TRUSTED_BYTES", -1)
        checked = rows()
        patch.setattr(projection, "COUNTED_BYTES", -1)
        counted = rows()
    if is_accepted(kind.parse, data):
        assert counted == checked
    elif counted is not None:
        assert fields_of(data, 1000)[1]
    assert counted is not None or checked is None


def test_both_are_met_by_damaged_spans():
    assert is_accepted(SPAN.parse, SPAN_BYTES)
    assert not is_accepted(SPAN.parse, SPAN_BYTES[:-1])
    assert not is_accepted(lambda d: SPAN._parsed(SPAN._check, d), b"\x7a\x02\x12\x7f"), "a status that is cut off"


@given(st.lists(st.binary(max_size=9), min_size=1), st.data())
def test_a_value_is_that_of_arrow_in_a_slice_too(values, data):
    first = data.draw(st.integers(0, len(values) - 1))
    array = pa.array(values, pa.binary()).slice(first)
    assert [view_of(array, i) for i in range(len(array))] == values[first:]


@pytest.mark.parametrize(
    ("read", "attribute"), [(origins.read_resource, b"\x0a\x00"), (origins.read_scope, b"\x1a\x00")]
)
def test_attributes_of_a_large_origin_are_counted_before_they_are_parsed(read, attribute, monkeypatch):
    monkeypatch.setattr(projection.Projected, "parse", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(DecodeError, match="has 10001 attributes, at most 10000 are accepted"):
        read(attribute * (origins.MAX_ATTRIBUTES + 1), b"")
