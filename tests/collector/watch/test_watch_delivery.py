"""Delivery: what an answer means, retries, order, giving up; against real HTTP servers that fail, stall and refuse."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from collector.errors import ConfigError
from collector.watch.delivery import (
    GIVE_UP_NS,
    LONGEST_ASKED_S,
    Courier,
    Delivered,
    Later,
    Outcome,
    Refused,
    delay_s,
    outcome_of,
    retry_after_s,
)
from collector.watch.model import Event
from collector.watch.senders import Program, Webhook, alertmanager_url, read_headers, read_url
from tests.collector.watch.watch_rows import START, S, event
from tests.collector.watch.webhook_server import Script, serving, wait_for

SECRET = "T0KEN-that-nobody-may-see"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, Delivered), (204, Delivered), (301, Refused), (400, Refused), (401, Refused), (404, Refused), (410, Refused),
     (408, Later), (425, Later), (429, Later), (500, Later), (503, Later)],
)  # fmt: skip
def test_what_a_status_means(status: int, kind: type) -> None:
    assert type(outcome_of(status, None, START)) is kind


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("7", 7.0), ("0", 0.0), ("99999999999", LONGEST_ASKED_S), ("soon", None), ("-3", None), ("", None),
     ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0), ("Mon, 21 Sep 2020 14:13:50 GMT", 0.0), ("1.5", None)],
)  # fmt: skip
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, 1_790_000_000 * S) == seconds


def test_backoff_doubles_with_full_jitter_up_to_a_minute() -> None:
    assert [delay_s(n, 1.0) for n in (1, 2, 3, 7, 50)] == [1.0, 2.0, 4.0, 60.0, 60.0]
    assert delay_s(50, 0.0) == 0.0


@dataclass
class Scripted:
    """A sender that answers as it is told, and then always that it arrived."""

    answers: list[Outcome]
    batch: int = 64
    attempts: int | None = None
    name: str = "scripted"
    sent: list[list[str]] = field(default_factory=list)

    def send(self, events: Sequence[Event]) -> Outcome:
        self.sent.append([e.event_id for e in events])
        return self.answers.pop(0) if self.answers else Delivered()

    def stop(self) -> None:
        pass


@contextmanager
def couriered(sender: Any, **options: Any) -> Iterator[tuple[Courier, list[str], list[str]]]:
    done: list[str] = []
    said: list[str] = []
    options = {"chance": lambda: 0.0, "clock": lambda: START} | options
    courier = Courier(sender, done.extend, said.append, **options)
    try:
        yield courier, done, said
    finally:
        courier.stop(10)


def events(*names: str, **overrides: Any) -> list[Event]:
    return [event(event_id=name, **overrides) for name in names]


def test_events_arrive_once_in_order_however_often_it_fails() -> None:
    sender = Scripted([Later("down"), Later("down"), Delivered(), Later("down")], batch=2)
    with couriered(sender) as (courier, done, said):
        courier.offer(events("a", "b", "c"))
        courier.start()
        wait_for(lambda: len(done) == 3)
        assert done == ["a", "b", "c"]
        assert sender.sent == [["a", "b"]] * 3 + [["c"]] * 2
        assert said == ["scripted: not delivered, tried again: down"]
        assert courier.is_idle


def test_a_refusal_takes_nothing_with_it() -> None:
    sender = Scripted([Refused("400"), Delivered(), Refused("400"), Delivered()])
    with couriered(sender) as (courier, done, said):
        courier.offer(events("a", "b", "c"))
        courier.start()
        wait_for(lambda: len(done) == 3)
    assert sender.sent == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert said == ["scripted: b (opened) given up: 400"]


def test_it_gives_up_after_an_hour_and_says_so() -> None:
    sender = Scripted([Later("down")])
    with couriered(sender, clock=lambda: START + GIVE_UP_NS) as (courier, done, said):
        courier.offer([*events("old", at_unix_nano=START), *events("new", at_unix_nano=START + S)])
        courier.start()
        wait_for(lambda: len(done) == 2)
    assert sender.sent == [["old", "new"], ["new"]]
    assert said[0] == "scripted: old (opened) given up: down"


def test_a_program_is_not_run_for_ever() -> None:
    sender = Scripted([Later("exit 1")] * 5, attempts=5, batch=1)
    with couriered(sender) as (courier, done, _):
        courier.offer(events("a", "b"))
        courier.start()
        wait_for(lambda: len(done) == 2)
    assert sender.sent == [["a"]] * 5 + [["b"]]


def test_the_oldest_is_given_up_where_too_many_wait() -> None:
    with couriered(Scripted([]), most=2) as (courier, done, said):
        courier.offer(events("a", "b", "c"))
        assert done == ["a"]
        assert said == ["scripted: 1 events given up: more than 2 were waiting"]


def test_what_stood_before_a_resolution_is_not_told_after_it() -> None:
    sender = Scripted([Later("down")])
    with couriered(sender) as (courier, done, _):
        courier.refresh(events("open"))
        courier.offer(events("resolved"), ())
        courier.start()
        wait_for(lambda: bool(done))
    assert sender.sent == [["resolved"], ["resolved"]]


def test_what_stands_is_told_when_nothing_waits() -> None:
    sender = Scripted([])
    with couriered(sender) as (courier, done, _):
        courier.offer(events("a"), events("standing"))
        courier.start()
        wait_for(lambda: len(sender.sent) == 2)
    assert sender.sent == [["a"], ["standing"]]
    assert done == ["a"]


def test_stopping_does_not_wait_for_a_delay() -> None:
    sender = Scripted([Later("down", 300.0)] * 9)
    with couriered(sender) as (courier, done, _):
        courier.offer(events("a"))
        courier.start()
        wait_for(lambda: bool(sender.sent))
    assert (sender.sent, done) == ([["a"]], [])


def test_an_alertmanager_that_is_down_busy_and_back_has_every_alert(tmp_path: Path) -> None:
    header = tmp_path / "header"
    header.write_text(f"# rotates\nAuthorization: Bearer {SECRET}\n")
    script = Script([(503, {}), (429, {"Retry-After": "0"}), (200, {})])
    with serving(script) as base:
        webhook = Webhook(read_url(base, "--webhook"), "webhook", header_file=header, clock=lambda: START + 10 * S)
        with couriered(webhook) as (courier, done, said):
            courier.offer(events("a"))
            courier.start()
            wait_for(lambda: done == ["a"])
    assert [r.path for r in script.requests] == ["/api/v2/alerts"] * 3
    assert {r.headers["authorization"] for r in script.requests} == {f"Bearer {SECRET}"}
    assert {r.headers["idempotency-key"] for r in script.requests} == {"a"}
    assert [a["labels"]["alertname"] for a in json.loads(script.requests[-1].body)] == ["ProvenanceShadow"]
    assert SECRET not in "".join(said)


def test_a_server_that_never_answers_is_a_failure_within_the_time_limit() -> None:
    stalled = threading.Event()
    with serving(Script([], before=lambda: stalled.wait(30))) as base:
        try:
            outcome = Webhook(read_url(base, "--slack"), "slack", timeout_s=0.2).send(events("a"))
        finally:
            stalled.set()
    assert outcome == Later("it did not answer in time")


def test_a_redirect_is_not_followed() -> None:
    script = Script([(302, {"Location": "http://127.0.0.1:9/"})])
    with serving(script) as base:
        outcome = Webhook(read_url(base, "--slack"), "slack").send(events("a"))
    assert isinstance(outcome, Refused)


def test_nobody_sees_a_webhooks_url(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level("DEBUG")
    with serving(Script([(404, {})])) as base:
        url = read_url(f"{base}/services/{SECRET}?token={SECRET}", "--slack")
        gone = read_url(f"http://{SECRET}:{SECRET}@127.0.0.1:9/{SECRET}", "--slack")
        said = [
            str(Webhook(url, "slack").send(events("a"))),
            str(Webhook(gone, "slack").send(events("a"))),
            Webhook(gone, "slack").name,
        ]
    said += [repr(url), repr(gone), repr(alertmanager_url(gone)), caplog.text]
    for text in (f"ftp://x/{SECRET}", f"http://[{SECRET}", SECRET, f"http://h:{SECRET}/", f"https://\0{SECRET}"):
        with pytest.raises(ConfigError, match="no URL") as raised:
            read_url(text, "--slack")
        said.append(str(raised.value))
    assert SECRET not in "".join(said)


def test_a_url_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(f"\nhttps://hooks.example/{SECRET}\n")
    assert read_url(f"@{path}", "--slack").text == f"https://hooks.example/{SECRET}"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"--slack @.*url: no URL"):
        read_url(f"@{path}", "--slack")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_url(f"@{tmp_path / 'none'}", "--slack")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://am:9093", "/api/v2/alerts"),
        ("http://am:9093/", "/api/v2/alerts"),
        ("http://am/x/hook?a=b", "/x/hook?a=b"),
    ],
)
def test_a_url_without_a_path_is_an_alertmanagers(given: str, used: str) -> None:
    assert alertmanager_url(read_url(given, "--webhook")).text.endswith(used)


@pytest.mark.parametrize(
    ("text", "headers"),
    [("abc.def\n", {"Authorization": "Bearer abc.def"}), ("# x\nX-A: 1\nX-B: a:b\n", {"X-A": "1", "X-B": "a:b"})],
)
def test_headers_of_a_file(tmp_path: Path, text: str, headers: dict[str, str]) -> None:
    path = tmp_path / "headers"
    path.write_text(text)
    assert read_headers(path) == headers


@pytest.mark.parametrize("text", ["", "# nothing\n", f"Bearer {SECRET}\n", f"Bad Name: {SECRET}\n", "X: \u20ac\n"])
def test_what_is_no_header_is_an_error_that_quotes_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "headers"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--webhook-header-file .*headers: ") as raised:
        read_headers(path)
    assert SECRET not in str(raised.value)


def test_a_program_is_given_the_finding(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "run.sh"
    script.write_text(f'#!/bin/sh\ncat > {out}\necho "$PROVENANCE_FINDING_ID $PROVENANCE_FINDING_CALLEE" >> {out}\n')
    script.chmod(0o700)
    assert Program(str(script)).send(events("a")) == Delivered()
    told, variables = out.read_text().splitlines()
    assert json.loads(told)["event_id"] == "a"
    assert variables == f"{event().row['finding_id']} pay"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("sh -c 'echo no such pager >&2; exit 3'", "it ended with 3: no such pager"),
        ("/nowhere/at-all", "it cannot be started: No such file or directory"),
    ],
)
def test_a_program_that_fails_is_tried_again(command: str, why: str) -> None:
    assert Program(command).send(events("a")) == Later(why)


def test_a_program_that_is_not_there_can_be_told_at_once() -> None:
    Program("sh -c true").check_is_there()
    with pytest.raises(ConfigError, match="/nowhere/at-all is no program"):
        Program("/nowhere/at-all --now").check_is_there()


def test_a_program_that_hangs_is_killed_with_its_children() -> None:
    begun = time.monotonic()
    outcome = Program("sh -c 'sleep 60 & sleep 60'", timeout_s=0.3).send(events("a"))
    assert outcome == Later("it did not end within 0.3 s")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("command", ["", "  ", "'unclosed"])
def test_no_program_is_an_error(command: str) -> None:
    with pytest.raises(ConfigError, match="--exec"):
        Program(command)
