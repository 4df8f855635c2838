"""What /metrics says, in Prometheus's text format 0.0.4: a pure function of what was counted and what was looked up.

Names end in their unit; totals count since the start. Every label has a closed set of values, but `source`, which is the
list of --access-log.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from collector.receiver.counters import COMMIT_BOUNDS_SECONDS, Counts, Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "provenance_collector_"

_Sample = tuple[str, Mapping[str, str], float]
"""What follows the family's name (`_bucket`), labels, value."""


@dataclass(frozen=True, slots=True)
class LogLag:
    """One access log: how far behind its end the collector is, and when it was last read to there."""

    source: str
    lag_bytes: int
    read_age_seconds: float | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is looked up at the moment of the scrape; None where it cannot be known.

    Attributes:
        ready: What /readyz says.
        queue_bytes: What waits for its commit; `queue_limit_bytes` is where requests are refused.
        rows: By table, as the database estimates them.
        journal_bytes: Of requests as they arrived, beside the file.
        max_size_bytes: The limit of file, WAL and journal together.
        evidence_since_seconds: What was received before was removed, since the Unix epoch; None while nothing was.
        removed_rows: By table, in the file's whole life.
        data_age_seconds: Since the newest span was received.
        rss_bytes: Resident memory of this process.
        start_time_seconds: Since the Unix epoch.
        stale: Files that changed and cannot be used as they are, by what they hold: 1 while the old ones stay in use.
    """

    ready: bool
    queue_bytes: int
    queue_limit_bytes: int
    rows: Mapping[str, int]
    file_bytes: int | None
    wal_bytes: int | None
    data_age_seconds: float | None
    rss_bytes: int | None
    start_time_seconds: float
    version: str
    access_logs: Sequence[LogLag] = ()
    stale: Mapping[str, bool] = field(default_factory=dict)
    journal_bytes: int = 0
    max_size_bytes: int | None = None
    evidence_since_seconds: float | None = None
    removed_rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Iterable[_Sample]


def exposition(counts: Counts, gauges: Gauges) -> str:
    """The page."""
    return "".join(line + "\n" for family in _families(counts, gauges) for line in _lines(family))


def _families(counts: Counts, gauges: Gauges) -> Iterator[_Family]:
    yield from _received(counts)
    yield from _written(counts)
    yield from _stored(gauges)
    yield from _process(gauges)


def _received(counts: Counts) -> Iterator[_Family]:
    accepted, refused = counts.accepted.items(), counts.refused.items()
    yield _Family(
        "accepted_requests_total",
        "counter",
        "OTLP requests that were committed and acknowledged.",
        [("", {"protocol": protocol}, tally.requests) for protocol, tally in accepted],
    )
    yield _Family(
        "accepted_spans_total",
        "counter",
        "Spans (over HTTP and gRPC also access log records) that were committed and acknowledged.",
        [("", {"protocol": protocol}, tally.spans) for protocol, tally in accepted],
    )
    yield _Family(
        "refused_requests_total",
        "counter",
        "Requests that were refused whole.",
        [("", {"reason": reason}, tally.requests) for reason, tally in refused],
    )
    yield _Family(
        "refused_spans_total",
        "counter",
        "Spans that were refused, as far as they were counted: those of a request that was not decoded are not.",
        [("", {"reason": reason}, tally.spans) for reason, tally in refused],
    )


def _written(counts: Counts) -> Iterator[_Family]:
    yield _Family(
        "commit_seconds", "histogram", "From a transaction's begin to its durable end.", _buckets(counts.commits)
    )
    yield _one("commit_failures_total", "counter", "Transactions that were rolled back.", counts.failures)
    yield _Family(
        "committed_rows_total",
        "counter",
        "Rows committed since the start, by table.",
        [("", {"table": table}, rows) for table, rows in sorted(counts.rows.items())],
    )


def _stored(gauges: Gauges) -> Iterator[_Family]:
    yield _one("queue_bytes", "gauge", "Bytes that wait for a commit.", gauges.queue_bytes)
    yield _one("queue_limit_bytes", "gauge", "Requests are refused beyond it.", gauges.queue_limit_bytes)
    yield _Family(
        "rows",
        "gauge",
        "Rows in the file, by table, as the database estimates them.",
        [("", {"table": table}, rows) for table, rows in sorted(gauges.rows.items())],
    )
    yield _one("file_bytes", "gauge", "Size of the database file.", gauges.file_bytes)
    yield _one("wal_bytes", "gauge", "Size of the write-ahead log beside it.", gauges.wal_bytes)
    yield _one(
        "journal_bytes", "gauge", "Size of the requests beside it that are kept as they arrived.", gauges.journal_bytes
    )
    yield _one("max_size_bytes", "gauge", "What the three may take together: --max-size.", gauges.max_size_bytes)
    yield _one(
        "evidence_since_seconds",
        "gauge",
        "What was received before was removed, since the Unix epoch.",
        gauges.evidence_since_seconds,
    )
    yield _Family(
        "removed_rows",
        "gauge",
        "Rows that were removed for their age or for want of room, in the file's whole life, by table.",
        [("", {"table": table}, rows) for table, rows in sorted(gauges.removed_rows.items())],
    )
    yield _one("data_age_seconds", "gauge", "Since the newest span was received.", gauges.data_age_seconds)
    yield _Family(
        "access_log_lag_bytes",
        "gauge",
        "What an access log has that is not read yet.",
        [("", {"source": log.source}, log.lag_bytes) for log in gauges.access_logs],
    )
    yield _Family(
        "access_log_read_age_seconds",
        "gauge",
        "Since an access log was last read to its end.",
        [
            ("", {"source": log.source}, log.read_age_seconds)
            for log in gauges.access_logs
            if log.read_age_seconds is not None
        ],
    )


def _process(gauges: Gauges) -> Iterator[_Family]:
    yield _one("ready", "gauge", "1 while /readyz answers 200.", gauges.ready)
    yield _Family(
        "stale_files",
        "gauge",
        "1 while a certificate or token file cannot be used as it is now, and the one before it stays in use.",
        [("", {"what": what}, stale) for what, stale in sorted(gauges.stale.items())],
    )
    yield _one("resident_memory_bytes", "gauge", "Resident memory of the process.", gauges.rss_bytes)
    yield _one("start_time_seconds", "gauge", "When it started, since the Unix epoch.", gauges.start_time_seconds)
    yield _Family("build_info", "gauge", "The release that runs.", [("", {"version": gauges.version}, 1)])


def _one(name: str, type_: Literal["counter", "gauge"], text: str, value: float | None) -> _Family:
    return _Family(name, type_, text, [] if value is None else [("", {}, value)])


def _buckets(histogram: Histogram) -> Iterator[_Sample]:
    total = 0
    for bound, count in zip((*COMMIT_BOUNDS_SECONDS, float("inf")), histogram.counts, strict=True):
        total += count
        yield "_bucket", {"le": _number(bound)}, total
    yield "_sum", {}, histogram.sum_seconds
    yield "_count", {}, total


def _lines(family: _Family) -> Iterator[str]:
    name = PREFIX + family.name
    yield f"# HELP {name} {family.help}"
    yield f"# TYPE {name} {family.type}"
    for suffix, labels, value in family.samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{suffix}{'{' + inside + '}' if inside else ''} {_number(value)}"


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    """A label's value: "backslash, double-quote and line feed are escaped"; what is no UTF-8 cannot be sent."""
    plain = text.encode("utf-8", "replace").decode()
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
