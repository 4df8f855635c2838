"""What is put into a span of the SDK at once is there as if it had been set; and what is not known for sure is set."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind, use_span

from provenance import sdk_spans
from provenance.spans import add_attributes, own_span, say

Said = dict[str, str | int]

NAMES = st.sampled_from([f"a.{letter}" for letter in "abcdefghij"])
SAID: st.SearchStrategy[Said] = st.dictionaries(NAMES, st.text(max_size=8) | st.integers(), max_size=8)
MAYBE_FEW = st.none() | st.integers(0, 12)


@pytest.fixture(autouse=True)
def _tried_anew() -> Iterator[None]:
    sdk_spans._is_known.cache_clear()
    yield
    sdk_spans._is_known.cache_clear()


def new_span(before: Mapping[str, Any], *, most: int | None = None, longest: int | None = None) -> Any:
    limits = sdk.SpanLimits(max_span_attributes=most, max_span_attribute_length=longest)
    limits.max_span_attributes, limits.max_span_attribute_length = most, longest  # None: as told, not as by default
    provider = sdk.TracerProvider(resource=Resource({}), span_limits=limits, shutdown_on_exit=False)
    return provider.get_tracer("t").start_span("t", kind=SpanKind.CLIENT, attributes=dict(before))


def told(span: Any) -> tuple[Any, ...]:
    """All that an exporter sees, in its order."""
    kept = span._attributes
    return list(span.attributes.items()), kept.dropped, kept.maxlen, kept.max_value_len, kept._immutable


def test_the_installed_sdk_is_the_one_that_we_know() -> None:
    span = new_span({"before": True})

    assert sdk_spans.put(span, {"ours": 1}), (
        "OpenTelemetry's SDK keeps a span's attributes in another way than provenance.sdk_spans thinks: stamps are as right as ever, "
        "and cost a third more until that module knows the new way"
    )
    assert dict(span.attributes) == {"before": True, "ours": 1}


@given(before=SAID, said=st.lists(SAID, max_size=3), most=MAYBE_FEW, longest=MAYBE_FEW, end_after=st.integers(0, 4))
def test_what_is_put_is_what_would_have_been_set(
    before: Said, said: list[Said], most: int | None, longest: int | None, end_after: int
) -> None:
    ours, theirs = (new_span(before, most=most, longest=longest) for _ in range(2))
    for number, each in enumerate(said):
        if number == end_after:
            ours.end()
            theirs.end()
        say(ours, each)
        if theirs.is_recording():
            theirs.set_attributes(each)
        assert told(ours) == told(theirs)


@given(before=SAID, said=SAID, missing=SAID, most=MAYBE_FEW, longest=MAYBE_FEW)
def test_what_was_there_is_not_replaced(
    before: Said, said: Said, missing: Said, most: int | None, longest: int | None
) -> None:
    ours, theirs = (new_span(before, most=most, longest=longest) for _ in range(2))
    add_attributes(ours, said, missing)
    there = set(theirs.attributes)
    theirs.set_attributes({**said, **{key: value for key, value in missing.items() if key not in there}})

    assert told(ours) == told(theirs)


def test_a_span_that_has_ended_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    span = new_span({})
    span.end()
    assert not sdk_spans.put(span, {"late": 1})
    say(span, {"late": 1})
    add_attributes(span, {"late": 1}, {"later": 2})

    assert dict(span.attributes) == {}
    assert caplog.records == [], "nobody is told off for it"


@pytest.mark.parametrize(
    ("kind", "before", "is_own"),
    [
        (SpanKind.CLIENT, {}, True),
        (SpanKind.SERVER, {}, False),
        (SpanKind.CLIENT, {"db.system": "x"}, False),
        (SpanKind.CLIENT, {"rpc.system": "x"}, True),
    ],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_calls_own_span_is_found_either_way(
    monkeypatch: pytest.MonkeyPatch, kind: SpanKind, before: Said, *, is_own: bool, is_known: bool
) -> None:
    if not is_known:
        monkeypatch.setattr(sdk_spans, "_is_known", lambda *_: False)
    span = new_span(before)
    with use_span(span):
        found = own_span(kind, frozenset({"db.system"}))
    assert found is (span if is_own else None)
    span.end()
    with use_span(span):
        assert own_span(kind) is None


def test_a_set_attributes_that_somebody_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., None] = sdk.Span.set_attributes
    span = new_span({})
    assert sdk_spans.put(span, {"first": 1})  # tried out before it was replaced

    def without_secrets(self: Any, attributes: Mapping[str, Any]) -> None:
        original(self, {key: value for key, value in attributes.items() if key != "secret"})

    monkeypatch.setattr(sdk.Span, "set_attributes", without_secrets)
    add_attributes(span, {"secret": 1, "open": 2}, {})
    say(span, {"secret": 1, "late": 3})

    assert dict(span.attributes) == {"first": 1, "open": 2, "late": 3}


class PrefixingSpan(sdk._Span):
    def set_attributes(self, attributes: Any) -> None:
        super().set_attributes({f"their.{key}": value for key, value in attributes.items()})


class PrefixingAttributes(BoundedAttributes):
    def _set_items(self, attributes: Mapping[str, Any]) -> None:
        super()._set_items({f"their.{key}": value for key, value in attributes.items()})


class SpanOfTheirAttributes(sdk._Span):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attributes = PrefixingAttributes(immutable=False)


@pytest.mark.parametrize("kind", [PrefixingSpan, SpanOfTheirAttributes])
def test_another_class_of_spans_is_asked(kind: type[Any]) -> None:
    ours = new_span({})
    span = kind("t", ours.get_span_context(), resource=ours.resource, limits=sdk.SpanLimits())
    span.start()
    add_attributes(span, {"a": 1}, {"b": 2})

    assert dict(span.attributes) == {"their.a": 1, "their.b": 2}


@pytest.mark.parametrize("way", ["counts", "orders", "renamed"])
def test_an_sdk_that_does_more_than_we_know_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    original = BoundedAttributes._set_items

    def counting(self: Any, attributes: Mapping[str, Any]) -> None:
        self.times = getattr(self, "times", 0) + 1
        original(self, attributes)

    def ordering(self: Any, attributes: Mapping[str, Any]) -> None:
        original(self, dict(reversed(list(attributes.items()))))

    if way == "renamed":
        monkeypatch.setattr(sdk_spans, "_put", lambda span, _: span._attributes._no_longer_there)
    else:
        monkeypatch.setattr(BoundedAttributes, "_set_items", {"counts": counting, "orders": ordering}[way])
    span = new_span({})
    with caplog.at_level(logging.INFO, logger="provenance"):
        assert not sdk_spans.put(span, {"a": 1})
    add_attributes(span, {"a": 1}, {"b": 2})

    assert dict(span.attributes) == {"a": 1, "b": 2}
    assert "takes longer" in caplog.text
