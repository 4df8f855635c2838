"""The search line's small language: `service:checkout op:Quote error:true dur>100ms text`. Pure.

Words with a colon or a comparison are conditions, everything else is text; quotes keep spaces together. All of it must
hold at once. What cannot be meant is refused with what was expected, never searched for in silence.
"""

import re
from dataclasses import replace
from decimal import Decimal
from typing import Final, cast

from tui.snapshots import SortOrder, TraceQuery

EXAMPLE: Final = 'service:checkout op:"POST /buy" error:true dur>100ms'

HELP: Final = (
    ("service:NAME", "traces in which this service took part"),
    ("op:TEXT", "operation (span name) contains TEXT"),
    ("error:true", "only traces with an error"),
    ("dur>100ms", "slower than; also dur<2s; units ns us ms s m"),
    ("sort:slowest", "slowest first; sort:newest is the default"),
    ("anything else", "text in names and attributes; “quotes” keep spaces"),
)

_TOKEN: Final = re.compile(r"""(?:[^\s"]|"[^"]*")+""")
_CONDITION: Final = re.compile(r"(?P<key>[a-z_.]+)(?P<operator>:|[<>]=?)(?P<value>.*)", re.DOTALL)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m)")
_UNITS: Final[dict[str, int]] = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000,
}  # fmt: skip
_LONGEST_NS: Final = 2**63 - 1
_KEYS: Final = "service:, op:, error:, dur> dur<, sort:"


class SearchSyntaxError(ValueError):
    """The search line means nothing: says what was got and what was expected."""


def parse(text: str) -> TraceQuery:
    """The query that a search line means. Raises `SearchSyntaxError`."""
    if text.count('"') % 2:
        raise SearchSyntaxError(f'a quote is not closed in {text!r}; expected "text in quotes"')
    query, words = TraceQuery(), []
    for token in _TOKEN.findall(text):
        condition = None if token.startswith('"') else _CONDITION.fullmatch(token)
        if condition is None or not _is_meant(condition["key"], condition["operator"]):
            words.append(token.replace('"', ""))
        else:
            query = _apply(query, condition["key"], condition["operator"], condition["value"].replace('"', ""))
    low, high = query.min_duration_ns, query.max_duration_ns
    if low is not None and high is not None and low > high:
        raise SearchSyntaxError("dur> is above dur<: nothing can be both; expected for example dur>100ms dur<2s")
    return replace(query, text=" ".join(words) or None)


def _is_meant(key: str, operator: str) -> bool:
    """Whether a token was meant as a condition: `http://host` and `a.b:1` are text, `servce:x` is a slip."""
    known = key in {"service", "op", "operation", "error", "errors", "dur", "duration", "sort"}
    return known or (
        operator == ":" and key.isalpha() and key not in {"http", "https", "grpc", "dns", "urn", "localhost"}
    )


def _apply(query: TraceQuery, key: str, operator: str, value: str) -> TraceQuery:
    if key in {"dur", "duration"}:
        return _duration(query, operator, value)
    if operator != ":":
        raise SearchSyntaxError(f"{key}{operator} compares what has no order; expected {key}:VALUE")
    if not value:
        raise SearchSyntaxError(f"{key}: has no value; expected for example {EXAMPLE}")
    match key:
        case "service":
            return replace(query, service=value)
        case "op" | "operation":
            return replace(query, operation=value)
        case "error" | "errors":
            if value not in {"true", "yes"}:
                raise SearchSyntaxError(f"error:{value} is not known; expected error:true")
            return replace(query, errors_only=True)
        case "sort":
            if value not in {"newest", "slowest"}:
                raise SearchSyntaxError(f"sort:{value} is not known; expected sort:newest or sort:slowest")
            return replace(query, order=cast("SortOrder", value))
        case _:
            raise SearchSyntaxError(f'{key}: is not known; expected {_KEYS}, or "{key}:{value}" in quotes as text')


def _duration(query: TraceQuery, operator: str, value: str) -> TraceQuery:
    match = _DURATION.fullmatch(value)
    if match is None or operator == ":":
        raise SearchSyntaxError(f"dur{operator}{value} is not a duration; expected for example dur>100ms or dur<2s")
    # Not by way of a float, which would lose the last digits of a long one.
    nanoseconds = round(Decimal(match[1]) * _UNITS[match[2]])
    if nanoseconds > _LONGEST_NS:
        raise SearchSyntaxError(f"dur{operator}{value} is longer than 292 years; expected for example dur>100ms")
    if operator[0] == ">":
        return replace(query, min_duration_ns=nanoseconds)
    return replace(query, max_duration_ns=nanoseconds)


def render(query: TraceQuery) -> str:
    """The search line that means this query: `parse(render(q)) == q` for names without quotes."""
    parts = [
        f"service:{_quoted(query.service)}" if query.service else "",
        f"op:{_quoted(query.operation)}" if query.operation else "",
        "error:true" if query.errors_only else "",
        f"dur>{query.min_duration_ns}ns" if query.min_duration_ns is not None else "",
        f"dur<{query.max_duration_ns}ns" if query.max_duration_ns is not None else "",
        f"sort:{query.order}" if query.order != "newest" else "",
        f'"{query.text}"' if query.text else "",
    ]
    return " ".join(part for part in parts if part)


def _quoted(value: str) -> str:
    value = value.replace('"', "")
    return f'"{value}"' if re.search(r"\s", value) else value
