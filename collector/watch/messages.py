"""What others are sent: Alertmanager's alerts, Slack's text, a program's JSON and environment. Pure: events in, plain values out.

Everything recorded is a stranger's text: it is cut to a length, control characters go, and Slack's markup is escaped, so that no
service name can ping a channel. Alertmanager's labels are what tells alerts apart, so they hold the subject and the severity and
nothing that changes with every call; figures are annotations.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from collector.forensics.tables import NS_PER_S
from collector.watch.model import Event, Row

RESEND_NS: Final = 60 * NS_PER_S
HOLD_NS: Final = 4 * RESEND_NS
"""How long an alert fires without being told again: as Prometheus, four rounds, and less than Alertmanager's own 5 min."""

_LABEL_LENGTH: Final = 256
_TEXT_LENGTH: Final = 4_000
_TRACES: Final = 5
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SLACK_ICONS: Final = {
    "critical": ":red_circle:",
    "high": ":large_orange_circle:",
    "medium": ":large_yellow_circle:",
    "low": ":white_circle:",
}
_SLACK_MOST: Final = 20


def alerts(events: Sequence[Event], now_unix_nano: int, generator_url: str | None = None) -> list[dict[str, Any]]:
    """The body of `POST /api/v2/alerts`: what is open ends in `HOLD_NS` unless it is told again, what is resolved has ended.

    A severity that rose is another alert to Alertmanager: the former one ends with it.
    """
    bodies = []
    for event in events:
        over = event.what == "resolved"
        ends = event.at_unix_nano if over else now_unix_nano + HOLD_NS
        if event.former_severity:
            bodies.append(_alert(event, event.former_severity, event.at_unix_nano, generator_url))
        bodies.append(_alert(event, str(event.row["severity"]), ends, generator_url))
    return bodies


def _alert(event: Event, severity: str, ends_unix_nano: int, generator_url: str | None) -> dict[str, Any]:
    row = event.row
    labels = {
        "alertname": "Provenance" + str(row["kind"]).capitalize(),
        "finding_id": row["finding_id"],
        "kind": row["kind"],
        "severity": severity,
        **{name: row.get(name) for name in ("caller", "callee", "operation", "destination", "way")},
    }
    annotations = {
        "summary": f"{', '.join(row['reasons'])}: {subject(row)}",
        "description": row["explanation"],
        "remedy": row.get("remedy"),
        "reasons": ", ".join(row["reasons"]),
        "not_seen": row["completeness"],
        "count": str(row["count"]),
        "score": f"{row['score']:.2f}",
        "first_call": rfc3339(row["first_seen_unix_nano"]),
        "last_call": rfc3339(row["last_seen_unix_nano"]),
        "traces": ", ".join(row["trace_ids"][:_TRACES]),
        "attack": ", ".join(row["attack_ids"]),
        "acknowledged": "yes" if event.acknowledged else None,
        "resolved_because": event.why if event.what == "resolved" else None,
    }
    alert: dict[str, Any] = {
        "labels": _texts(labels, _LABEL_LENGTH),
        "annotations": _texts(annotations, _TEXT_LENGTH),
        # An alert that ends before it starts is refused.
        "startsAt": rfc3339(min(event.began_unix_nano, ends_unix_nano)),
        "endsAt": rfc3339(ends_unix_nano),
    }
    return alert if generator_url is None else {**alert, "generatorURL": generator_url}


def slack(events: Sequence[Event]) -> dict[str, str]:
    """The body of a Slack-compatible incoming webhook: one message, however many events it tells."""
    told = [_slack_line(event) for event in events[:_SLACK_MOST]]
    if len(events) > _SLACK_MOST:
        told.append(f"… and {len(events) - _SLACK_MOST} more")
    return {"text": "\n".join(told)}


def _slack_line(event: Event) -> str:
    row = event.row
    head = f"{event.what}: {row['severity']} {row['kind']} {', '.join(row['reasons'])}: {subject(row)}"
    parts = [f"{_icon(event)} *{_slack_text(head, 300)}*"]
    if event.why:
        parts.append(f" ({_slack_text(event.why, 300)})")
    if event.what != "resolved":
        parts.append("\n" + _slack_text(row["explanation"], 1_000))
        if row.get("remedy"):
            parts.append("\nTo close it: " + _slack_text(row["remedy"], 500))
    parts.append(f"\n`{_slack_text(row['finding_id'], 64)}`")
    return "".join(parts)


def _icon(event: Event) -> str:
    return (
        ":large_green_circle:"
        if event.what == "resolved"
        else _SLACK_ICONS.get(event.row["severity"], ":white_circle:")
    )


def _slack_text(text: object, length: int) -> str:
    """Slack's three escapes; and what would begin bold, code or a link elsewhere stays a character."""
    safe = _clean(str(text), length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("`", "'").replace("*", "\u2217").replace("\n", " ")


def document(event: Event) -> dict[str, Any]:
    """An event as JSON has it, on stdout and on a program's stdin: the event first, then the finding's columns."""
    return {
        "event": event.what,
        "event_id": event.event_id,
        "at": rfc3339(event.at_unix_nano),
        "began": rfc3339(event.began_unix_nano),
        "why": event.why,
        "acknowledged": event.acknowledged,
        "silenced": event.quiet,
        **event.row,
    }


def environment(event: Event) -> dict[str, str]:
    """The variables of `--exec`; what has no value is empty, so that nothing is inherited."""
    row = event.row
    values: dict[str, object] = {
        "EVENT": event.what,
        "EVENT_ID": event.event_id,
        "ID": row["finding_id"],
        "KIND": row["kind"],
        "REASONS": ",".join(row["reasons"]),
        "SEVERITY": row["severity"],
        "CALLER": row["caller"],
        "CALLEE": row["callee"],
        "OPERATION": row["operation"],
        "DESTINATION": row["destination"],
        "WAY": row.get("way"),
        "COUNT": row["count"],
        "EXPLANATION": row["explanation"],
        "REMEDY": row.get("remedy"),
        "WHY": event.why,
    }
    texts = {
        name: _clean("" if value is None else str(value), _TEXT_LENGTH).replace("\n", " ")
        for name, value in values.items()
    }
    return {f"PROVENANCE_FINDING_{name}": text for name, text in texts.items()}


def line(event: Event) -> str:
    """An event on one line, for people; the terminal's own escapes are the caller's task."""
    row = event.row
    marks = "".join(
        f" [{name}]" for name, holds in (("acknowledged", event.acknowledged), ("quiet", event.quiet)) if holds
    )
    why = f" ({event.why})" if event.why else ""
    text = (
        f"{rfc3339(event.at_unix_nano)}  {event.what:<8}  {row['severity']:<8}  {row['kind']:<7}  {row['finding_id']}  "
    )
    return f"{text}{subject(row)}: {', '.join(row['reasons'])}{why}{marks}"


def subject(row: Row) -> str:
    """What the finding is about: `web -> pay`, `report -> 203.0.113.9:443`."""
    target = row["callee"] or row["destination"] or row["operation"]
    caller = row["caller"] or ("unknown" if row["kind"] == "shadow" else None)
    named = " -> ".join(str(name) for name in (caller, target) if name) or str(row["kind"])
    return f"{named} {row['operation']}" if row["operation"] and row["operation"] != target else named


def rfc3339(unix_nano: int) -> str:
    """The time in UTC, to the millisecond; beyond what a calendar can say, its end."""
    seconds, rest = divmod(min(max(unix_nano, 0), 253_402_300_799 * NS_PER_S), NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def _texts(values: Mapping[str, object], length: int) -> dict[str, str]:
    """Without what is empty: to Alertmanager an empty label is none."""
    return {name: _clean(str(value), length) for name, value in values.items() if value not in {None, ""}}


def _clean(text: str, length: int) -> str:
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= length else text[: length - 1] + "…"
