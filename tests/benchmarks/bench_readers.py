"""What readers wait for while the collector ingests as fast as it can: a span to be seen, and answers.

Prints one JSON object. Both parts run on one file with a history, while 16 requests of 512 spans are always under way over OTLP/gRPC.

    visibility     from the moment before a request with one span is sent, beside the load, until a reader is given that span; the API is
                   asked for it every 50 ms, which is the resolution
    queries        a mix of the workbench's questions, one at a time: a trace by its id, RED by edge, a search by service, a filter in SQL; and
                   what ingesting loses by it
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.client import CollectorSource
from collector.forensics.edges import edges
from collector.forensics.search import TraceFilter, search
from collector.forensics.tables import NS_PER_S, Window
from collector.forensics.traces import trace
from collector.otlp.synthetic import trace_request
from tests.benchmarks.otlp_load import METHOD
from tests.benchmarks.payloads import SERVICES
from tests.benchmarks.processes import BenchmarkError, Collector, Load, collector, send, wait_until, work_folder

POLL_S = 0.05
HISTORY_REQUESTS = 2000
SECONDS = 30.0
RED_WINDOW_S = 60
TRACES = 200
PROBE_SEED = 10**9

Ask = Callable[[int], pl.DataFrame]


def visibility(ours: Collector, load: Load) -> dict[str, Any]:
    """One probe after the other, for as long as the load goes on."""
    acknowledged: list[float] = []
    seen: list[float] = []
    with grpc.insecure_channel(ours.endpoint("grpc")) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        grpc.channel_ready_future(channel).result(timeout=30)
        while load.is_sending:
            for times, seconds in zip((acknowledged, seen), probe(ours, call, len(seen)), strict=True):
                times.append(seconds)
    return {"probes": len(seen), "seen_ms": spread(seen), "of_that_acknowledged_ms": spread(acknowledged)}


def probe(ours: Collector, call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", number: int) -> tuple[float, float]:
    """Send one span; seconds until it was acknowledged and until it was seen."""
    request = trace_request(1, seed=PROBE_SEED + number)
    trace_id = request.resource_spans[0].scope_spans[0].spans[0].trace_id.hex()
    body, arrived, sent = request.SerializeToString(), time.time_ns(), time.perf_counter()
    call(body, timeout=60)
    acknowledged = time.perf_counter() - sent
    ours.sent_spans += 1
    wait_until(lambda: is_seen(ours.source, trace_id, arrived), f"the span of {trace_id}", poll_s=POLL_S)
    return acknowledged, time.perf_counter() - sent


def is_seen(source: CollectorSource, trace_id: str, since_unix_nano: int) -> bool:
    """Whether a reader is given a span of this trace; only what arrived since then is looked through."""
    sql = f"SELECT count(*) AS n FROM spans WHERE received_unix_nano >= {since_unix_nano} AND trace_id = '{trace_id}'"
    return int(source.query(sql).item()) == 1


def questions(source: CollectorSource) -> dict[str, Ask]:
    """The mix; the nth variant of each asks for something else."""
    ids: Sequence[str] = source.query(
        f"SELECT trace_id::VARCHAR AS id FROM spans USING SAMPLE reservoir({TRACES} ROWS) REPEATABLE (1)"
    )["id"].to_list()
    query = source.query

    def since() -> int:
        return time.time_ns() - RED_WINDOW_S * NS_PER_S

    return {
        "trace by id": lambda n: trace(query, ids[n % len(ids)].replace("-", "")),
        "RED by edge, last minute": lambda n: edges(query, Window(since() + n, None)),
        "search: service": lambda n: search(query, TraceFilter(service=SERVICES[n % len(SERVICES)], limit=500 + n % 2)),
        "sql: status and duration": lambda n: query(
            f"SELECT * FROM spans WHERE status_code = 'ERROR' AND duration_ns > {40_000_000 + n} "
            "ORDER BY start_time_unix_nano DESC LIMIT 100"
        ),
    }


def answers(ours: Collector, load: Load) -> dict[str, Any]:
    """The questions in a drawn order for as long as the load goes on, and each once at least."""
    asked = questions(ours.source)
    took: dict[str, list[float]] = {name: [] for name in asked}
    order = random.Random(1)
    number = 0
    while load.is_sending or not all(took.values()):
        for name in order.sample(sorted(asked), len(asked)):
            begun = time.perf_counter()
            if asked[name](number).is_empty():
                raise BenchmarkError(f"{name}: no rows; then its time says nothing")
            took[name].append(time.perf_counter() - begun)
        number += 1
    everything = [seconds for times in took.values() for seconds in times]
    return {"all": spread(everything)} | {name: spread(times) for name, times in took.items()}


def spread(seconds: Sequence[float]) -> dict[str, float | int]:
    """Of some times, in ms."""
    if not seconds:
        raise BenchmarkError("the load was over before anything could be measured")
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "p50_ms": round(statistics.median(ordered) * 1e3, 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1e3, 1),
        "max_ms": round(ordered[-1] * 1e3, 1),
    }


def measure(seconds: float, history_requests: int, folder: Path) -> dict[str, Any]:
    """Both parts, after a load without readers to compare with."""
    with collector(folder) as ours:
        send(ours, requests=history_requests)
        ours.drain()
        alone = send(ours, seconds=seconds)
        ours.drain()
        with Load(ours, seconds=seconds) as load:
            seen = visibility(ours, load)
            load.result()
        ours.drain()
        before = ours.sent_spans
        with Load(ours, seconds=seconds) as load:
            answered = answers(ours, load)
            beside = load.result()
        ours.drain()
    inputs = {"spans_per_request": 512, "clients": 16, "seconds": seconds, "poll_ms": round(POLL_S * 1e3)}
    return {
        "inputs": inputs,
        "spans_per_s": {"alone": alone["spans_per_s"], "beside_queries": beside["spans_per_s"]},
        "visibility": seen,
        "queries": {"spans_in_the_file": {"before": before, "after": ours.sent_spans}} | answered,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load in each part")
    parser.add_argument(
        "--history", type=int, default=HISTORY_REQUESTS, help="requests of 512 spans in the file before"
    )
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    options = parser.parse_args()
    with work_folder(options.folder) as folder:
        seconds, history = (2.0, 20) if options.quick else (options.seconds, options.history)
        print(json.dumps(measure(seconds, history, folder), indent=2))


if __name__ == "__main__":
    main()
