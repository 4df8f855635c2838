"""The receiver's counters: exact from many threads, and consistent when read."""

import threading

from collector.receiver.counters import COMMIT_BOUNDS_SECONDS, PROTOCOLS, REASONS, Counters, Tally


def test_nothing_is_counted_as_zero_under_every_label() -> None:
    counts = Counters().read()

    assert counts.accepted == dict.fromkeys(PROTOCOLS, Tally())
    assert counts.refused == dict.fromkeys(REASONS, Tally())
    assert (counts.commits.count, counts.commits.sum_seconds, dict(counts.rows)) == (0, 0.0, {})
    assert (counts.failing, counts.failures, counts.newest_received_unix_nano) == (None, 0, None)


def test_many_threads_lose_no_count() -> None:
    counters = Counters()

    def count() -> None:
        for _ in range(500):
            counters.accepted("grpc", 1, 10)
            counters.refused("malformed", 1)
            counters.committed(0.002, {"spans": 10, "resources": 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    counts = counters.read()
    assert counts.accepted["grpc"] == Tally(2000, 20_000)
    assert counts.accepted["http/json"] == Tally()
    assert counts.refused["malformed"] == Tally(2000, 0)
    assert counts.rows == {"spans": 20_000, "resources": 2000}
    assert counts.commits.count == 2000


def test_a_bucket_holds_its_upper_bound() -> None:
    counters = Counters()
    for seconds in (0.0, 0.001, 0.0011, 30.0, 30.1):
        counters.committed(seconds, {})

    counts = counters.read().commits.counts
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 1, 1, 1)
    assert len(counts) == len(COMMIT_BOUNDS_SECONDS) + 1


def test_a_failure_lasts_until_the_next_commit() -> None:
    counters = Counters()
    counters.failed("disk full")
    counters.failed("disk full")
    assert (counters.read().failing, counters.read().failures) == ("disk full", 2)

    counters.committed(0.01, {})
    assert (counters.read().failing, counters.read().failures) == (None, 2)


def test_the_newest_span_never_gets_older() -> None:
    counters = Counters(newest_received_unix_nano=50, clock=lambda: 70)
    counters.committed(0.01, {"spans": 1}, received_unix_nano=60)
    counters.committed(0.01, {"spans": 1}, received_unix_nano=55)
    counters.committed(0.01, {"proxy_records": 1}, received_unix_nano=90)
    assert counters.read().newest_received_unix_nano == 60

    counters.committed(0.01, {"spans": 1})
    assert counters.read().newest_received_unix_nano == 70


def test_what_was_read_does_not_change() -> None:
    counters = Counters()
    before = counters.read()
    counters.accepted("grpc", 1, 1)
    counters.committed(1.0, {"spans": 1})

    assert (before.accepted["grpc"], dict(before.rows)) == (Tally(), {})
