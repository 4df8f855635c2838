"""What a stamp costs a call: processor and wall time of client and server together, bare, with OpenTelemetry, with ours on top, and
bare through a pair of real Envoys.

Prints one JSON object. Every variant is a process of its own with a server and a client in it (`stamp_workers`); they live side by side
and take turns, block by block, so that they share the machine's moods. Medians of the blocks; differences are paired within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Self, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.sidecars import Pair, pair_before
from tests.benchmarks.stamp_workers import METHOD, TRANSPORTS, VARIANTS

ROOT = Path(__file__).parents[2]
SIZES = (200, 2_000, 64_000, 1_000_000)
OURS = VARIANTS[2:]
SIDECARS = "sidecars"
UNITS = ("cpu_us", "wall_us")

Taken = dict[str, float]
"""By unit, of a call, in µs."""


# --- all of them ------------------------------------------------------------------------------------------------------------


def key_files(folder: Path) -> dict[str, str]:
    """A key of each algorithm, in a file of its own."""
    from provenance.keys import ED25519, HMAC, KeySet, new_key, render_key_set

    files = {}
    for variant, algorithm in (("hmac", HMAC), ("ed25519", ED25519)):
        files[variant] = str(folder / f"{variant}.json")
        Path(files[variant]).write_text(render_key_set(KeySet.of([new_key("bench", 1, algorithm)])))
    return files


class Worker:
    """One variant's process; `call` has it make a block of calls."""

    def __init__(self, transport: str, variant: str, keys: str) -> None:
        program = Path(__file__).with_name("stamp_workers.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), transport, variant, keys],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._told, self._said = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        self.port = int(self._said.readline())

    def __enter__(self) -> Self:
        return self

    def call(self, size: int, calls: int, port: int = 0) -> Taken:
        """What these calls took."""
        print(size, calls, port, file=self._told, flush=True)
        answer: Taken = json.loads(self._said.readline())
        return answer

    def __exit__(self, *_: object) -> None:
        self._told.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._said.close()


def through(pair: Pair, bare: Worker, size: int, calls: int) -> Taken:
    """A block of bare calls through both Envoys, whose processor time counts too."""
    before = pair.cpu_seconds()
    taken = bare.call(size, calls, pair.port)
    envoys = (pair.cpu_seconds() - before) / calls * 1e6
    return {**taken, "cpu_us": taken["cpu_us"] + envoys}


def measure(transport: str, rounds: int, calls: int) -> dict[str, Any]:
    """By size: what a call takes in every variant, and what each adds to OpenTelemetry's; for gRPC, through a pair of Envoys too."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        files = key_files(folder)
        workers = {
            v: stack.enter_context(Worker(transport, v, files.get(v.removesuffix(", packed"), ""))) for v in VARIANTS
        }
        ways: dict[str, Callable[[int, int], Taken]] = {v: worker.call for v, worker in workers.items()}
        if transport == "grpc":
            pair = stack.enter_context(pair_before(workers["bare"].port, folder))
            ways[SIDECARS] = partial(through, pair, workers["bare"])
        report = {}
        for size in SIZES:
            few = max(5, calls if size < SIZES[-1] else calls // 5)
            for way in ways.values():
                way(size, max(5, few))
            report[str(size)] = compared([{name: way(size, few) for name, way in ways.items()} for _ in range(rounds)])
    return report


def compared(taken: Sequence[Mapping[str, Taken]]) -> dict[str, Any]:
    """Medians of the rounds by way, of the differences within a round, and ours as a part of what the Envoys add; pure."""
    ways = tuple(taken[0])
    report: dict[str, Any] = {
        "per_call": {w: {unit: median([each[w][unit] for each in taken]) for unit in UNITS} for w in ways},
        "added_to_opentelemetry": {w: _added(taken, w, "opentelemetry") for w in OURS},
    }
    if SIDECARS in ways:
        pair = report["sidecars_added_to_bare"] = _added(taken, SIDECARS, "bare")
        report["ours_of_what_sidecars_add"] = {
            w: {
                unit: round(report["added_to_opentelemetry"][w][unit]["median"] / pair[unit]["median"], 3)
                for unit in UNITS
            }
            for w in OURS
        }
    return report


def _added(taken: Sequence[Mapping[str, Taken]], way: str, to: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of the differences."""
    added = {}
    for unit in UNITS:
        differences = [each[way][unit] - each[to][unit] for each in taken]
        low, middle, high = statistics.quantiles(differences, n=4) if len(differences) > 1 else differences * 3
        added[unit] = {"quarter": round(low, 1), "median": round(middle, 1), "three_quarters": round(high, 1)}
    return added


def median(values: Sequence[float]) -> float:
    """To a tenth of a µs."""
    return round(statistics.median(values), 1)


def added_bytes() -> dict[str, int]:
    """What a stamp adds to a call's metadata, in bytes of names and values before HPACK."""
    from provenance.keys import ED25519, HMAC, new_key
    from provenance.outgoing import Request, stamp_call
    from provenance.stamp import Stamp

    own = {"traceparent": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]}
    stamp = Stamp(1, "checkout", time.time_ns() // 1_000_000, os.urandom(12))
    keys = {"unsigned": None, "hmac": new_key("checkout", 1, HMAC), "ed25519": new_key("checkout", 1, ED25519)}
    request = Request("POST", METHOD, "ab" * 32, 200, own)
    return {
        variant: sum(
            len(name) + len(value) for name, value in stamp_call(request, stamp, key=key, request_id="0" * 36).headers
        )
        for variant, key in keys.items()
    }


def own_code(rounds: int) -> dict[str, dict[str, float]]:
    """What our own code takes of a call, without gRPC, in one thread (`stamp_paths`); and what exporting its spans takes more."""
    from tests.benchmarks import stamp_paths

    with TemporaryDirectory() as folder:
        files = key_files(Path(folder))
        return {
            variant: stamp_paths.measure(
                rounds=rounds, keys=files.get(variant.removesuffix(", packed")), packed=variant.endswith(", packed")
            )
            for variant in OURS
        }


TELEMETRY = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import (
    GrpcAioInstrumentorClient, GrpcAioInstrumentorServer, GrpcInstrumentorClient, GrpcInstrumentorServer
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider(resource=Resource.create({"service.name": "bench"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
for each in (GrpcAioInstrumentorClient, GrpcAioInstrumentorServer, GrpcInstrumentorClient, GrpcInstrumentorServer):
    each().instrument()
"""
INSTRUMENT = "from provenance.instrumentor import ProvenanceInstrumentor; ProvenanceInstrumentor().instrument()"


def start(rounds: int) -> dict[str, float]:
    """Processor ms until a gRPC service is instrumented: with OpenTelemetry alone, and what ours adds; medians of pairs."""
    taken: dict[str, list[float]] = {"opentelemetry": [], "added": []}
    for _ in range(rounds):
        alone, both = (_start_ms(program) for program in (TELEMETRY, TELEMETRY + INSTRUMENT))
        taken["opentelemetry"].append(alone)
        taken["added"].append(both - alone)
    return {name: round(statistics.median(values), 1) for name, values in taken.items()}


def _start_ms(program: str) -> float:
    timed = f"import os, time\nbegun = time.process_time()\n{program}\nprint((time.process_time() - begun) * 1000, flush=True)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    parser.add_argument("--transport", choices=TRANSPORTS, action="append", help="only this one; may be given again")
    options = parser.parse_args()
    rounds, calls = (2, 10) if options.quick else (45, 100)
    report = {
        "inputs": {"rounds": rounds, "calls_per_round": calls, "sizes": SIZES, "load_average": os.getloadavg()},
        "by_transport": {each: measure(each, rounds, calls) for each in options.transport or TRANSPORTS},
        "own_code_us_at_2000_bytes": own_code(rounds=3 if options.quick else 1500),
        "start_cpu_ms": start(1 if options.quick else 7),
        "metadata_bytes_added": added_bytes(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
