"""Small requests that come together are decoded together, and nobody waits for company that never came."""

import threading

import pytest

from collector.otlp import decode_group
from collector.otlp.synthetic import trace_request
from collector.receiver.ingest import MANY, Ingest
from tests.collector.receiver.receiver_fakes import DEADLINE_S, FakeWriter

PAYLOAD = trace_request(1).SerializeToString()
FOR_EVER_S = 10 * DEADLINE_S


class Groups:
    """What was decoded together; the first group is held until `go` is set."""

    def __init__(self, monkeypatch):
        self.sizes: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

        def noted(payloads, received):
            if any(payloads):  # the first call, of nothing, belongs to the start
                self.sizes.append(len(payloads))
                self.begun.set()
                assert self.go.wait(DEADLINE_S)
            return decode_group(payloads, received)

        monkeypatch.setattr("collector.receiver.ingest.decode_group", noted)


@pytest.fixture
def groups(monkeypatch):
    monkeypatch.setattr("collector.receiver.ingest.GATHER_S", FOR_EVER_S)
    return Groups(monkeypatch)


def answered(requests):
    for request in requests:
        request.committed.result(DEADLINE_S)


def crowd(ingest, groups, count):
    """So many requests that are decoded as one group, after one that they waited behind."""
    first = ingest.traces(PAYLOAD)
    assert groups.begun.wait(DEADLINE_S)
    rest = [ingest.traces(PAYLOAD) for _ in range(count)]
    groups.go.set()
    answered([first, *rest])


def test_who_sends_alone_is_never_waited_for(groups):
    groups.go.set()
    ingest = Ingest(FakeWriter())
    for _ in range(5):
        answered([ingest.traces(PAYLOAD)])
    assert groups.sizes == [1] * 5


def test_a_few_together_are_no_crowd(groups):
    ingest = Ingest(FakeWriter())
    crowd(ingest, groups, MANY - 1)
    answered([ingest.traces(PAYLOAD)])
    assert groups.sizes == [1, MANY - 1, 1]


def test_after_a_crowd_the_next_ones_are_waited_for_until_they_are_enough(groups, monkeypatch):
    enough = 5 * MANY
    monkeypatch.setattr("collector.receiver.ingest.GROUP_BYTES", enough * len(PAYLOAD))
    ingest = Ingest(FakeWriter())
    crowd(ingest, groups, MANY)
    answered([ingest.traces(PAYLOAD) for _ in range(enough)])
    assert groups.sizes == [1, MANY, enough]


def test_large_requests_are_no_crowd_however_many(groups, monkeypatch):
    monkeypatch.setattr("collector.receiver.ingest.GROUP_BYTES", 2 * MANY * len(PAYLOAD))
    ingest = Ingest(FakeWriter())
    crowd(ingest, groups, MANY)
    answered([ingest.traces(PAYLOAD)])
    assert groups.sizes == [1, MANY, 1]


def test_who_is_waited_with_is_answered_when_the_collector_stops(groups):
    ingest = Ingest(FakeWriter())
    crowd(ingest, groups, MANY)
    waiting = [ingest.traces(PAYLOAD) for _ in range(2)]
    ingest.close(DEADLINE_S)
    answered(waiting)
    assert sum(groups.sizes) == 1 + MANY + 2


def test_after_a_crowd_nobody_waits_longer_than_that(monkeypatch):
    groups = Groups(monkeypatch)
    ingest = Ingest(FakeWriter())
    crowd(ingest, groups, MANY)
    answered([ingest.traces(PAYLOAD)])
    assert groups.sizes == [1, MANY, 1]
