"""Decoders under fire in one process: whatever the bytes, the outcome is rows or a DecodeError, and nothing else.

    python -m tests.campaigns.fuzz [--seconds 60] [--only traces|json|logs|inflate]

With `atheris` installed the bytes are guided by the code that they reach; without it they are mutations of real requests. Prints
one JSON object; exits with 1 when anything else was raised.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.errors import DecodeError
from collector.otlp import decode_group
from collector.otlp.access_logs import decode_access_logs
from collector.otlp.json_form import convert
from collector.receiver.inflate import inflate
from tests.campaigns.mutate import INTERESTING, json_seeds, mutate, mutate_json, seeds

LIMIT = 1024 * 1024


def traces(body: bytes) -> None:
    """Two requests, one of them whole: the broken one must not cost its neighbour anything."""
    good, broken = decode_group([_GOOD, body], [1, 2]).outcomes
    assert good.error is None
    assert good.span_count == _GOOD_SPANS
    assert broken.error is None or isinstance(broken.error, DecodeError)


def json_form(body: bytes) -> None:
    """JSON to protobuf, and that decoded."""
    with suppress(DecodeError):
        traces(convert(body, ExportTraceServiceRequest).payload)


def logs(body: bytes) -> None:
    """A log request."""
    with suppress(DecodeError):
        decode_access_logs(body, received_unix_nano=1)


def inflating(body: bytes) -> None:
    """A compressed body; its first byte says how."""
    with suppress(DecodeError):
        inflate(body[1:], ("gzip", "zstd", "deflate")[body[0] % 3] if body else "gzip", LIMIT)


_GOOD = seeds(3)[2]
_GOOD_SPANS = 4

TARGETS: dict[str, Callable[[bytes], None]] = {"traces": traces, "json": json_form, "logs": logs, "inflate": inflating}


def mutated(name: str, seconds: float, seed: int) -> dict[str, object]:
    """Mutations of real requests for so long."""
    random_, target = random.Random(seed), TARGETS[name]
    plain, texts = seeds(), json_seeds()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count += 1
        body = (
            mutate_json(random_.choice(texts), random_)
            if name == "json"
            else mutate(random_.choice(plain), random_, INTERESTING)
        )
        try:
            target(body)
        except Exception:  # noqa: BLE001 what is looked for
            return {"runs": count, "raised": traceback.format_exc(), "bytes": body.hex()[:2000]}
    return {"runs": count, "by": "mutation"}


_GUIDED = """
import sys, atheris
with atheris.instrument_imports(include=["collector"]):
    from tests.campaigns import fuzz
atheris.Setup([sys.argv[0], "-max_total_time=" + sys.argv[2], "-max_len=4096", "-timeout=20", sys.argv[3]], fuzz.TARGETS[sys.argv[1]])
atheris.Fuzz()
"""


def guided(name: str, seconds: float, corpus: str) -> dict[str, object]:
    """Guided by coverage, in a process of its own: libFuzzer ends the process that it runs in."""
    argv = [sys.executable, "-c", _GUIDED, name, str(int(seconds)), corpus]
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="replace", check=False, timeout=seconds * 3 + 120
    )
    runs = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("Done ")]
    if done.returncode or not runs:
        return {"raised": done.stderr[-4000:], "exit_code": done.returncode}
    return {"runs": int(runs[-1]), "by": "coverage"}


def fuzz(name: str, seconds: float, seed: int) -> dict[str, object]:
    """One target, in the best way that there is here."""
    import tempfile
    from pathlib import Path

    if importlib.util.find_spec("atheris") is None:
        return mutated(name, seconds, seed)
    with tempfile.TemporaryDirectory() as corpus:
        for number, body in enumerate(json_seeds() if name == "json" else seeds()):
            (Path(corpus) / str(number)).write_bytes(body)
        halves = {"mutation": mutated(name, seconds / 2, seed), "coverage": guided(name, seconds / 2, corpus)}
    report: dict[str, object] = dict(halves)
    if raised := [half["raised"] for half in halves.values() if "raised" in half]:
        report["raised"] = raised
    return report


def main() -> int:
    """Run the targets."""
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--only", choices=sorted(TARGETS), help="one target")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    options = parser.parse_args()
    names = [options.only] if options.only else list(TARGETS)
    report = {name: fuzz(name, options.seconds, options.seed) for name in names}
    print(json.dumps(report, indent=2))
    return 1 if any("raised" in result for result in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
