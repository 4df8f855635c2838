"""Findings and coverage for tests of the watch."""

from typing import Any

from collector.forensics.findings import SCHEMA, Finding
from collector.watch.model import MINUTE_NS, Coverage, Event

START = 1_790_000_000_000_000_000 // MINUTE_NS * MINUTE_NS
S = 1_000_000_000


def finding(**overrides: Any) -> dict[str, Any]:
    """A row: one unstamped call of web to pay at START, unless told otherwise."""
    values: dict[str, Any] = {
        "kind": "shadow",
        "reasons": ("unstamped",),
        "severity": "medium",
        "score": 0.5,
        "first_seen_unix_nano": START,
        "last_seen_unix_nano": START,
        "count": 1,
        "explanation": "1 call from web to pay carried no stamp",
        "caller": "web",
        "callee": "pay",
    }
    made = Finding(**(values | overrides))
    plain = {name: getattr(made, name) for name in SCHEMA}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def reports(until_minute: int, *witnesses: tuple[str, str], without: tuple[int, ...] = ()) -> Coverage:
    """These witnesses reported in every minute from two before START on, but in those that are left out."""
    first = START // MINUTE_NS - 2
    minutes = frozenset(m for m in range(first, first + 2 + until_minute) if m - first - 2 not in without)
    return Coverage(
        dict.fromkeys((*(witnesses or (("spans", "pay"),)), ("any", "*")), minutes), START // MINUTE_NS + until_minute
    )


def event(**overrides: Any) -> Event:
    """The opening of `finding()`."""
    values: dict[str, Any] = {
        "event_id": "f.1.1",
        "what": "opened",
        "at_unix_nano": START + 5 * S,
        "why": "",
        "row": finding(),
        "began_unix_nano": START,
    }
    return Event(**(values | overrides))
