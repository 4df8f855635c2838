"""What a collector takes: time until it is ready, memory and processor while nothing happens, bytes a span on disk.

Prints one JSON object.

    ready        from the start of the process until /readyz answers 200, on a new file and on one with spans; asked every 10 ms
    idle         resident memory, and the processor time of all threads in percent of a core, of a collector to which nobody has talked
    disk         of the file that a stopped collector leaves, everything in it counted, beside the rows of `spans` alone as Parquet: the same
                 Arrow rows in the same order, zstd, written by pyarrow with its defaults and row groups of the same size
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.schema import arrow_schema
from collector.store.database import ROW_GROUP_ROWS
from tests.benchmarks.processes import BenchmarkError, collector, cpu_seconds, memory_mb, send, wait_quiet, work_folder

STARTS = 7
IDLE_S = 10.0
REQUESTS = 2000
READ_ROWS = ROW_GROUP_ROWS


def ready(folders: Sequence[Path]) -> dict[str, Any]:
    """Start and stop it on the file of each of these folders; in seconds."""
    seconds = []
    for folder in folders:
        with collector(folder) as ours:
            seconds.append(ours.ready_s)
    return {"starts": len(folders), "median_s": round(statistics.median(seconds), 2), "max_s": round(max(seconds), 2)}


def idle(folder: Path, seconds: float) -> dict[str, Any]:
    """After the start, and nothing else."""
    with collector(folder) as ours:
        wait_quiet(ours.pid)
        before, begun = cpu_seconds(ours.pid), time.perf_counter()
        time.sleep(seconds)  # nothing is waited for: this is what is measured
        busy = (cpu_seconds(ours.pid) - before) / (time.perf_counter() - begun)
        return {"seconds": seconds, "cpu_percent_of_a_core": round(busy * 100, 2), "memory_mb": memory_mb(ours.pid)}


def fill(folder: Path, requests: int) -> int:
    """How many spans were stored."""
    with collector(folder) as ours:
        send(ours, requests=requests)
        ours.drain()
        return ours.sent_spans


def disk(folder: Path, spans: int) -> dict[str, Any]:
    """Bytes a span, ours and as Parquet."""
    ours = sum(file.stat().st_size for file in folder.glob("evidence.duckdb*"))
    rows, parquet = as_parquet(folder / "evidence.duckdb", folder / "spans.parquet")
    if rows != spans:
        raise BenchmarkError(f"{spans} spans were stored, and the file has {rows}")
    return {
        "spans": spans,
        "ours_bytes_per_span": round(ours / spans, 1),
        "zstd_parquet_bytes_per_span": round(parquet / spans, 1),
        "ratio": round(ours / parquet, 3),
    }


def as_parquet(db: Path, target: Path) -> tuple[int, int]:
    """The rows of `spans` as a Parquet file; how many, and its bytes."""
    schema = arrow_schema("spans")
    connection = duckdb.connect(str(db), read_only=True)
    try:
        connection.execute("SET arrow_lossless_conversion = true")  # a UUID as 16 bytes, not as text
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for rows in in_groups(connection.sql("SELECT * FROM spans").to_arrow_reader(READ_ROWS)):
                writer.write_table(rows.cast(schema), ROW_GROUP_ROWS)
    finally:
        connection.close()
    return pq.read_metadata(target).num_rows, target.stat().st_size


def in_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of at least a row group, but for the last one."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def measure(starts: int, idle_s: float, requests: int, parent: Path | None) -> dict[str, Any]:
    """All of it."""
    with ExitStack() as folders:
        new = [folders.enter_context(work_folder(parent)) for _ in range(starts)]
        report = {"ready_on_a_new_file": ready(new), "idle": idle(new[0], idle_s)}
        filled = folders.enter_context(work_folder(parent))
        spans = fill(filled, requests)
        report["ready_on_the_filled_file"] = ready([filled] * starts)
        report["disk"] = disk(filled, spans)
    inputs = {
        "requests": requests,
        "spans_per_request": 512,
        "attributes_per_span": 9,
        "parquet_row_group": ROW_GROUP_ROWS,
    }
    return {"inputs": inputs} | report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="of 512 spans, in the file whose size is measured"
    )
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    options = parser.parse_args()
    starts, idle_s, requests = (1, 1.0, 20) if options.quick else (options.starts, IDLE_S, options.requests)
    print(json.dumps(measure(starts, idle_s, requests, options.folder), indent=2))


if __name__ == "__main__":
    main()
