"""Messages that wait longer: told by parent and by link, whatever the clocks say, and only where the wait itself changed."""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from collector.forensics.latency import find_latency
from collector.forensics.tables import Window
from tests.collector.forensics.factories import MS, T0, S, make_span, next_id, store

MESSAGES = 400
LAG_FROM = 250
Row = dict[str, Any]


def messages(
    *, lag_ms: float = 0, own_ms: float = 0, by: str = "parent", skew_ns: int = 0, seed: int = 1
) -> Iterator[tuple[str, Row]]:
    """A message a second from checkout to mailer's two replicas, whose clocks differ; from LAG_FROM on with a lag, or more work."""
    rng = random.Random(seed)
    for n in range(MESSAGES):
        at, slow = T0 + n * S, n >= LAG_FROM
        sender = make_span(
            kind="PRODUCER", name="mail publish", service_name="checkout", start_time_unix_nano=at, duration_ns=MS
        )
        wait = (rng.lognormvariate(2, 0.5) + (lag_ms * rng.uniform(0.8, 1.2) if slow else 0)) * MS
        work = (rng.lognormvariate(1, 0.3) + (own_ms if slow else 0)) * MS
        replica = rng.choice([0, 1])
        taker = make_span(
            trace_id=sender["trace_id"] if by != "link" else next_id(),
            parent_span_id=sender["span_id"] if by != "link" else None,
            kind="CONSUMER",
            name="mail process",
            service_name="mailer",
            service_instance_id=f"mailer-{replica}",
            start_time_unix_nano=int(at + MS + wait) + (skew_ns if replica else 0),
            duration_ns=int(work),
            attributes={"messaging.destination.name": "mails"},
        )
        yield "spans", sender
        yield "spans", taker
        if by != "parent":
            yield (
                "span_links",
                {
                    "trace_id": taker["trace_id"],
                    "span_id": taker["span_id"],
                    "linked_trace_id": sender["trace_id"],
                    "linked_span_id": sender["span_id"],
                },
            )


def found(**how: Any):
    tables: dict[str, list[Row]] = {"spans": [], "span_links": []}
    for table, row in messages(**how):
        tables[table].append(row)
    return find_latency(store(tables["spans"], span_links=tables["span_links"]), Window())


@pytest.mark.slow
@pytest.mark.parametrize(("by", "skew_ns"), [("parent", 0), ("link", -600 * S), ("both", 7 * S)])
def test_a_lag_is_told_once_with_its_queue_and_since_when(by: str, skew_ns: int) -> None:
    [finding] = found(lag_ms=900, by=by, skew_ns=skew_ns)
    assert finding.reasons == ("latency_shift", "queue_wait")
    assert (finding.caller, finding.callee, finding.operation) == ("checkout", "mailer", "mail process")
    assert finding.destination == "mails"
    assert re.match(r"messages from checkout in mails wait [89]\d\d ms longer", finding.explanation)
    # Between two clocks the moments of half of the messages lie elsewhere; how many there were stays.
    if not skew_ns:
        assert abs(finding.first_seen_unix_nano - (T0 + LAG_FROM * S)) < 10 * S
        assert 140 <= finding.count <= 160
        assert len(finding.trace_ids) == len(finding.span_ids) == 20


@pytest.mark.slow
def test_the_evidence_is_the_messages_that_waited_longest_the_longest_first() -> None:
    tables: dict[str, list[Row]] = {"spans": [], "span_links": []}
    for table, row in messages(lag_ms=900):
        tables[table].append(row)
        # What a proxy says of the same span is another row with its id.
        tables[table].append(row | {"witness": "proxy"})
    [finding] = find_latency(store(tables["spans"]), Window())
    sent, taken = tables["spans"][::4], tables["spans"][2::4]
    waits = {
        f"{t['span_id']:016x}": t["start_time_unix_nano"] - s["start_time_unix_nano"]
        for s, t in zip(sent, taken, strict=True)
    }
    longest = sorted(waits, key=lambda span_id: -waits[span_id])[:20]
    # Of two replicas each has its own zero: the shortest waits of both lie within a few ms.
    assert list(finding.span_ids)[:3] == longest[:3]
    assert [round(waits[i] / (50 * MS)) for i in finding.span_ids] == sorted(
        (round(waits[i] / (50 * MS)) for i in finding.span_ids), reverse=True
    )


@pytest.mark.slow
def test_messages_that_wait_as_ever_are_no_finding() -> None:
    assert all(found(seed=seed) == [] for seed in (2, 3))


def nightly(*nights: int) -> list[Row]:
    """Six days of a message every four minutes; on these nights those from three to five o'clock wait for a batch."""
    rng, rows = random.Random(5), []
    for n in range(6 * 360):
        day, hour = divmod(n / 15, 24)
        lag = 40 * S if int(day) in nights and 3 <= hour < 5 else 0
        sender = make_span(
            kind="PRODUCER", name="publish", service_name="shop", start_time_unix_nano=T0 + n * 240 * S, duration_ns=MS
        )
        wait = int(rng.lognormvariate(4, 0.5) * MS + lag * rng.uniform(0.5, 1.5))
        taker = make_span(
            trace_id=sender["trace_id"],
            parent_span_id=sender["span_id"],
            kind="CONSUMER",
            name="process",
            service_name="ledger",
            start_time_unix_nano=T0 + n * 240 * S + wait,
            duration_ns=MS,
        )
        rows += [sender, taker]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("nights", "told"), [(range(6), 0), ((5,), 1)], ids=["every night", "tonight"])
@pytest.mark.parametrize("hours", [(0, 24), (1, 7)], ids=["the day", "the night"])
def test_a_batch_of_every_night_is_no_incident(nights: Sequence[int], told: int, hours: tuple[int, int]) -> None:
    midnight = T0 + 5 * 24 * 3600 * S
    window = Window(*(midnight + hour * 3600 * S for hour in hours))
    found = find_latency(store(nightly(*nights)), window)
    assert [f.reasons for f in found] == [("latency_shift", "queue_wait")] * told
    assert all("at this time on 5 earlier days" in f.explanation for f in found)


@pytest.mark.slow
def test_a_consumer_that_works_longer_is_not_its_queue() -> None:
    [finding] = found(own_ms=80)
    assert "queue_wait" not in finding.reasons
    assert finding.callee == "mailer"


@pytest.mark.slow
def test_a_lag_and_its_consumers_own_time_are_two_findings_with_two_ids() -> None:
    lag, own = sorted(found(lag_ms=900, own_ms=80), key=lambda f: f.reasons, reverse=True)
    assert "queue_wait" in lag.reasons
    assert "queue_wait" not in own.reasons
    assert lag.finding_id != own.finding_id
