"""A real collector that is sent more than it may keep: how large its files get, what stays, and whether it agrees with itself."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from collector.client import open_source
from collector.otlp.synthetic import attribute, trace_request
from tests.collector.receiver.clients.collector_process import running_collector

DEADLINE = 60
LOAD_SECONDS = 5
LIMIT = 64 * 1024 * 1024
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SPANS = 512
NOISE = 400
"""Characters of hex in each span: it takes three times the room of an ordinary one."""

LOAD_SPANS = 150_000


class Load:
    """Requests with ids of their own, from a few clients, each of which waits for its answers; counts what was acknowledged."""

    def __init__(self, address: str, clients: int) -> None:
        self.spans = 0
        self.errors: list[Exception] = []
        self._address = address
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(clients)]

    def run(self, seconds: float, spans: int) -> Iterator[None]:
        """Yields now and then, until it has taken so long and sent so many."""
        for thread in self._threads:
            thread.start()
        begun = time.monotonic()
        while not self.errors and (self.spans < spans or time.monotonic() < begun + seconds):
            assert time.monotonic() < begun + 3 * DEADLINE
            self._over.wait(0.02)
            yield
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _client(self, number: int) -> None:
        template = Template(number)
        with grpc.insecure_channel(self._address) as channel:
            export = channel.unary_unary(EXPORT, request_serializer=bytes, response_deserializer=bytes)
            turn = 0
            while not self._over.is_set():
                turn += 1
                try:
                    export(template.request(turn // 10), timeout=DEADLINE, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.errors.append(error)
                    return
                with self._lock:
                    self.spans += SPANS


class Template:
    """A request whose ids, noise and instance are written over: making each anew would take longer than storing it.

    The noise keeps its spans from compressing better than different ones do; each has an event.
    """

    def __init__(self, number: int) -> None:
        request = trace_request(SPANS, seed=number)
        spans = request.resource_spans[0].scope_spans[0].spans
        for index, span in enumerate(spans):
            span.events.add(name="retry", time_unix_nano=span.start_time_unix_nano)
            span.attributes.append(attribute("app.noise", f"noise{index:03d}".ljust(NOISE, "-")))
        instance = request.resource_spans[0].resource.attributes[2].value
        instance.string_value = "instance-000000"
        self._random = random.Random(number)
        self._number = number
        self._body = bytearray(request.SerializeToString())
        self._instance = self._body.index(b"instance-000000")
        self._noise = [self._body.index(f"noise{index:03d}".encode()) for index in range(SPANS)]
        self._ids = {at for span in spans for at in self._places(span.trace_id)}

    def _places(self, trace_id: bytes) -> Iterator[int]:
        at = self._body.find(trace_id)
        while at >= 0:
            yield at
            at = self._body.find(trace_id, at + 16)

    def request(self, instance: int) -> bytes:
        """Another one. Instances come and go, as pods do: what only their spans referred to has to go with them."""
        body = self._body
        name = f"instance-{self._number}{instance:05d}".encode()
        body[self._instance : self._instance + len(name)] = name
        fresh: dict[bytes, bytes] = {}
        for at in self._ids:
            old = bytes(body[at : at + 16])
            body[at : at + 16] = fresh.setdefault(old, self._random.randbytes(16))
        for at in self._noise:
            body[at : at + NOISE] = self._random.randbytes(NOISE // 2).hex().encode()
        return bytes(body)


def size_bytes(db: Path) -> int:
    """The file, its log and its journal, by whatever names."""
    total = 0
    for folder, _, names in os.walk(db.parent):
        for name in names:
            path = Path(folder, name)
            if path.parent.name == f"{db.name}.journal" or (path.parent == db.parent and name.startswith(db.name)):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
    return total


@pytest.mark.slow
@pytest.mark.timeout(6 * DEADLINE)
def test_under_load_the_files_stay_within_the_limit_and_the_evidence_is_whole(tmp_path: Path) -> None:
    sizes: list[int] = []
    with running_collector(tmp_path, "--max-size", "64MiB") as collector:
        load = Load(collector.grpc, clients=4)
        sizes.extend(size_bytes(collector.db) for _ in load.run(LOAD_SECONDS, LOAD_SPANS))
        assert load.errors == []
        with httpx.Client(base_url=collector.url, timeout=DEADLINE) as http:
            deadline = time.monotonic() + DEADLINE
            while True:
                status = http.get("/api/v1/status").json()
                if status["spans"] + status["removed"].get("spans", 0) == load.spans or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            page = http.get("/metrics").text
        sizes.append(size_bytes(collector.db))
        assert status["spans"] + status["removed"]["spans"] == load.spans
        assert "provenance_collector_evidence_since_seconds 1" in page
        assert f"provenance_collector_max_size_bytes {LIMIT}" in page
        assert collector.stop() == 0
    assert max(sizes) <= 1.1 * LIMIT, f"{max(sizes) / LIMIT:.2f} of the limit"
    assert max(sizes) > LIMIT / 2, "a limit is to be used"
    assert size_bytes(collector.db) <= 1.1 * LIMIT
    check_whole(collector.db, status["evidence_since_unix_nano"])


def check_whole(db: Path, since_unix_nano: int) -> None:
    """What is left is the newest, and what belongs together is there together."""
    source = open_source(str(db))
    try:
        [oldest] = source.query("SELECT min(received_unix_nano) FROM spans").to_series()
        assert since_unix_nano <= oldest
        for table, ids in (("resources", "resource_id"), ("scopes", "scope_id")):
            lost = source.query(f"SELECT count(*) FROM spans ANTI JOIN {table} USING ({ids})").item()
            assert lost == 0, f"spans without their {table}"
        spans = source.query("SELECT count(*) FROM spans").item()
        assert source.query("SELECT count(DISTINCT (trace_id, span_id)) FROM spans").item() == spans
        assert source.query("SELECT count(*) FROM span_events").item() == spans
        assert source.query("SELECT count(*) FROM span_events ANTI JOIN spans USING (trace_id, span_id)").item() == 0
        [trace_id] = source.query("SELECT trace_id FROM spans ORDER BY received_unix_nano DESC LIMIT 1").to_series()
        assert source.query(f"SELECT count(*) FROM spans_of_trace('{trace_id}')").item() == 8
    finally:
        source.close()
