"""Milliseconds a question takes on ten million spans: the workbench's own questions, and what people write with `provenance sql`.

Prints one JSON object: what the data hold, and for each question the median and the 95th percentile of warm runs, with what it was
to reach, and the processor time of all threads, which says more where the machine has other work. Every run asks something else (another trace, another service), so that no answer is remembered. The file is
built once, in a few minutes, and kept in a folder for the next run.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.client import FileSource
from collector.forensics.edges import edges
from collector.forensics.search import TraceFilter, search
from collector.forensics.tables import NS_PER_S, Window
from collector.forensics.traces import trace, trace_records
from tests.benchmarks.synthetic_store import HOURS, TENANTS, write_store

RUNS = 20
SEED = 1
HOUR_NS = 3600 * NS_PER_S

Ask = Callable[[int], int]
"""Ask the nth variant of a question; returns how many rows came back."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, what it should take at most, and how."""

    name: str
    target_ms: int | None
    ask: Ask


@dataclass(frozen=True, slots=True)
class Facts:
    """What the questions need to know of the file."""

    first_unix_nano: int
    last_unix_nano: int
    trace_ids: tuple[str, ...]
    services: tuple[str, ...]
    operations: tuple[str, ...]


def facts_of(source: FileSource) -> Facts:
    """Read from the file; the traces lie evenly over its time."""
    [bounds] = source.query(
        "SELECT min(start_time_unix_nano) AS first, max(start_time_unix_nano) AS last, count(*) AS spans FROM spans"
    ).to_dicts()
    step = max(1, bounds["spans"] // (RUNS + 1))
    ids = source.query(f"SELECT trace_id FROM spans WHERE rowid % {step} = {step // 2} LIMIT {RUNS + 1}")
    services = source.query("SELECT DISTINCT service_name AS name FROM spans ORDER BY ALL")
    operations = source.query("SELECT DISTINCT name FROM spans WHERE kind = 'SERVER' AND witness = 'app' ORDER BY ALL")
    return Facts(bounds["first"], bounds["last"], *(tuple(f.to_series()) for f in (ids, services, operations)))


def workbench_questions(source: FileSource, facts: Facts) -> list[Question]:
    """What the screens ask, from the question to the frame that is decoded for them."""
    query = source.query
    last_hour = Window(facts.last_unix_nano - HOUR_NS, None)
    middle = facts.first_unix_nano + (facts.last_unix_nano - facts.first_unix_nano) // 2

    def found(n: int, **wanted: object) -> int:
        return search(query, TraceFilter(limit=500 + n % 2, **wanted)).height  # type: ignore[arg-type]

    def moved(n: int) -> Window:
        """The last hour, a moment later each time, as a clock has it."""
        return Window(facts.last_unix_nano - HOUR_NS + n * NS_PER_S, None)

    return [
        Question("trace by id", 20, lambda n: trace(query, _of(facts.trace_ids, n)).height),
        Question("access log of a trace", None, lambda n: trace_records(query, _of(facts.trace_ids, n)).height),
        Question(
            "trace that is not there",
            20,
            lambda n: trace(query, UUID(int=random.Random(n).getrandbits(128)).hex).height,
        ),
        Question("search: newest", 100, found),
        Question("search: service", 100, lambda n: found(n, service=_of(facts.services, n))),
        Question("search: operation", 100, lambda n: found(n, operation=_of(facts.operations, n))),
        Question("search: duration", 100, lambda n: found(n, min_duration_ns=(300 + n) * 10**6)),
        Question("search: errors", 100, lambda n: found(n, errors_only=True, service=_of(facts.services, n))),
        Question("search: one minute", 100, lambda n: found(n, window=Window(middle, middle + (60 + n) * NS_PER_S))),
        Question(
            "search: service in the last hour",
            100,
            lambda n: found(n, service=_of(facts.services, n), window=last_hour),
        ),
        Question(
            "search: all filters",
            100,
            lambda n: found(
                n, service=_of(facts.services, n), errors_only=True, min_duration_ns=5 * 10**7, window=moved(n)
            ),
        ),
        Question("search: slowest", None, lambda n: found(n, order="slowest", window=moved(n))),
        Question("search: attribute", 200, lambda n: found(n, text=f"app.tenant=tenant-{n % TENANTS}")),
        Question("search: rare attribute", 200, lambda n: found(n, text="feature_flag.key=flags/new-pricing")),
        Question("search: attribute with a column", 200, lambda n: found(n, text="http.route=/charge")),
        Question("search: one user", 200, lambda n: found(n, text=f"app.user.id=user-{n}")),
        Question("search: absent attribute", 20, lambda n: found(n, text=f"no.such.key{n}=1")),
        Question("RED by edge, last hour", 200, lambda n: edges(query, moved(n)).height),
    ]


def sql_questions(source: FileSource, facts: Facts) -> list[Question]:
    """What people write."""
    newest = "ORDER BY start_time_unix_nano DESC LIMIT 100"

    def rows(where: Callable[[int], str], what: str = "*", tail: str = newest) -> Ask:
        return lambda n: source.query(f"SELECT {what} FROM spans WHERE {where(n)} {tail}").height

    def counted(where: Callable[[int], str]) -> Ask:
        return rows(where, "count(*)", "")

    since = facts.last_unix_nano - HOUR_NS

    def attribute(key: str, value: str, column: str = "attributes") -> Callable[[int], str]:
        return lambda n: f"{column}['{key}'] = '{value.format(n=n)}'"

    return [
        Question("sql: trace by id", 20, rows(lambda n: f"trace_id = '{_of(facts.trace_ids, n)}'", tail="")),
        Question(
            "sql: spans_of_trace",
            20,
            lambda n: source.query(f"SELECT * FROM spans_of_trace('{_of(facts.trace_ids, n)}')").height,
        ),
        Question("sql: service", 100, rows(lambda n: f"service_name = '{_of(facts.services, n)}'")),
        Question("sql: service, counted", 100, counted(lambda n: f"service_name = '{_of(facts.services, n)}'")),
        Question("sql: operation", 100, rows(lambda n: f"name = '{_of(facts.operations, n)}'")),
        Question("sql: duration", 100, rows(lambda n: f"duration_ns > {(200 + n) * 10**6}")),
        Question("sql: status", 100, rows(lambda n: f"status_code = 'ERROR' AND duration_ns > {n}")),
        Question("sql: time, counted", 100, counted(lambda n: f"start_time_unix_nano >= {since + n}")),
        Question(
            "sql: all filters",
            100,
            rows(
                lambda n: (
                    f"service_name = '{_of(facts.services, n)}' AND name = 'POST /charge' AND duration_ns > 50000000 "
                    f"AND status_code = 'ERROR' AND start_time_unix_nano >= {since}"
                )
            ),
        ),
        Question("sql: attribute", 200, rows(attribute("app.tenant", "tenant-{n}"))),
        Question("sql: attribute, counted", 200, counted(attribute("app.tenant", "tenant-{n}"))),
        Question("sql: one user", 200, rows(attribute("app.user.id", "user-{n}"))),
        Question("sql: number", 200, rows(attribute("thread.id", "{n}", "attributes_json"))),
        Question("sql: attribute with a column", 200, rows(lambda n: f"http_route = '/charge' AND duration_ns > {n}")),
        Question("sql: absent attribute", 20, rows(attribute("no.such.key", "{n}"))),
        Question(
            "sql: RED by operation, last hour",
            200,
            lambda n: (
                source.query(
                    "SELECT service_name, name, count(*) AS calls, count(*) FILTER (status_code = 'ERROR') AS errors, "
                    "approx_quantile(duration_ns, 0.95) AS p95 FROM spans "
                    f"WHERE kind = 'SERVER' AND start_time_unix_nano >= {since + n} GROUP BY ALL ORDER BY calls DESC"
                ).height
            ),
        ),
    ]


def _of(values: Sequence[str], n: int) -> str:
    return values[n % len(values)]


def measure(question: Question, runs: int, budget_s: float) -> dict[str, object]:
    """One run to warm up, then `runs` of them, fewer where they would take longer than the budget."""
    took: list[float] = []
    busy: list[float] = []
    rows: list[int] = []
    for n in range(runs + 1):
        began, worked = time.perf_counter(), time.process_time()
        rows.append(question.ask(n))
        took.append((time.perf_counter() - began) * 1e3)
        busy.append((time.process_time() - worked) * 1e3)
        if sum(took) > budget_s * 1e3 and n > 2:
            break
    warm = sorted(took[1:])
    p50 = statistics.median(warm)
    verdict = {} if question.target_ms is None else {"target_ms": question.target_ms, "met": p50 <= question.target_ms}
    return {
        "p50_ms": round(p50, 1),
        "p95_ms": round(warm[min(len(warm) - 1, int(len(warm) * 0.95))], 1),
        "first_ms": round(took[0], 1),
        "cpu_p50_ms": round(statistics.median(busy[1:]), 1),
        "rows_p50": int(statistics.median(rows[1:])),
        "runs": len(warm),
        **verdict,
    }


def data_of(source: FileSource, path: Path) -> dict[str, object]:
    """The counts beside which the times are to be read."""
    [row] = source.query(
        "SELECT count(*) AS spans, approx_count_distinct(trace_id) AS traces_about, "
        "count(DISTINCT service_name) AS services, count(DISTINCT name) AS operations, "
        "(max(received_unix_nano) - min(received_unix_nano)) / 3600e9 AS hours, "
        "(SELECT count(*) FROM proxy_records) AS proxy_records FROM spans"
    ).to_dicts()
    [maps] = source.query(
        "SELECT avg(cardinality(attributes) + cardinality(attributes_json)) AS n FROM spans WHERE rowid % 100 = 0"
    ).to_series()
    size = path.stat().st_size
    return row | {"attributes_in_maps": maps, "file_bytes": size, "bytes_per_span": round(size / row["spans"], 1)}


def stored(folder: Path, spans: int, records: int | None = None, hours: int = HOURS) -> Path:
    """The file with so many spans and access log lines over so much time (see `synthetic_store`), built if it is not there; a
    half-built one never gets the name."""
    from collector.schema import SCHEMA_VERSION

    lines = "" if records is None else f"-records-{records}"
    path = folder / f"spans-{spans}{lines}-hours-{hours}-seed-{SEED}-schema-{SCHEMA_VERSION}.duckdb"
    if not path.exists():
        print(f"building {path}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.duckdb")
        unfinished.unlink(missing_ok=True)
        write_store(unfinished, spans=spans, seed=SEED, records=records, hours=hours)
        unfinished.rename(path)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mesh-provenance-bench")
    parser.add_argument("--db", type=Path, help="an evidence file of your own instead")
    parser.add_argument("--only", default="", help="only questions whose name contains this")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that one question may take in all")
    options = parser.parse_args()
    path = options.db or stored(options.folder, options.spans)
    source = FileSource(str(path))
    try:
        facts = facts_of(source)
        asked = [
            q for q in (*workbench_questions(source, facts), *sql_questions(source, facts)) if options.only in q.name
        ]
        answers = {}
        for question in asked:
            answers[question.name] = measure(question, options.runs, options.budget)
            print(f"{question.name}: {answers[question.name]}", file=sys.stderr)
        report = {"cores": os.cpu_count(), "data": data_of(source, path), "questions": answers}
    finally:
        source.close()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
