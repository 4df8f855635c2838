"""What a stamp costs a call: processor time of client and server together, bare, with OpenTelemetry, and with ours on top.

Prints one JSON object. Every variant is a process of its own with a gRPC server and a client in it; they live side by side and take
turns, block by block, so that they share the machine's moods. Medians of the blocks; differences are paired within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

SIZES = (200, 2_000, 64_000, 1_000_000)
VARIANTS = ("bare", "opentelemetry", "unsigned", "hmac", "ed25519")
METHOD = "/bench.Echo/Call"


# --- one variant, in a process of its own -----------------------------------------------------------------------------------


def instrumented(variant: str, keys: str) -> None:
    """Set up what the variant has; spans are made and ended, and exported to nobody."""
    if variant == "bare":
        return
    from opentelemetry import trace
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider(resource=Resource({"service.name": "bench"})))
    GrpcInstrumentorClient().instrument()
    GrpcInstrumentorServer().instrument()
    if variant != "opentelemetry":
        from provenance.instrumentor import ProvenanceInstrumentor
        from provenance.signing import sign_with

        ProvenanceInstrumentor().instrument()
        if variant != "unsigned":
            sign_with(keys)


def serve_blocks(variant: str, keys: str) -> None:
    """Answer every line `size calls` with the processor time that these calls took, in µs a call."""
    instrumented(variant, keys)
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, _: BytesValue(value=b"ok"), BytesValue.FromString, BytesValue.SerializeToString
    )
    service, name = METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])
    call = channel.unary_unary(METHOD, BytesValue.SerializeToString, BytesValue.FromString)
    for line in sys.stdin:
        size, calls = map(int, line.split())
        request = BytesValue(value=os.urandom(size))
        begun = time.process_time()
        for _ in range(calls):
            call(request)
        print((time.process_time() - begun) / calls * 1e6, flush=True)
    server.stop(None)


# --- all of them ------------------------------------------------------------------------------------------------------------


def key_files(folder: Path) -> dict[str, str]:
    """A key of each algorithm, in a file of its own."""
    from provenance.keys import ED25519, HMAC, KeySet, new_key, render_key_set

    files = {}
    for variant, algorithm in (("hmac", HMAC), ("ed25519", ED25519)):
        files[variant] = str(folder / f"{variant}.json")
        Path(files[variant]).write_text(render_key_set(KeySet.of([new_key("bench", 1, algorithm)])))
    return files


def measure(rounds: int, calls: int) -> dict[str, Any]:
    """Processor µs a call by size and variant, and what each variant adds to OpenTelemetry's."""
    with tempfile.TemporaryDirectory() as folder:
        files = key_files(Path(folder))
        workers = {
            variant: subprocess.Popen(
                [sys.executable, __file__, "--variant", variant, "--keys", files.get(variant, "")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for variant in VARIANTS
        }

        def block(variant: str, size: int, calls: int) -> float:
            worker = workers[variant]
            told, said = cast("IO[str]", worker.stdin), cast("IO[str]", worker.stdout)
            print(size, calls, file=told, flush=True)
            return float(said.readline())

        report = {}
        for size in SIZES:
            few = max(5, calls if size < SIZES[-1] else calls // 10)
            for variant in VARIANTS:
                block(variant, size, max(5, few // 5))
            taken = [{variant: block(variant, size, few) for variant in VARIANTS} for _ in range(rounds)]
            report[str(size)] = {
                "cpu_us_per_call": {v: round(statistics.median(each[v] for each in taken), 1) for v in VARIANTS},
                "added_to_opentelemetry_us": {
                    v: round(statistics.median(each[v] - each["opentelemetry"] for each in taken), 1)
                    for v in VARIANTS[2:]
                },
            }
        for worker in workers.values():
            cast("IO[str]", worker.stdin).close()
            worker.wait(30)
    return report


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
    """What our own code takes of a call, without gRPC, in one thread (`stamp_paths`)."""
    from tests.benchmarks import stamp_paths

    with tempfile.TemporaryDirectory() as folder:
        files = key_files(Path(folder))
        keys = {"unsigned": None, "hmac": files["hmac"]}
        return {variant: stamp_paths.measure(rounds=rounds, keys=file) for variant, file in keys.items()}


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
OURS = "from provenance.instrumentor import ProvenanceInstrumentor; ProvenanceInstrumentor().instrument()"


def start(rounds: int) -> dict[str, float]:
    """Processor ms until a gRPC service is instrumented: with OpenTelemetry alone, and what ours adds; medians of pairs."""
    taken: dict[str, list[float]] = {"opentelemetry": [], "added": []}
    for _ in range(rounds):
        alone, both = (_start_ms(program) for program in (TELEMETRY, TELEMETRY + OURS))
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
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--keys", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        serve_blocks(options.variant, options.keys)
        return
    rounds, calls = (1, 10) if options.quick else (15, 300)
    report = {
        "inputs": {"rounds": rounds, "calls_per_round": calls, "sizes": SIZES, "kind": "unary-unary, sync"},
        "by_size": measure(rounds, calls),
        "own_code_us_at_2000_bytes": own_code(rounds=3 if options.quick else 200),
        "start_cpu_ms": start(1 if options.quick else 7),
        "metadata_bytes_added": added_bytes(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
