"""From a cause to its finding: the demo's real mesh with its collector, and `provenance watch` beside it, as somebody on call has it.

Of each incident, by run: `seconds` from the moment at which it was planted until `watch` printed the finding that opened. Only what
belongs to what was planted counts; `others` is what else was opened.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from collector.demo.incidents import Planted, belongs
from collector.demo.ports import Reservation
from collector.demo.processes import Children
from collector.demo.startup import make_plan, start
from tests.benchmarks.processes import BenchmarkError

TARGET_S: Final = {"rogue": 10.0, "bypass": 10.0, "egress": 60.0, "slow": 60.0}
NS_PER_S: Final = 1_000_000_000
LATEST_S: Final = 60.0
"""After the last incident began: what was not told by then is missing."""


class Watch:
    """`provenance watch` on a collector, and when it printed what."""

    def __init__(self, url: str, state: Path, cache: Path) -> None:
        command = [sys.executable, "-m", "provenance.cli", "watch", url, "--format", "ndjson", "--state", str(state)]
        environment = os.environ | {"PROVENANCE_CACHE_DIR": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.opened: list[tuple[int, Mapping[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            event = json.loads(line)
            if event["event"] == "opened":
                self.opened.append((time.time_ns(), event))

    def told(self, planted: Planted) -> float | None:
        """Seconds from planting to telling; None where it was not told."""
        times = [at for at, event in self.opened if belongs(event, planted)]
        return round((min(times) - planted.planted_at_unix_nano) / NS_PER_S, 1) if times else None

    def stop(self) -> None:
        """End it, as a service manager does."""
        self.process.terminate()
        self.process.wait(30)
        self._reader.join(5)


def run(seed: int, duration_s: float, cache: Path) -> dict[str, object]:
    """One mesh from its start to its end: seconds by incident, and how many findings belong to none."""
    with tempfile.TemporaryDirectory() as folder, Reservation() as ports, Children(Path(folder)) as children:
        plan = make_plan(ports, seed=seed, duration_seconds=duration_s, incidents=tuple(TARGET_S))  # type: ignore[arg-type]
        mesh = start(plan, Path(folder), Path(folder) / "evidence.duckdb", children)
        watch = Watch(mesh.url, Path(folder) / "watch.json", cache)
        try:
            planted = mesh.begin()
            end = max(p.planted_at_unix_nano for p in planted) / NS_PER_S + LATEST_S
            while time.time() < end and any(watch.told(p) is None for p in planted):
                time.sleep(0.2)
                children.check()
                if watch.process.poll() is not None:
                    raise BenchmarkError(f"watch ended with {watch.process.returncode}")
        finally:
            watch.stop()
    others = [event for _, event in watch.opened if not any(belongs(event, p) for p in planted)]
    return {
        "seed": seed,
        "seconds": {p.name: watch.told(p) for p in planted},
        "others": [event["explanation"] for event in others],
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """By incident: the median and the largest of the seconds, how often it was missed, and what was to be reached."""
    result: dict[str, object] = {}
    for name, target in TARGET_S.items():
        told = [seconds for one in runs if (seconds := one["seconds"][name]) is not None]
        result[name] = {
            "median_s": round(statistics.median(told), 1) if told else None,
            "max_s": max(told, default=None),
            "missed": len(runs) - len(told),
            "target_s": target,
        }
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of load; incidents from 40 %% of it on")
    parser.add_argument("--quick", action="store_true", help="only to see that it works: the figures mean nothing")
    options = parser.parse_args()
    count, duration_s = (1, 30.0) if options.quick else (options.runs, options.duration)
    with tempfile.TemporaryDirectory() as cache:
        runs = [run(options.seed + n, duration_s, Path(cache)) for n in range(count)]
    print(json.dumps({"incidents": summary(runs), "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
