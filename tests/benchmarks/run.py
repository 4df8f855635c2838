"""Runs every benchmark beside this file, one after the other, and writes one JSON document.

Each `bench_*.py` is a program that prints one JSON object on stdout. A benchmark that fails is reported by name and makes this fail.

Usage: python tests/benchmarks/run.py [--out FILE] [--only SUBSTRING]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path


def run_one(script: Path) -> dict[str, object]:
    """What one benchmark printed, or why it printed nothing."""
    print(f"running {script.name}", file=sys.stderr)
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}"}
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> int:
    """Run the benchmarks; 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON here as well as to stdout")
    parser.add_argument("--only", default="", help="only benchmarks whose name contains this")
    options = parser.parse_args()
    scripts = sorted(path for path in Path(__file__).parent.glob("bench_*.py") if options.only in path.name)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    report = {"machine": machine} | {path.stem.removeprefix("bench_"): run_one(path) for path in scripts}
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if any("failed" in result for result in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
