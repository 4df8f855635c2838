"""Spans a second: decoded (beside protobuf objects read row by row, as dicts and from those to Arrow), and durable over OTLP/gRPC from a client in another process.

Prints one JSON object. Requests have 512 spans of about 450 bytes with 9 attributes. Decoding is measured in CPU seconds of one core; the
end-to-end figure in wall-clock seconds, from the first request to the last acknowledgement, which means committed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import grpc
import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.otlp import decode_traces
from collector.otlp.synthetic import trace_request

SPANS = 512
REQUESTS = 40
ROUNDS = 5
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
IN_FLIGHT = 16


def payloads(count):
    """Distinct requests of one service, as bytes."""
    return [trace_request(SPANS, seed=seed).SerializeToString() for seed in range(count)]


def python_rows(payload):
    """The peer: what a receiver in Python does without Arrow, one dict a span."""
    rows = []
    for resource_spans in ExportTraceServiceRequest.FromString(payload).resource_spans:
        resource = {kv.key: kv.value.string_value for kv in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                row = {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_span_id": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "start_time_unix_nano": span.start_time_unix_nano,
                    "end_time_unix_nano": span.end_time_unix_nano,
                    "status_code": span.status.code,
                    "service_name": resource["service.name"],
                }
                for kv in span.attributes:
                    row[kv.key] = getattr(kv.value, kv.value.WhichOneof("value") or "string_value")
                rows.append(row)
    return rows


def spans_per_second(functions, bodies):
    """Per function the median of some rounds, in spans per CPU second; the functions take turns, so that they share the machine's moods."""
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            begin = time.process_time()
            for body in bodies:
                function(body)
            rounds[name].append(len(bodies) * SPANS / (time.process_time() - begin))
    return {name: round(statistics.median(measured[1:])) for name, measured in rounds.items()}


def decoding():
    """Our decoder and its peers on the same requests."""
    bodies = payloads(REQUESTS)
    functions = {
        "decode_spans_per_cpu_s": lambda body: decode_traces(body, received_unix_nano=0),
        "peer_python_dicts_spans_per_cpu_s": python_rows,
        "peer_python_dicts_to_arrow_spans_per_cpu_s": lambda body: pa.RecordBatch.from_pylist(python_rows(body)),
    }
    weight = round(sum(map(len, bodies)) / len(bodies) / SPANS)
    return {"spans_per_request": SPANS, "bytes_per_span": weight, **spans_per_second(functions, bodies)}


# --- end to end -------------------------------------------------------------------------------------------------------


def send(port, requests):
    """The client process: sends with `IN_FLIGHT` requests under way, and prints what it saw."""
    bodies = payloads(REQUESTS)
    latencies: list[float] = []

    def note(sent: float, _: object) -> None:
        latencies.append(time.perf_counter() - sent)

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        pending = set()
        begin = time.perf_counter()
        for number in range(requests):
            sent = time.perf_counter()
            future = call.future(bodies[number % REQUESTS], timeout=60)
            future.add_done_callback(partial(note, sent))
            pending.add(future)
            while len(pending) >= IN_FLIGHT:
                pending = settle(pending)
        while pending:
            pending = settle(pending)
        seconds = time.perf_counter() - begin
    percentiles = statistics.quantiles(latencies, n=100)
    print(json.dumps({"seconds": seconds, "ack_ms_p50": percentiles[49] * 1e3, "ack_ms_p99": percentiles[98] * 1e3}))


def settle(pending):
    """What is still under way once some request was acknowledged; raises if one was refused."""
    finished = {future for future in pending if future.done()}
    if not finished:
        time.sleep(0.0005)
    for future in finished:
        future.result()
    return pending - finished


def end_to_end(requests):
    """A receiver and a store here, a client in a process of its own."""
    from collector.receiver.grpc_server import create_server
    from collector.receiver.ingest import Ingest
    from collector.store.database import Store
    from collector.store.writer import Writer

    with tempfile.TemporaryDirectory() as folder:
        with Store.open(Path(folder) / "bench.duckdb") as store, Writer(store) as writer:
            server, port = create_server(Ingest(writer), address="127.0.0.1:0")
            server.start()
            client = [sys.executable, __file__, "--send", str(port), "--requests", str(requests)]
            seen = json.loads(subprocess.run(client, stdout=subprocess.PIPE, check=True).stdout)
            stored = store.cursor().execute("SELECT count(*) FROM spans").fetchall()[0][0]
            commits = writer.status().commits
            server.stop(None).wait()
        size = (Path(folder) / "bench.duckdb").stat().st_size
    if stored != requests * SPANS:
        raise SystemExit(f"{requests * SPANS} spans were acknowledged and {stored} are stored")
    return {
        "durable_spans": stored,
        "durable_spans_per_s": round(stored / seen["seconds"]),
        "ack_ms_p50": round(seen["ack_ms_p50"], 1),
        "ack_ms_p99": round(seen["ack_ms_p99"], 1),
        "commits": commits,
        "stored_bytes_per_span": round(size / stored),
    }


def main():
    """Measure, or be the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400, help="requests of 512 spans in the end-to-end part")
    parser.add_argument("--send", type=int, metavar="PORT", help="be the client")
    options = parser.parse_args()
    if options.send:
        send(options.send, options.requests)
        return
    report = decoding()
    if find_spec("collector.store.writer"):
        report |= end_to_end(options.requests)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
