"""Spans decoded a second of one core: ours, beside protobuf objects read row by row as dicts, and from those to Arrow.

Prints one JSON object. The functions take turns on the same requests, so that they share the machine's moods; CPU seconds, medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.insert(0, str(Path(__file__).parents[2]))

from collector.otlp import decode_group, decode_traces
from collector.otlp.synthetic import START_UNIX_NANO
from tests.benchmarks.payloads import bodies

SPANS = 512
GROUP = 8
"""Requests that wait at once: a group takes 2 MiB at most."""


def python_rows(payload: bytes) -> list[dict[str, Any]]:
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


def grouped(payloads: Sequence[bytes]) -> None:
    """Ours, as the collector does it under load."""
    for first in range(0, len(payloads), GROUP):
        group = payloads[first : first + GROUP]
        decode_group(group, [0] * len(group))


def each(function: Callable[[bytes], object]) -> Callable[[Sequence[bytes]], None]:
    """The function on one request after the other."""

    def run(payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            function(payload)

    return run


FUNCTIONS: dict[str, Callable[[Sequence[bytes]], None]] = {
    "ours_in_groups": grouped,
    "ours_one_by_one": each(lambda payload: decode_traces(payload, received_unix_nano=0)),
    "peer_python_dicts": each(python_rows),
    "peer_python_dicts_to_arrow": each(lambda payload: pa.RecordBatch.from_pylist(python_rows(payload))),
}


def spans_per_cpu_s(payloads: Sequence[bytes], rounds: int) -> dict[str, int]:
    """Per function the median of the rounds, after one to warm up."""
    measured: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    for _ in range(rounds + 1):
        for name, function in FUNCTIONS.items():
            begin = time.process_time()
            function(payloads)
            measured[name].append(len(payloads) * SPANS / (time.process_time() - begin))
    return {name: round(statistics.median(values[1:])) for name, values in measured.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    quick = parser.parse_args().quick
    requests, rounds = (GROUP, 1) if quick else (40, 5)
    payloads = list(islice(bodies(SPANS, seed=0, start_unix_nano=START_UNIX_NANO), requests))
    inputs = {
        "requests": requests,
        "spans_per_request": SPANS,
        "attributes_per_span": 9,
        "bytes_per_span": round(sum(map(len, payloads)) / requests / SPANS),
        "requests_per_group": GROUP,
        "rounds": rounds,
    }
    print(json.dumps({"inputs": inputs, "spans_per_cpu_s": spans_per_cpu_s(payloads, rounds)}, indent=2))


if __name__ == "__main__":
    main()
