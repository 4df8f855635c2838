"""What the verdict of every call costs: `provenance calls` and the shadow detector over an hour of ten million spans and ten million lines.

The spans and lines lie evenly over `--spread` hours, and the last `--hours` of them are asked: `--spread 24` is an hour of a day, `--spread 1` has
everything in the hour. Prints one JSON object: what the data hold, and for each question seconds, CPU seconds of all threads and the most memory that its process
held. Each is asked in processes of its own, so that nothing is warm and the memory is its own: `first` is asked with nothing compiled, as
a command asks, `again` with the statements compiled, as a workbench and a watch ask. The file is built once, in a few minutes, and kept.

Usage: python tests/benchmarks/bench_calls.py [--spans N] [--records N] [--spread H] [--hours H] [--memory BYTES] [--folder DIR | --db FILE] [--quick]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import polars as pl

from collector.forensics.call_list import call_verdicts
from collector.forensics.shadow import examine_shadow
from collector.forensics.tables import NS_PER_S, Query, Window
from collector.store.database import Store
from collector.store.reader import Reader
from tests.benchmarks.bench_queries import stored
from tests.benchmarks.synthetic_store import HOURS

HOUR_NS = 3600 * NS_PER_S
TARGET_S = 2.0

QUESTIONS: dict[str, Callable[[Query, Window], int]] = {
    "calls": lambda query, window: call_verdicts(query, window).height,
    "shadow": lambda query, window: examine_shadow(query, window).calls,
}


def ask(name: str, path: Path, hours: float, memory: int | None) -> dict[str, object]:
    """Ask one question twice in this process; how many calls it judged, and what it took."""
    store = Store.open_read_only(path)
    if memory is not None:
        store.cursor().execute(f"SET GLOBAL memory_limit = '{memory}B'")
    reader, in_sql = Reader(store), [0.0]

    def query(sql: str) -> pl.DataFrame:
        began = time.process_time()
        answer = pl.DataFrame(reader.query(sql))
        in_sql[0] += time.process_time() - began
        return answer

    [last] = query("SELECT max(start_time_unix_nano) FROM spans").row(0)
    result: dict[str, object] = {}
    for turn in ("first", "again"):
        in_sql[0] = 0.0
        began, worked = time.perf_counter(), time.process_time()
        # A nanosecond later the second time: the same statement with another value in it.
        result["calls"] = QUESTIONS[name](query, Window(last - round(hours * HOUR_NS) + len(result), None))
        took = time.perf_counter() - began
        result[turn] = {
            "seconds": round(took, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
            "cpu_seconds_in_queries": round(in_sql[0], 2),
            "met": took <= TARGET_S,
        }
    store.close()
    return result | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "target_s": TARGET_S}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=int, default=10_000_000)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--spread", type=int, default=HOURS, help="hours that the file covers (default: %(default)s)")
    parser.add_argument(
        "--hours", type=float, default=1.0, help="how much of the end of the file (default: %(default)s)"
    )
    parser.add_argument("--memory", type=int, help="bytes that DuckDB may hold (default: what the command allows it)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mesh-provenance-bench")
    parser.add_argument("--db", type=Path, help="an evidence file of your own instead")
    parser.add_argument("--quick", action="store_true", help="only to see that it works: the figures mean nothing")
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(options.ask, options.db, options.hours, options.memory)))
        return
    if options.quick:
        options.spans = options.records = 20_000
    with tempfile.TemporaryDirectory() as short_lived:
        folder = Path(short_lived) if options.quick else options.folder
        path = options.db or stored(folder, options.spans, options.records, options.spread)
        report = {name: _alone(name, path, options) for name in QUESTIONS}
        data = data_of(path, options.hours)
        print(json.dumps({"hours": options.hours, "data": data, "questions": report}, indent=2))


def data_of(path: Path, hours: float) -> dict[str, object]:
    """What the figures are to be read beside: how much there is, and how much of it began in the hours that are asked."""
    store = Store.open_read_only(path)
    since = f"(SELECT max(start_time_unix_nano) FROM spans) - {round(hours * HOUR_NS)}"
    counts = [
        f"(SELECT count(*) {asked} FROM {table}) AS {table}{suffix}"
        for table in ("spans", "proxy_records")
        for suffix, asked in (("", ""), ("_asked", f"FILTER (start_time_unix_nano >= {since})"))
    ]
    [row] = Reader(store).query(f"SELECT {', '.join(counts)}").to_pylist()
    store.close()
    return {**row, "file_bytes": path.stat().st_size}


def _alone(name: str, path: Path, options: argparse.Namespace) -> object:
    command = [sys.executable, __file__, "--ask", name, "--db", str(path), "--hours", str(options.hours)]
    if options.memory is not None:
        command += ["--memory", str(options.memory)]
    # Statements that an earlier process compiled and kept would make the first question one of those that are asked again.
    environment = os.environ | {"PROVENANCE_CACHE_DIR": ""}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    main()
