"""The collector's memory under full load for ten minutes: the curve, its slope, its peak.

    python tests/benchmarks/soak.py [--minutes 10] [--rate SPANS_PER_S] [--out soak.json] [--folder DIR]

A real `provenance collect` gets OTLP/gRPC from 16 clients, 512 spans a request, no span twice: as fast as it acknowledges, or at a rate. Its
memory is read from /proc every second, until the load has ended. Prints one JSON object, and a sparkline on stderr; --out writes the
JSON, and the curve as SVG beside it. The file grows all the while: --folder says on which disk.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.curves import Line, slope, sparkline, svg
from tests.benchmarks.processes import Load, check_file, collector, cpu_seconds, memory_mb, work_folder

EVERY_S = 1.0
WARM_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What /proc said at one moment.

    Attributes:
        seconds: Since the load began.
        rss_mb: VmRSS, in MB of 10^6 bytes, and of that
        anonymous_mb: RssAnon, what is not a file's.
        cpu_seconds: Of all threads, since the collector started.
        file_mb: The database, its log and its journal.
    """

    seconds: float
    rss_mb: float
    anonymous_mb: float
    cpu_seconds: float
    file_mb: float


def sample(pid: int, db: Path, begun: float) -> Sample:
    """Now."""
    memory = memory_mb(pid)
    size = sum(_size(file) for file in db.parent.glob(f"{db.name}*"))
    return Sample(
        round(time.perf_counter() - begun, 2),
        memory["VmRSS"],
        memory["RssAnon"],
        cpu_seconds(pid),
        round(size / 1e6, 1),
    )


def sampled(take: Callable[[], Sample], goes_on: Callable[[], bool], every_s: float = EVERY_S) -> list[Sample]:
    """Samples at a steady beat, the first at once, for as long as it goes on."""
    samples = [take()]
    begun = time.perf_counter()
    pause = threading.Event()
    while goes_on():
        pause.wait(max(0.0, begun + len(samples) * every_s - time.perf_counter()))
        samples.append(take())
    return samples


def curve(samples: Sequence[Sample]) -> dict[str, Any]:
    """Peak and slopes in MB a minute; those leave out the first minute, or a quarter where all is shorter than four."""
    warm_up_s = min(WARM_UP_S, samples[-1].seconds / 4)
    warm = [s for s in samples if s.seconds >= warm_up_s]
    minutes = [s.seconds / 60 for s in warm]
    return {
        "samples": len(samples),
        "peak_rss_mb": max(s.rss_mb for s in samples),
        "median_rss_mb": sorted(s.rss_mb for s in warm)[len(warm) // 2],
        "slope_after_s": round(warm_up_s, 1),
        "rss_slope_mb_per_min": round(slope(minutes, [s.rss_mb for s in warm]), 3),
        "anonymous_slope_mb_per_min": round(slope(minutes, [s.anonymous_mb for s in warm]), 3),
    }


def soak(seconds: float, rate: float | None, parent: Path | None) -> dict[str, Any]:
    """The load, the samples, and whether all of it was stored."""
    options: Mapping[str, float] = {"seconds": seconds} | ({} if rate is None else {"rate": rate})
    with work_folder(parent) as folder:
        with collector(folder) as ours:
            idle = memory_mb(ours.pid)["VmRSS"]
            with Load(ours, **options) as load:
                begun = time.perf_counter()
                samples = sampled(lambda: sample(ours.pid, ours.db, begun), lambda: load.is_sending)
                seen = load.result()
            ours.drain()
            after = memory_mb(ours.pid)
        stored = check_file(ours)
    inputs = {"protocol": "grpc", "spans_per_request": 512, "clients": 16, "seconds": seconds, "rate_spans_per_s": rate}
    return {
        "inputs": inputs,
        "memory": {
            "before_mb": idle,
            **curve(samples),
            "kernel_peak_rss_mb": after["VmHWM"],
            "after_mb": after["VmRSS"],
        },
        "load": seen,
        "spans_in_the_file": {"acknowledged": ours.sent_spans, "stored": stored},
        "curve": [asdict(s) for s in samples],
    }


def picture(report: Mapping[str, Any]) -> str:
    """The curve as SVG."""
    points, memory = report["curve"], report["memory"]
    title = (
        f"Memory at {report['load']['spans_per_s']:,} spans/s: peak {memory['peak_rss_mb']:.0f} MB, "
        f"{memory['rss_slope_mb_per_min']:+.2f} MB/min"
    )
    lines = [
        Line("VmRSS", "#1f77b4", _column(points, "rss_mb")),
        Line("RssAnon", "#d62728", _column(points, "anonymous_mb")),
    ]
    return svg(title, _column(points, "seconds"), lines)


def _column(points: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [point[name] for point in points]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a journal's segment that was written into the file meanwhile


def main() -> None:
    """Soak, print, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, help="spans a second; without it as fast as they are acknowledged")
    parser.add_argument("--out", type=Path, help="write the JSON here, and an SVG beside it")
    parser.add_argument("--folder", type=Path, help="where the evidence file grows (default: the temporary folder)")
    options = parser.parse_args()
    if options.minutes <= 0 or (options.rate is not None and options.rate <= 0):
        parser.error("--minutes and --rate are above 0")
    report = soak(options.minutes * 60, options.rate, options.folder)
    text = json.dumps(report, indent=2)
    print(text)
    print(sparkline(_column(report["curve"], "rss_mb")), json.dumps(report["memory"]), file=sys.stderr)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
        options.out.with_suffix(".svg").write_text(picture(report), encoding="utf-8")


if __name__ == "__main__":
    main()
