"""Lines of witnesses' files read a second of one core, by format, beside a peer that only takes each line apart.

Prints one JSON object. The peer of a format in JSON is `json.loads` of each line, of any other `str.split`: no time is parsed, no type
checked, no row made. Ours makes Arrow batches for the store, in the blocks of `provenance import`. Both take turns on the same bytes; CPU
seconds, medians. `import` is the command itself, from a file on disk into a new store.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.exchange.records import Rows
from collector.exchange.streams import STDIN, Stream
from collector.exchange.witness_files import LineOptions, read_lines
from tests.benchmarks.processes import BenchmarkError
from tests.benchmarks.witness_lines import FORMS, file_of

ROOT = Path(__file__).parents[2]


def ours(form: str, data: bytes) -> int:
    """Rows."""
    records = read_lines(Stream(STDIN, io.BytesIO(data)), STDIN, FORMS[form][0], LineOptions(), time.time_ns)
    return sum(batch.num_rows for record in records if isinstance(record, Rows) for batch in record.batches.values())


def peer(form: str, data: bytes) -> int:
    """Lines."""
    take_apart: Callable[[bytes], object] = json.loads if data.startswith(b"{") else bytes.split
    return len([take_apart(line) for line in io.BytesIO(data)])


def cpu_s(what: Callable[[str, bytes], int], form: str, data: bytes, lines: int) -> float:
    """Processor time; raises BenchmarkError where a line was not read."""
    begun = time.process_time()
    if (count := what(form, data)) < lines:
        raise BenchmarkError(f"{form}: {count} of {lines} lines were read")
    return time.process_time() - begun


def measure(form: str, lines: int, rounds: int) -> dict[str, float]:
    """The figures of one format."""
    data = file_of(form, lines)
    taken: dict[Callable[[str, bytes], int], list[float]] = {ours: [], peer: []}
    for _ in range(rounds + 1):
        for what, seconds in taken.items():
            seconds.append(cpu_s(what, form, data, lines))
    ours_s, peer_s = (statistics.median(seconds[1:]) for seconds in taken.values())
    return {
        "bytes_per_line": round(len(data) / lines),
        "lines_per_cpu_s": round(lines / ours_s),
        "best_lines_per_cpu_s": round(lines / min(taken[ours])),
        "peer_lines_per_cpu_s": round(lines / peer_s),
        "of_peer": round(peer_s / ours_s, 2),
    }


def import_command(form: str, lines: int) -> dict[str, float]:
    """The whole command, its start and the store's end included."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "access.log"
        log.write_bytes(file_of(form, lines))
        command = [sys.executable, "-m", "provenance.cli", "import", "--format", FORMS[form][0], str(log)]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [*command, "--into", str(Path(folder) / "store.duckdb")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"lines": lines, "lines_per_s": round(lines / wall), "lines_per_cpu_s": round(lines / cpu)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    parser.add_argument("--only", default="", help="only formats whose name contains this")
    options = parser.parse_args()
    lines, rounds = (2_000, 1) if options.quick else (60_000, 5)
    forms = [form for form in FORMS if options.only in form]
    report = {
        "inputs": {"lines": lines, "rounds": rounds},
        "formats": {form: measure(form, lines, rounds) for form in forms},
        "import": import_command("istio_json", lines * 10),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
