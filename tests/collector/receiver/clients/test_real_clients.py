"""OpenTelemetry's own exporters, Python's and JavaScript's, against a real collector: every span that was sent is found.

`package-lock.json` names no host (npm asks its configured registry for each package and checks the hash). To renew it:
edit the versions in `package.json`, then `npm install --package-lock-only --omit-lockfile-registry-resolved`.
"""

import json
import subprocess
import threading

import grpc
import pytest
from opentelemetry.exporter.otlp.common.http import Compression as JsonCompression
from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from collector.client import open_source
from tests.collector.receiver.clients.collector_process import (
    DEADLINE_S,
    HERE,
    javascript_modules,
    running_collector,
    wait_for,
)
from tests.collector.receiver.clients.sent_spans import expected_span, hex16, make_spans, stored_spans

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("otlp-clients")]

SPANS = 240
TOLD = 5
"""Acknowledged batches after which the collector is told to stop."""


def python_exporter(protocol, compression, collector, **options):
    gzip = compression == "gzip"
    match protocol:
        case "grpc":
            compress = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
            return GrpcExporter(endpoint=collector.grpc, insecure=True, compression=compress, **options)
        case "http/protobuf":
            http = Compression.Gzip if gzip else Compression.NoCompression
            return HttpExporter(endpoint=f"{collector.url}/v1/traces", compression=http, **options)
        case _:
            json_ = JsonCompression.GZIP if gzip else JsonCompression.NONE
            return JsonExporter(endpoint=f"{collector.url}/v1/traces", compression=json_, **options)


def javascript_command(modules, protocol, compression, collector, count, batch):
    url = f"http://{collector.grpc}" if protocol == "grpc" else f"{collector.url}/v1/traces"
    return ["node", HERE / "client.mjs", modules, protocol, url, compression, str(count), str(batch)]


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with running_collector(tmp_path_factory.mktemp("clients")) as collector:
        yield collector
        assert collector.stop() == 0


@pytest.fixture(scope="module")
def modules():
    return javascript_modules()


def ids_of(spans):
    return [(f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}") for s in spans]


def check_every_span(source, service_name, ids):
    count = f"SELECT count(*) FROM spans WHERE service_name = '{service_name}'"
    try:
        wait_for(lambda: source.query(count).item() >= SPANS)  # acknowledged is durable, and visible a moment later
        stored = stored_spans(source, service_name)
    finally:
        source.close()
    assert len(ids) == len(set(ids)) == SPANS
    assert set(stored) == set(ids)
    for i, id_ in enumerate(ids):
        assert stored[id_] == expected_span(i, ids)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_every_span_of_the_python_exporters_is_stored(collector, protocol, compression):
    service_name = f"python-{protocol}-{compression}"
    spans = make_spans(service_name, SPANS)
    exporter = python_exporter(protocol, compression, collector)
    for first in range(0, SPANS, 64):
        assert exporter.export(spans[first : first + 64]) is SpanExportResult.SUCCESS
    exporter.shutdown()

    check_every_span(open_source(collector.url), service_name, ids_of(spans))


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["grpc", "http", "proto"])  # the names of npm's packages; `http` is JSON
def test_every_span_of_the_javascript_exporters_is_stored(collector, modules, protocol, compression):
    argv = javascript_command(modules, protocol, compression, collector, SPANS, 64)
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert finished.returncode == 0, finished.stderr
    ids = [tuple(pair) for line in finished.stdout.splitlines() for pair in json.loads(line)]

    check_every_span(open_source(collector.url), f"javascript-{protocol}-{compression}", ids)


# --- a collector that stops in the middle ---------------------------------------------------------------------------------


def stored_ids(db):
    source = open_source(str(db))
    try:
        rows = source.query("SELECT replace(trace_id::VARCHAR, '-', '') AS trace, span_id FROM spans").rows()
    finally:
        source.close()
    return {(trace, hex16(span)) for trace, span in rows}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_what_a_stopping_collector_acknowledged_to_python_is_stored(tmp_path, protocol):
    acknowledged, told = [], threading.Semaphore(0)

    def send(collector, number):
        exporter = python_exporter(protocol, "none", collector, timeout=2)
        result = SpanExportResult.SUCCESS
        while result is SpanExportResult.SUCCESS:
            spans = make_spans(f"sender-{number}", 10)
            result = exporter.export(spans)
            if result is SpanExportResult.SUCCESS:
                acknowledged.extend(ids_of(spans))
                told.release()
        exporter.shutdown()

    with running_collector(tmp_path) as collector:
        senders = [threading.Thread(target=send, args=(collector, number)) for number in range(4)]
        for sender in senders:
            sender.start()
        for _ in range(TOLD * len(senders)):
            assert told.acquire(timeout=DEADLINE_S)
        assert collector.stop() == 0
        for sender in senders:
            sender.join(DEADLINE_S)
            assert not sender.is_alive()

    assert len(acknowledged) >= 10 * TOLD
    assert set(acknowledged) <= stored_ids(collector.db)


@pytest.mark.parametrize("protocol", ["grpc", "http", "proto"])
def test_what_a_stopping_collector_acknowledged_to_javascript_is_stored(tmp_path, modules, protocol):
    with running_collector(tmp_path) as collector:
        argv = javascript_command(modules, protocol, "none", collector, 50_000, 10)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
            assert client.stdout is not None
            lines = [client.stdout.readline() for _ in range(TOLD)]
            assert collector.stop() == 0
            rest, _ = client.communicate(timeout=DEADLINE_S)
            assert client.returncode == 1  # it had more to send

    acknowledged = {tuple(pair) for line in [*lines, *rest.splitlines()] for pair in json.loads(line)}
    assert len(acknowledged) >= 10 * TOLD
    assert acknowledged <= stored_ids(collector.db)
