"""What others are sent: Alertmanager's rules, Slack's escapes, a program's environment."""

import json
import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.watch.messages import HOLD_NS, alerts, document, environment, line, rfc3339, slack
from tests.collector.watch.watch_rows import START, S, event, finding

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ANYTHING = st.text(st.characters(codec=None), max_size=40)


def check_alerts(body: list[dict[str, Any]]) -> None:
    """The rules of `postableAlerts` in Alertmanager's API v2, and of its own validation."""
    decoded = json.loads(json.dumps(body).encode("ascii"))
    assert isinstance(decoded, list)
    for alert in decoded:
        assert set(alert) <= {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
        assert alert["labels"]["alertname"]
        for name, value in (alert["labels"] | alert["annotations"]).items():
            assert LABEL_NAME.fullmatch(name)
            assert isinstance(value, str)
            assert value
            value.encode("utf-8")
        assert RFC3339.fullmatch(alert["startsAt"])
        assert RFC3339.fullmatch(alert["endsAt"])
        assert alert["startsAt"] <= alert["endsAt"]


def test_an_open_finding_fires_until_it_is_not_told_again() -> None:
    [alert] = alerts([event()], START + 10 * S, "http://127.0.0.1:4318")
    check_alerts([alert])
    assert alert["labels"] == {
        "alertname": "ProvenanceShadow", "finding_id": finding()["finding_id"], "kind": "shadow", "severity": "medium",
        "caller": "web", "callee": "pay",
    }  # fmt: skip
    assert alert["annotations"]["description"] == "1 call from web to pay carried no stamp"
    assert alert["startsAt"] == rfc3339(START)
    assert alert["endsAt"] == rfc3339(START + 10 * S + HOLD_NS)
    assert alert["generatorURL"] == "http://127.0.0.1:4318"
    assert HOLD_NS < 300 * S


def test_labels_stay_while_figures_change() -> None:
    before, after = (alerts([event(row=finding(count=n, score=n / 10))], START)[0]["labels"] for n in (1, 9))
    assert before == after


def test_a_resolved_finding_has_ended() -> None:
    [alert] = alerts([event(what="resolved", at_unix_nano=START + 60 * S, why="not seen")], START + 70 * S)
    assert alert["endsAt"] == rfc3339(START + 60 * S)
    assert alert["annotations"]["resolved_because"] == "not seen"


def test_a_severity_that_rose_ends_the_former_alert() -> None:
    former, present = alerts(
        [event(what="updated", former_severity="low", row=finding(severity="high"))], START + 10 * S
    )
    check_alerts([former, present])
    assert (former["labels"]["severity"], former["endsAt"]) == ("low", rfc3339(START + 5 * S))
    assert (present["labels"]["severity"], present["endsAt"]) == ("high", rfc3339(START + 10 * S + HOLD_NS))


@settings(max_examples=60)
@given(ANYTHING, ANYTHING, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_whatever_a_stranger_calls_a_service_the_alert_is_one_that_alertmanager_takes(
    caller: str, callee: str, first: int, last: int
) -> None:
    row = finding() | {"caller": caller, "callee": callee, "operation": caller, "explanation": callee * 500}
    row |= {"first_seen_unix_nano": first, "last_seen_unix_nano": last}
    check_alerts(alerts([event(row=row, began_unix_nano=first)], START))
    check_alerts(alerts([event(row=row, began_unix_nano=first, what="resolved")], START))
    text = slack([event(row=row)])["text"]
    json.dumps(text).encode("ascii")
    assert "<" not in text
    assert "\0" not in "".join(environment(event(row=row)).values())
    "".join(environment(event(row=row)).values()).encode()
    assert "\n" not in line(event(row=row)).replace(caller, "").replace(callee, "")


def test_slack_is_told_in_one_message_and_cannot_be_made_to_ping() -> None:
    rows = [finding(callee=f"<!channel> & service-{n}") for n in range(25)]
    text = slack([event(row=row) for row in rows])["text"]
    assert "<!channel>" not in text
    assert "&lt;!channel&gt; &amp; service-0" in text
    assert text.endswith("… and 5 more")


def test_slack_is_told_how_to_close_it() -> None:
    assert (
        "To close it: remove the annotation"
        in slack([event(row=finding() | {"remedy": "remove the annotation"})])["text"]
    )


def test_a_document_has_the_event_and_every_column_of_the_finding() -> None:
    told = document(event())
    assert told["event"] == "opened"
    assert told["event_id"] == "f.1.1"
    assert finding().items() <= told.items()


def test_the_environment_says_everything_and_inherits_nothing() -> None:
    told = environment(event())
    assert told["PROVENANCE_FINDING_EVENT"] == "opened"
    assert told["PROVENANCE_FINDING_CALLER"] == "web"
    assert told["PROVENANCE_FINDING_DESTINATION"] == ""
    assert set(told) == {
        f"PROVENANCE_FINDING_{name}"
        for name in [
            "EVENT",
            "EVENT_ID",
            "ID",
            "KIND",
            "REASONS",
            "SEVERITY",
            "CALLER",
            "CALLEE",
            "OPERATION",
            "DESTINATION",
            "WAY",
            "COUNT",
            "EXPLANATION",
            "REMEDY",
            "WHY",
        ]
    }


@pytest.mark.parametrize(
    ("unix_nano", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-5, "1970-01-01T00:00:00.000Z"),
        (10**18 + 1_500_000, "2001-09-09T01:46:40.001Z"),
    ],
)
def test_times_are_rfc_3339(unix_nano: int, text: str) -> None:
    assert rfc3339(unix_nano) == text
    datetime.fromisoformat(text)
