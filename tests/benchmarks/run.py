"""Runs every benchmark beside this file, one after the other, and writes one JSON document.

Each `bench_*.py` is a program that prints one JSON object on stdout. A benchmark that fails is reported by name and makes this fail.

Usage: python tests/benchmarks/run.py [--out FILE] [--only SUBSTRING] [--quick]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
QUICK = {
    "bench_queries.py": ("--spans", "20000", "--runs", "2", "--folder", "{folder}"),
    "bench_detectors.py": ("--quick", "--folder", "{folder}"),
}
"""What makes a benchmark short where --quick alone does not, or would leave a file behind."""

VERSIONS = ("duckdb", "grpcio", "ptars", "pyarrow", "polars", "uvicorn", "rotel")


def run_one(script: Path, arguments: Sequence[str]) -> dict[str, object]:
    """What one benchmark printed, or why it printed nothing; how busy the machine was before it, and how long it took."""
    print(f"running {script.name}", file=sys.stderr)
    load, begun = os.getloadavg()[0], time.perf_counter()
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    around = {"load_average_before": round(load, 2), "took_s": round(time.perf_counter() - begun, 1)}
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}", **around}
    result: dict[str, object] = json.loads(done.stdout)
    return result | around


def machine() -> dict[str, object]:
    """Beside which the figures are to be read."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: installed(name) for name in VERSIONS},
    }


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def quick_arguments(script: Path, folder: str) -> list[str]:
    """What makes it short."""
    return [part.format(folder=folder) for part in QUICK.get(script.name, ("--quick",))]


def main() -> int:
    """Run the benchmarks; 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here as well as to stdout")
    parser.add_argument("--only", default="", help="only benchmarks whose name contains this")
    parser.add_argument("--quick", action="store_true", help="only to see that they work: the figures mean nothing")
    options = parser.parse_args()
    scripts = sorted(path for path in HERE.glob("bench_*.py") if options.only in path.name)
    if not scripts:
        parser.error(f"--only {options.only}: there are {', '.join(sorted(p.name for p in HERE.glob('bench_*.py')))}")
    report: dict[str, object] = {"machine": machine(), "quick": options.quick}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for path in scripts:
            result = run_one(path, quick_arguments(path, folder) if options.quick else ())
            report[path.stem.removeprefix("bench_")] = result
            failed |= "failed" in result
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
