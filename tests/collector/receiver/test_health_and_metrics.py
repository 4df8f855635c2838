"""/readyz says why not, and /metrics is what Prometheus can read."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from collector.errors import StoreError
from collector.receiver.counters import COMMIT_BOUNDS_SECONDS, REASONS, Counters
from collector.receiver.health import Health, Phase, newest_received, rss_bytes
from collector.receiver.metrics import CONTENT_TYPE, Gauges, LogLag, exposition
from collector.store.database import Store
from collector.store.reader import Reader
from collector.store.writer import Writer
from tests.collector.store.evidence_rows import make_batch, make_row


@dataclass
class FakeStatus:
    queued_bytes: int = 0
    failing: str | None = None
    broken: str | None = None


@dataclass
class FakeWatched:
    what: str = "the TLS certificate"
    problem: str | None = None


@dataclass
class Bench:
    """A health with everything that it looks at within a test's reach."""

    path: Path
    status: FakeStatus = field(default_factory=FakeStatus)
    counters: Counters = field(default_factory=Counters)
    logs: list[dict[str, object]] = field(default_factory=list)
    watched: FakeWatched = field(default_factory=FakeWatched)
    meta: dict[str, int] = field(default_factory=dict)

    def answer(self, sql: str) -> pa.Table:
        """What the file says of itself: three spans, and what is in `meta`."""
        if "FROM meta" in sql:
            return pa.table({"key": list(self.meta), "value": [str(value) for value in self.meta.values()]})
        return pa.table({"table_name": ["spans"], "rows": [3]})

    def health(self, query: Callable[[str], pa.Table] | None = None, **options: object) -> Health:
        return Health(
            path=self.path,
            query=query or self.answer,
            writer=lambda: self.status,
            queue_limit_bytes=1000,
            counters=self.counters,
            access_logs=lambda: self.logs,
            watched=[self.watched],
            phase=Phase.SERVING,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "evidence.duckdb")


async def get(health: Health, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(Starlette(routes=health.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://collector") as client:
        return await client.get(path)


Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(page: str) -> Samples:
    """Every sample by name and labels, as Prometheus's own client reads them; a duplicate is an error."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name.removeprefix("provenance_collector_"), tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


# --- /readyz --------------------------------------------------------------------------------------------------------------


async def test_ready(bench: Bench) -> None:
    answer = await get(bench.health(), "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (lambda _, health: setattr(health, "phase", Phase.STARTING), "the collector is starting"),
        (lambda _, health: setattr(health, "phase", Phase.STOPPING), "the collector is shutting down"),
        (lambda bench, _: setattr(bench.status, "broken", "DuckDB gave up"), "DuckDB gave up"),
        (lambda bench, _: bench.counters.failed("no space left"), "no space left"),
        (lambda bench, _: setattr(bench.status, "failing", "it cannot be removed"), "it cannot be removed"),
        (
            lambda bench, _: setattr(bench.status, "queued_bytes", 950),
            "950 bytes wait to be written, the limit is 1000",
        ),
    ],
)
async def test_not_ready_says_why(bench: Bench, turn: Callable[[Bench, Health], None], reason: str) -> None:
    health = bench.health()
    turn(bench, health)
    answer = await get(health, "/readyz")

    assert (answer.status_code, answer.json()) == (503, {"status": "not ready", "reasons": [reason]})
    assert samples((await get(health, "/metrics")).text)["ready", ()] == 0


async def test_what_is_kept_and_what_was_removed(bench: Bench) -> None:
    journal = bench.path.with_name(bench.path.name + ".journal")
    before = samples((await get(bench.health(), "/metrics")).text)
    journal.mkdir()
    (journal / "0000000001").write_bytes(b"x" * 55)
    bench.meta = {"evidence_since_unix_nano": 1_500_000_000, "retention_removed_spans": 7}
    after = samples((await get(bench.health(max_size_bytes=1000), "/metrics")).text)

    assert before["journal_bytes", ()] == 0
    assert not any(name in {"evidence_since_seconds", "removed_rows", "max_size_bytes"} for name, _ in before)
    assert after["journal_bytes", ()] == 55
    assert after["max_size_bytes", ()] == 1000
    assert after["evidence_since_seconds", ()] == 1.5
    assert after["removed_rows", (("table", "spans"),)] == 7


async def test_it_is_ready_again_after_a_commit(bench: Bench) -> None:
    bench.counters.failed("no space left")
    bench.counters.committed(0.01, {})
    assert (await get(bench.health(), "/readyz")).status_code == 200


# --- /metrics -------------------------------------------------------------------------------------------------------------


async def test_the_page_as_prometheus_reads_it(bench: Bench) -> None:
    bench.path.write_bytes(b"x" * 100)
    bench.path.with_name(bench.path.name + ".wal").write_bytes(b"x" * 7)
    bench.logs.append({"source": "/log", "lag_bytes": 9, "read_age_seconds": 1.5})
    bench.logs.append({"source": "/never read", "lag_bytes": 0, "read_age_seconds": None})
    bench.status.queued_bytes = 12
    bench.watched.problem = "half a renewal"
    bench.counters.accepted("grpc", 2, 20)
    bench.counters.refused("malformed", 3, 1)
    bench.counters.committed(0.004, {"spans": 20}, received_unix_nano=1_000_000_000)
    answer = await get(bench.health(clock=lambda: 3_500_000_000, started_unix_nano=5_000_000_000), "/metrics")
    page = samples(answer.text)

    assert answer.headers["content-type"] == CONTENT_TYPE
    assert page["accepted_requests_total", (("protocol", "grpc"),)] == 2
    assert page["accepted_spans_total", (("protocol", "grpc"),)] == 20
    assert page["accepted_spans_total", (("protocol", "http/json"),)] == 0
    assert page["refused_requests_total", (("reason", "malformed"),)] == 3
    assert page["refused_spans_total", (("reason", "malformed"),)] == 1
    assert {labels[0][1] for name, labels in page if name == "refused_requests_total"} == set(REASONS)
    assert (page["queue_bytes", ()], page["queue_limit_bytes", ()]) == (12, 1000)
    assert (page["file_bytes", ()], page["wal_bytes", ()]) == (100, 7)
    assert page["rows", (("table", "spans"),)] == 3
    assert page["committed_rows_total", (("table", "spans"),)] == 20
    assert page["data_age_seconds", ()] == 2.5
    assert page["access_log_lag_bytes", (("source", "/log"),)] == 9
    assert page["access_log_read_age_seconds", (("source", "/log"),)] == 1.5
    assert ("access_log_read_age_seconds", (("source", "/never read"),)) not in page
    assert page["stale_files", (("what", "the TLS certificate"),)] == 1
    assert page["start_time_seconds", ()] == 5
    assert page["resident_memory_bytes", ()] > 1e6
    assert page["ready", ()] == 1


async def test_the_histogram_adds_up(bench: Bench) -> None:
    for seconds in (0.0004, 0.002, 0.002, 0.7, 99.0):
        bench.counters.committed(seconds, {})
    page = samples((await get(bench.health(), "/metrics")).text)
    buckets = {
        float(dict(labels)["le"]): value for (name, labels), value in page.items() if name == "commit_seconds_bucket"
    }

    assert list(buckets) == [*COMMIT_BOUNDS_SECONDS, math.inf]
    assert (buckets[0.001], buckets[0.0025], buckets[1.0], buckets[30.0], buckets[math.inf]) == (1, 3, 4, 4, 5)
    assert page["commit_seconds_count", ()] == 5
    assert page["commit_seconds_sum", ()] == pytest.approx(99.7044)


async def test_what_cannot_be_known_is_left_out(bench: Bench) -> None:
    def fails(_: str) -> pa.Table:
        raise StoreError("the store is closed")

    page = samples((await get(bench.health(fails), "/metrics")).text)

    assert not {"data_age_seconds", "file_bytes", "rows"} & {name for name, _ in page}
    assert page["wal_bytes", ()] == 0
    assert ("accepted_requests_total", (("protocol", "grpc"),)) in page


@given(source=st.text(), age=st.floats(min_value=0, allow_infinity=False) | st.none(), rows=st.integers(0, 2**63))
def test_any_path_and_any_number_can_be_read_back(source: str, age: float | None, rows: int) -> None:
    gauges = Gauges(
        ready=True,
        queue_bytes=0,
        queue_limit_bytes=1,
        rows={"spans": rows},
        file_bytes=None,
        wal_bytes=None,
        data_age_seconds=age,
        rss_bytes=None,
        start_time_seconds=1.5,
        version="1",
        access_logs=[LogLag(source, 5, None)],
    )
    page = samples(exposition(Counters().read(), gauges))

    assert page["access_log_lag_bytes", (("source", source.encode("utf-8", "replace").decode()),)] == 5
    assert page.get(("data_age_seconds", ())) == age
    assert page["rows", (("table", "spans"),)] == rows


# --- with a store ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "evidence.duckdb") as opened:
        yield opened


def test_rows_and_the_newest_span_come_from_the_store(store: Store, bench: Bench) -> None:
    query = Reader(store).query
    assert newest_received(query) is None
    with Writer(store) as writer:
        rows = [make_row("spans", received_unix_nano=n) for n in (5, 9, 7)]
        writer.append({"spans": make_batch("spans", *rows)}).result(10)

    assert newest_received(query) == 9
    assert bench.health(query).gauges().rows["spans"] == 3
    assert bench.health(query).gauges().file_bytes


def test_resident_memory_is_that_of_this_process() -> None:
    measured = rss_bytes()
    assert measured is not None
    assert 10_000_000 < measured < 100_000_000_000
