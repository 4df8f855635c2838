"""Seconds, processor time and peak memory of each detector on ten million spans of one day: over an hour of it, and over all of it.

Prints one JSON object: what the data hold, and by detector and window the wall time, the processor seconds of all threads and the peak memory of
a process that does nothing else; and what scoring pairs for rhythm takes. `first` is what a command pays in a new process, the compiling of its statements included;
`again` is the same question a second later in the same process, as `watch` and the workbench ask it. The file is built once and kept.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.access import add_memory_argument
from collector.client import FileSource
from collector.forensics.beacon import observation
from collector.forensics.beacons import score_pairs
from collector.forensics.tables import NS_PER_S, Query, Window
from tests.benchmarks.bench_queries import data_of, stored

SPANS: Final = 10_000_000
DAY_HOURS: Final = 24
HOUR_NS: Final = 3600 * NS_PER_S
TARGET_S: Final = {"hour": 1.0, "day": 10.0}
PAIRS: Final = 100_000
CALLS_A_PAIR: Final = 100
"""On average, of a day: RITA's pairs with fewer than four have no score."""

Ask = Callable[[Query, Window], int]
"""Ask a detector about a window; returns how many rows it told."""


def _scan(kind: str) -> Ask:
    def ask(query: Query, window: Window) -> int:
        from collector.forensics.scan import examine

        return examine(query, kinds=[kind], window=window).findings.height  # type: ignore[list-item]

    return ask


def _rank(query: Query, window: Window) -> int:
    """The last sixth of the window against what was before it."""
    from collector.forensics.anatomy import take_apart_windows
    from collector.forensics.comparison import draw
    from collector.forensics.ranking import rank_causes

    since, until = window.since_unix_nano or 0, window.until_unix_nano or 0
    begun = until - (until - since) // 6
    was, now = draw(query, Window(since, begun)), draw(query, Window(begun, until))
    before, during = take_apart_windows([was.frame, now.frame])
    return len(rank_causes(before, during, "service"))


def _cost(query: Query, window: Window) -> int:
    from collector.forensics.cost import cost

    return cost(query, window, "hop").height


def _egress(query: Query, window: Window) -> int:
    from collector.forensics.destinations import View, examine_destinations

    return examine_destinations(query, window, View()).rows.height


DETECTORS: Final[Mapping[str, Ask]] = {
    "scan latency": _scan("latency"),
    "scan egress": _scan("egress"),
    "scan shadow": _scan("shadow"),
    "rank": _rank,
    "cost": _cost,
    "egress": _egress,
}


def measured(detector: str, path: Path, window: Window, runs: int, memory_bytes: int | None) -> dict[str, object]:
    """In this process: the first run, the median of the others, and the most memory that it ever held."""
    source = FileSource(str(path), memory_bytes=memory_bytes)
    runs_s: list[tuple[float, float]] = []
    rows = 0
    try:
        for n in range(runs):
            began, worked = time.perf_counter(), time.process_time()
            rows = DETECTORS[detector](source.query, _moved(window, n))
            runs_s.append((time.perf_counter() - began, time.process_time() - worked))
    finally:
        source.close()
    again = sorted(runs_s[1:])
    report: dict[str, object] = {"rows": rows, "first": _figures(runs_s[0])}
    if again:
        report["again"] = _figures(again[len(again) // 2])
    return report | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)}


def _figures(run: tuple[float, float]) -> dict[str, float]:
    return {"wall_s": round(run[0], 2), "cpu_s": round(run[1], 2)}


def _moved(window: Window, n: int) -> Window:
    """A moment later each time, as a clock has it: no answer is remembered."""
    return Window((window.since_unix_nano or 0) + n * NS_PER_S, window.until_unix_nano)


def in_a_process(detector: str, path: Path, window: Window, runs: int, memory_bytes: int | None) -> dict[str, object]:
    """The same in a process of its own, whose memory is only this detector's."""
    command = [sys.executable, __file__, "--db", str(path), "--runs", str(runs), "--of", detector]
    command += ["--window", f"{window.since_unix_nano}", f"{window.until_unix_nano}"]
    command += [] if memory_bytes is None else ["--memory", str(memory_bytes)]
    # Statements that an earlier process compiled and kept would make the first question one of those that are asked again.
    environment = os.environ | {"PROVENANCE_CACHE_DIR": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}"}
    report: dict[str, object] = json.loads(done.stdout)
    return report


def rhythm_of_pairs(pairs: int, calls: int) -> dict[str, object]:
    """Seconds to score so many pairs of source and destination, half of them clocks with jitter, half of them random."""
    rng = np.random.default_rng(1)
    numbers = np.repeat(np.arange(pairs), rng.poisson(calls, pairs))
    times = rng.uniform(0, 86_400, len(numbers))
    beats = np.arange(len(numbers)) % 997 * (86_400 / 997) * rng.uniform(0.9, 1.1, len(numbers))
    times = np.where(numbers % 2 == 0, times, np.minimum(beats, 86_399))
    start = 1_790_000_000
    sizes = rng.integers(100, 2_000, len(numbers))
    began, worked = time.perf_counter(), time.process_time()
    scored = score_pairs(
        numbers,
        ((start + times) * NS_PER_S).astype(np.int64),
        sizes,
        observation(start * NS_PER_S, (start + 86_400) * NS_PER_S),
        pairs,
    )
    took = _figures((time.perf_counter() - began, time.process_time() - worked))
    return {"pairs": pairs, "calls": len(numbers), "scored": scored.height, **took, "target_s": 10.0}


def windows_of(source: FileSource) -> dict[str, Window]:
    """The hour in the middle of the day, so that there is time before it, and everything."""
    [bounds] = source.query(
        "SELECT min(start_time_unix_nano) AS first, max(start_time_unix_nano) AS last FROM spans"
    ).to_dicts()
    middle = bounds["first"] + (bounds["last"] - bounds["first"]) // 2
    return {"hour": Window(middle, middle + HOUR_NS), "day": Window(bounds["first"], bounds["last"] + 1)}


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    path = options.db or stored(options.folder, 50_000 if options.quick else SPANS, hours=DAY_HOURS)
    if options.of:
        print(json.dumps(measured(options.of, path, Window(*options.window), options.runs, options.memory_bytes)))
        return
    source = FileSource(str(path))
    try:
        report: dict[str, object] = {"cores": os.cpu_count(), "data": data_of(source, path), "target_s": TARGET_S}
        windows = windows_of(source)
    finally:
        source.close()
    figures: dict[str, dict[str, object]] = {}
    for detector in DETECTORS:
        if options.only in detector:
            figures[detector] = {}
            for name, window in windows.items():
                runs = 1 if options.quick else options.runs
                figures[detector][name] = in_a_process(detector, path, window, runs, options.memory_bytes)
                print(f"{detector}, {name}: {figures[detector][name]}", file=sys.stderr)
    if options.only in "rhythm":
        report["rhythm"] = rhythm_of_pairs(PAIRS // 100 if options.quick else PAIRS, CALLS_A_PAIR)
    print(json.dumps(report | {"detectors": figures}, indent=2))
    if any("failed" in str(of_window) for by_window in figures.values() for of_window in by_window.values()):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mesh-provenance-bench")
    parser.add_argument("--db", type=Path, help="an evidence file of your own instead")
    parser.add_argument("--only", default="", help="only detectors whose name contains this")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fifty thousand spans, one run: the figures mean nothing")
    parser.add_argument(
        "--of", choices=tuple(DETECTORS), help="measure this one in this process, and print its figures alone"
    )
    add_memory_argument(parser)
    parser.add_argument("--window", type=int, nargs=2, metavar=("SINCE", "UNTIL"), help="for --of: Unix nanoseconds")
    return parser


if __name__ == "__main__":
    main()
