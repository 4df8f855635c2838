"""Senders that do what OTLP says: a request that got no answer, or one that says so, is sent again, the same bytes, until it is acknowledged."""

import gzip
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import grpc
import httpx

from tests.campaigns.ledger import Ledger
from tests.campaigns.process import DEADLINE_S, CampaignError, Collector

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PAUSE_S = 0.05
TIMEOUT_S = 10.0
"""What OTLP exporters wait by default."""

Outcome = Literal["acknowledged", "again", "refused"]

_RETRYABLE_GRPC = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_RETRYABLE_HTTP = frozenset({429, 502, 503, 504})

_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_send_message_length", -1),
    # Each client a connection of its own, as processes would have.
    ("grpc.use_local_subchannel_pool", 1),
]

Post = Callable[[bytes], tuple[Outcome, str]]
"""Sends a request once; what came of it, and the words."""


@contextmanager
def over_grpc(collector: Collector) -> Iterator[Post]:
    """OTLP/gRPC on one channel."""
    with grpc.insecure_channel(f"127.0.0.1:{collector.grpc_port}", options=_CHANNEL) as channel:
        export: Any = channel.unary_unary(METHOD)

        def post(payload: bytes) -> tuple[Outcome, str]:
            try:
                answer = export(payload, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                outcome: Outcome = "again" if error.code() in _RETRYABLE_GRPC else "refused"
                return outcome, f"{error.code()}: {error.details()}"
            return ("refused", f"partial success: {answer!r}") if answer else ("acknowledged", "")

        yield post


@contextmanager
def over_http(collector: Collector, *, compressed: bool = False) -> Iterator[Post]:
    """OTLP/HTTP protobuf on one connection at a time."""
    headers = {"content-type": "application/x-protobuf"} | ({"content-encoding": "gzip"} if compressed else {})
    with httpx.Client(base_url=collector.url, headers=headers, timeout=TIMEOUT_S) as client:

        def post(payload: bytes) -> tuple[Outcome, str]:
            body = gzip.compress(payload, 1) if compressed else payload
            try:
                answer = client.post("/v1/traces", content=body)
            except httpx.TransportError as error:
                return "again", repr(error)
            if answer.status_code == 200:
                return ("refused", f"partial success: {answer.content!r}") if answer.content else ("acknowledged", "")
            outcome: Outcome = "again" if answer.status_code in _RETRYABLE_HTTP else "refused"
            return outcome, f"HTTP {answer.status_code}: {answer.content[:200]!r}"

        yield post


class Clients:
    """Threads that send the ledger's requests, one at a time each, until they are stopped.

    Attributes:
        last_refusal: What the collector said when it last wanted a request again.
    """

    def __init__(self, collector: Collector, ledger: Ledger, *, seed: int, pause_s: float, count: int = 6) -> None:
        self._ledger = ledger
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.last_refusal = ""
        ways = (
            lambda: over_grpc(collector),
            lambda: over_http(collector),
            lambda: over_grpc(collector),
            lambda: over_http(collector, compressed=True),
        )
        self._threads = [
            threading.Thread(target=self._run, args=(ways[n % len(ways)], random.Random(f"{seed}/{n}")), daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """No new requests; returns when every one that was begun is acknowledged. Raises CampaignError."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            if thread.is_alive():
                raise CampaignError(f"a request is not acknowledged after {DEADLINE_S:g} s: {self.last_refusal}")

    def _run(self, way: Callable[[], AbstractContextManager[Post]], random_: random.Random) -> None:
        try:
            with way() as post:
                while not self._stop.wait(random_.expovariate(1 / self._pause_s)):
                    self._send(post)
        except BaseException as error:
            self._ledger.complain(f"a client failed: {error!r}")
            raise

    def _send(self, post: Post) -> None:
        number, payload = self._ledger.next_request()
        while True:
            match post(payload):
                case "acknowledged", _:
                    self._ledger.acknowledge(number)
                    return
                case "refused", words:
                    self._ledger.complain(f"request {number} was refused: {words}")
                    return
                case _, words:
                    self.last_refusal = words
                    self._ledger.sent_again()
                    threading.Event().wait(PAUSE_S)
