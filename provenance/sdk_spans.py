"""The SDK's own span, written to at once.

`set_attributes` looks at each value anew, and at each key whether there is room: that was a third of what a stamp took. What we say
of a call is text and whole numbers, and new to its span, so it can go where the SDK keeps it in one step, under the SDK's locks. Only
where that is the same to everybody who looks: every class of spans is tried out once, and a span of any other, one that has ended,
one that has something of it already, that has no room, or that cuts its values off, is asked as ever.
"""
# ruff: noqa: SLF001  (what the SDK keeps is what this module is about)

import logging
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind

_SDK: Final = "opentelemetry.sdk.trace"
_PLAIN_DATA: Final = (dict, list, tuple, str, int, float, bool, type(None))
_SAMPLE: Final[Mapping[str, str | int]] = {"a": "text", "b": 1}

_log = logging.getLogger("provenance")


def is_about(span: Any, kind: SpanKind, foreign: frozenset[str]) -> bool | None:
    """Whether a span of the SDK records, has this kind and none of these attributes; None for a span of any other class."""
    its: Any = type(span)
    if not _is_known(its, getattr(its, "set_attributes", None)):
        return None
    return (
        span._end_time is None
        and span._kind is kind
        and foreign.isdisjoint(span._attributes._dict.copy())  # a copy: another thread may set some meanwhile
    )


def put(span: Any, attributes: Mapping[str, str | int]) -> bool:
    """Set the attributes, if that can be done in one step; False: nothing was done, and `set_attributes` is to be asked."""
    its: Any = type(span)
    return _is_known(its, getattr(its, "set_attributes", None)) and _put(span, attributes)


def _put(span: Any, attributes: Mapping[str, str | int]) -> bool:
    kept = span._attributes
    with span._lock:
        if span._end_time is not None or kept.max_value_len is not None:
            return False
        with kept._lock:
            there = kept._dict
            has_room = kept.maxlen is None or len(there) + len(attributes) <= kept.maxlen
            if not has_room or not there.keys().isdisjoint(attributes):
                return False
            there.update(attributes)
    return True


@lru_cache(maxsize=16)  # a process has one class of spans that record, nearly always
def _is_known(kind: type, setter: Callable[..., None] | None) -> bool:
    """Whether this is the SDK's class, nobody has replaced its `set_attributes`, and it does what we think that it does."""
    sdk = sys.modules.get(_SDK)  # not imported here: who has a span of it has loaded it
    if sdk is None or kind is not getattr(sdk, "_Span", None) or getattr(setter, "__globals__", None) is not vars(sdk):
        return False
    try:
        asked, put_into = (_new_span(sdk) for _ in range(2))
        asked.set_attributes(_SAMPLE)
        is_the_same = _put(put_into, _SAMPLE) and _state(asked) == _state(put_into)
        is_the_same = is_the_same and (asked._end_time, asked._kind) == (None, SpanKind.INTERNAL)
    except (AttributeError, TypeError) as error:
        _log.debug("provenance: the OpenTelemetry SDK's spans are new to us (%r)", error)
        is_the_same = False
    if not is_the_same:
        _log.info("provenance: attributes are set as the OpenTelemetry SDK sets them, which takes longer")
    return is_the_same


def _new_span(sdk: Any) -> Any:
    resource, limits = sdk.Resource.get_empty(), sdk.SpanLimits()
    return sdk._Span("tried out", INVALID_SPAN_CONTEXT, resource=resource, limits=limits, attributes={"before": True})


def _state(span: Any) -> list[dict[str, Any]]:
    """All that a span and its attributes are, as far as it can be compared, in the order of its attributes."""
    known = [
        {name: value for name, value in vars(each).items() if isinstance(value, _PLAIN_DATA)}
        for each in (span, span._attributes)
    ]
    return [*known, {"in order": list(span._attributes._dict)}]
