"""Real gRPC calls, in both orders of activation: stamped on both sides, and otherwise as if we were not there."""

# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: FBT001  (pytest passes parameters and fixtures by name)

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry import trace
from opentelemetry.context import attach, detach, set_value
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode

from provenance import faults
from provenance.context import serving
from provenance.grpc import incoming, outgoing
from provenance.grpc import server as server_shell
from provenance.instrumentor import ProvenanceInstrumentor
from provenance.stamp import parse

SERVICE = "shop.Checkout"
DEADLINE_SECONDS = 20.0


@dataclass
class Servicer:
    """A servicer that remembers what it was sent."""

    metadata: list[tuple[str, Any]] = field(default_factory=list)
    answer: Callable[[StringValue, Any], StringValue] = lambda request, context: StringValue(value=request.value * 2)

    def buy(self, request: StringValue, context: grpc.ServicerContext) -> StringValue:
        self.metadata = [(key, value) for key, value in context.invocation_metadata()]
        return self.answer(request, context)

    def values(self, key: str) -> list[Any]:
        return [v for k, v in self.metadata if k == key]


class CountCalls:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        return self._function(value)


@dataclass
class Mesh:
    """One server and one channel; serialisers that count."""

    servicer: Servicer
    target: str
    serializer: Any = field(default_factory=lambda: CountCalls(StringValue.SerializeToString))
    response_serializer: Any = None

    def stub(self, channel: grpc.Channel | None = None, **kwargs: Any) -> Any:
        channel = grpc.insecure_channel(self.target) if channel is None else channel
        return channel.unary_unary(f"/{SERVICE}/Buy", self.serializer, StringValue.FromString, **kwargs)


def start_server(
    servicer: Servicer, response_serializer: Any, interceptors: tuple[Any, ...] = (), *, registered: bool = True
) -> tuple[grpc.Server, str]:
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=list(interceptors))
    handlers = {
        "Buy": grpc.unary_unary_rpc_method_handler(servicer.buy, StringValue.FromString, response_serializer),
        "Count": grpc.stream_stream_rpc_method_handler(
            lambda requests, context: iter(list(requests)), StringValue.FromString, StringValue.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if registered:
        server.add_registered_method_handlers(SERVICE, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def start(spans: Any) -> Iterator[Callable[..., Mesh]]:
    servers = []

    def run(**kwargs: Any) -> Mesh:
        servicer = Servicer()
        response_serializer = CountCalls(StringValue.SerializeToString)
        server, target = start_server(servicer, response_serializer, **kwargs)
        servers.append(server)
        return Mesh(servicer, target, response_serializer=response_serializer)

    yield run
    for server in servers:
        server.stop(None).wait(DEADLINE_SECONDS)


@pytest.fixture
def mesh(activate: Any, start: Any, no_faults: None) -> Mesh:
    activate(GrpcInstrumentorClient(), GrpcInstrumentorServer())
    mesh: Mesh = start()
    return mesh


WAYS = {
    "call": lambda stub, *args, **kwargs: stub(*args, **kwargs),
    "with_call": lambda stub, *args, **kwargs: stub.with_call(*args, **kwargs)[0],
    "future": lambda stub, *args, **kwargs: stub.future(*args, **kwargs).result(DEADLINE_SECONDS),
}
REQUEST = StringValue(value="two shirts")
HASH = hashlib.sha256(REQUEST.SerializeToString()).hexdigest()


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_both_spans_say_the_same_of_a_call(mesh: Mesh, spans: Any, way: str, registered: bool) -> None:
    response = WAYS[way](mesh.stub(_registered_method=registered), REQUEST, timeout=DEADLINE_SECONDS)

    assert response.value == "two shirtstwo shirts"
    client, server = spans.client(), spans.server()
    stamp = parse(mesh.servicer.values("provenance")[0])
    assert stamp.kid == "checkout"
    host, port = mesh.target.split(":")
    common = {
        "provenance.request.hash": HASH,
        "provenance.request.size": REQUEST.ByteSize(),
        "provenance.response.size": response.ByteSize(),
        "provenance.request_id": mesh.servicer.values("x-request-id")[0],
        "provenance.stamp.kid": "checkout",
        "provenance.stamp.nonce": stamp.nonce.hex(),
        "provenance.stamp.time_unix_ms": stamp.time_unix_ms,
    }
    assert {k: v for k, v in client.items() if k.startswith(("provenance.", "server.", "network."))} == common | {
        "server.address": host,
        "server.port": int(port),
    }
    peer_port = server.pop("network.peer.port")
    assert isinstance(peer_port, int)
    assert 0 < peer_port != int(port)
    assert {k: v for k, v in server.items() if k.startswith(("provenance.", "server.", "network."))} == common | {
        "provenance.stamp.status": "unsigned",
        "network.peer.address": "127.0.0.1",
    }


@pytest.mark.parametrize("way", WAYS)
def test_each_message_is_serialised_once(mesh: Mesh, spans: Any, way: str) -> None:
    WAYS[way](mesh.stub(), REQUEST, timeout=DEADLINE_SECONDS)

    assert mesh.serializer.calls == mesh.response_serializer.calls == 1


def test_a_server_span_is_the_child_of_its_client_span(mesh: Mesh, spans: Any) -> None:
    mesh.stub()(REQUEST)

    (client,), (server,) = spans.of(SpanKind.CLIENT), spans.of(SpanKind.SERVER)
    assert server.parent.span_id == client.context.span_id


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        [("k", "1")],
        (("k", "1"), ("bin-bin", b"\x00\xff")),
        [("content-digest", "sha-512=:AAAA:")],
    ],
)
def test_the_callers_metadata_is_kept(mesh: Mesh, spans: Any, metadata: Any) -> None:
    mesh.stub()(REQUEST, metadata=metadata)

    sent = [(k, v) for k, v in mesh.servicer.metadata if k in {"k", "bin-bin"} or v == "sha-512=:AAAA:"]
    assert sent == list(metadata or ())
    assert len(mesh.servicer.values("content-digest")) == 1, "ours only where the caller has none"
    assert spans.client()["provenance.request.hash"] == spans.server()["provenance.request.hash"] == HASH
    assert spans.server()["provenance.stamp.status"] == "unsigned"


def test_without_opentelemetry_duplicates_and_generators_are_kept_too(
    activate: Any, start: Any, no_faults: None
) -> None:
    # (OpenTelemetry's own client interceptor collapses duplicate keys.)
    activate()
    mesh = start()
    mesh.stub()(REQUEST, metadata=(pair for pair in [("k", "1"), ("k", "2")]))

    assert mesh.servicer.values("k") == ["1", "2"]
    assert len(mesh.servicer.values("provenance")) == len(mesh.servicer.values("content-digest")) == 1


def test_a_stamp_forwarded_from_another_call_is_replaced(mesh: Mesh, spans: Any) -> None:
    mesh.stub()(REQUEST, metadata=[("provenance", 'v=1, kid="gateway", t=1, n=:AAAAAAAAAAAAAAAA:')])

    assert len(mesh.servicer.values("provenance")) == 1
    assert spans.server()["provenance.stamp.kid"] == "checkout"


def test_the_request_id_being_served_is_forwarded(mesh: Mesh, spans: Any) -> None:
    with serving("from-the-gateway"):
        mesh.stub()(REQUEST)

    assert mesh.servicer.values("x-request-id") == ["from-the-gateway"]
    assert spans.client()["provenance.request_id"] == spans.server()["provenance.request_id"] == "from-the-gateway"


def test_a_server_forwards_the_request_id_to_its_own_calls(mesh: Mesh, start: Any, spans: Any) -> None:
    behind = start()
    stub = behind.stub()
    mesh.servicer.answer = lambda request, context: stub(request)
    mesh.stub()(REQUEST, metadata=[("x-request-id", "from-the-browser")])

    assert behind.servicer.values("x-request-id") == ["from-the-browser"]
    assert {s.attributes["provenance.request_id"] for s in spans.of(SpanKind.CLIENT, 2)} == {"from-the-browser"}


def test_a_request_id_of_the_callers_own_is_kept_and_recorded(mesh: Mesh, spans: Any) -> None:
    mesh.stub()(REQUEST, metadata=[("x-request-id", "mine")])

    assert mesh.servicer.values("x-request-id") == ["mine"]
    assert spans.client()["provenance.request_id"] == "mine"


@pytest.mark.parametrize("way", WAYS)
def test_an_abort_arrives_as_without_us(mesh: Mesh, spans: Any, way: str) -> None:
    def abort(request: Any, context: Any) -> StringValue:
        raise AssertionError(context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no stock"))

    mesh.servicer.answer = abort
    with pytest.raises(grpc.RpcError) as caught:
        WAYS[way](mesh.stub(), REQUEST, timeout=DEADLINE_SECONDS)

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "no stock"
    client, server = spans.client(), spans.server()
    assert client["provenance.request.hash"] == server["provenance.request.hash"] == HASH
    assert "provenance.response.size" not in client | server


def test_an_exception_in_the_servicer_arrives_as_without_us(
    mesh: Mesh, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Any, context: Any) -> StringValue:
        raise KeyError("stock")

    mesh.servicer.answer = fail
    with pytest.raises(grpc.RpcError) as caught:
        mesh.stub()(REQUEST)

    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "stock" in str(caught.value.details())
    assert spans.of(SpanKind.SERVER)[0].attributes["provenance.stamp.status"] == "unsigned"


def test_a_deadline_is_kept(mesh: Mesh, spans: Any) -> None:
    release = threading.Event()
    mesh.servicer.answer = lambda request, context: StringValue(value=str(release.wait(DEADLINE_SECONDS)))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            mesh.stub()(REQUEST, timeout=0.05)
    finally:
        release.set()

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert spans.of(SpanKind.CLIENT)[0].status.status_code is StatusCode.ERROR


def test_a_request_that_cannot_be_serialised_fails_as_without_us(
    mesh: Mesh, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    errors = []
    for active in (True, False):
        if not active:
            ProvenanceInstrumentor().uninstrument()
        with pytest.raises(grpc.RpcError) as caught:
            mesh.stub()("not a message")
        errors.append((caught.value.code(), caught.value.details()))
    ProvenanceInstrumentor().instrument()

    assert errors[0] == errors[1] == (grpc.StatusCode.INTERNAL, "Exception serializing request!")
    assert mesh.serializer.calls == 2, "once each"


def test_a_response_that_cannot_be_deserialised_fails_as_without_us(
    mesh: Mesh, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(raw: bytes) -> Any:
        raise ValueError(raw)

    stub = grpc.insecure_channel(mesh.target).unary_unary(f"/{SERVICE}/Buy", mesh.serializer, refuse)
    with pytest.raises(grpc.RpcError) as caught:
        stub(REQUEST)

    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_bytes_in_bytes_out_without_serialisers(mesh: Mesh, spans: Any) -> None:
    stub: Any = grpc.insecure_channel(mesh.target).unary_unary(f"/{SERVICE}/Buy")

    assert StringValue.FromString(stub(REQUEST.SerializeToString())).value == "two shirtstwo shirts"
    assert spans.client()["provenance.response.size"] == spans.server()["provenance.response.size"]


def test_done_callbacks_run_after_the_response_was_measured(mesh: Mesh, spans: Any) -> None:
    done = threading.Event()
    future = mesh.stub().future(REQUEST)
    future.add_done_callback(lambda _: done.set())

    assert done.wait(DEADLINE_SECONDS)
    assert future.code() is grpc.StatusCode.OK
    assert spans.client()["provenance.response.size"] > 0


class AddsMetadata(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        details = details._replace(metadata=[*(details.metadata or ()), ("k", "from the interceptor")])
        request = StringValue(value=request.value.upper())
        return continuation(details, request)


class Shouts(grpc.ServerInterceptor):
    """Changes the response message in place, after the servicer returned it."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)

        def behaviour(request: Any, context: Any) -> Any:
            response = handler.unary_unary(request, context)
            response.value += "!"
            return response

        return grpc.unary_unary_rpc_method_handler(behaviour, handler.request_deserializer, handler.response_serializer)


def test_the_users_interceptors_keep_working(activate: Any, start: Any, spans: Any, no_faults: None) -> None:
    activate(GrpcInstrumentorClient(), GrpcInstrumentorServer())
    mesh = start(interceptors=(Shouts(),))
    channel = grpc.intercept_channel(grpc.insecure_channel(mesh.target), AddsMetadata())

    assert mesh.stub(channel)(REQUEST).value == "TWO SHIRTSTWO SHIRTS!"
    assert mesh.servicer.values("k") == ["from the interceptor"]
    shouted = hashlib.sha256(StringValue(value="TWO SHIRTS").SerializeToString()).hexdigest()
    client, server = spans.client(), spans.server()
    assert client["provenance.request.hash"] == server["provenance.request.hash"] == shouted, "what really travelled"
    assert "provenance.response.size" not in server, "not known before the interceptor is done with it"
    assert mesh.response_serializer.calls == 1


@pytest.mark.parametrize("registered", [True, False])
def test_generic_and_registered_handlers_are_observed_once(
    activate: Any, start: Any, spans: Any, no_faults: None, registered: bool
) -> None:
    activate(GrpcInstrumentorClient(), GrpcInstrumentorServer())
    mesh = start(registered=registered)
    mesh.stub(_registered_method=registered)(REQUEST)

    assert spans.server()["provenance.request.hash"] == HASH


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ([], "absent"),
        ([("provenance", "nonsense!")], "malformed"),
        ([("provenance", "v=1, " + "x" * 6000)], "malformed"),
        ([("provenance", 'v=1, kid="x", t=1, n=:AAAAAAAAAAAAAAAA:')], "unsigned"),
        (
            [
                ("provenance", 'v=1, kid="x", t=1, n=:AAAAAAAAAAAAAAAA:'),
                ("content-digest", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
            ],
            "mismatched",
        ),
    ],
)
def test_a_server_says_what_it_found_of_a_caller_without_the_middleware(
    activate: Any, start: Any, spans: Any, no_faults: None, metadata: Any, status: str
) -> None:
    activate(GrpcInstrumentorServer())
    mesh = start()
    with suppress_instrumentation():
        stub = mesh.stub()
        assert stub(REQUEST, metadata=metadata).value == "two shirtstwo shirts"

    server = spans.server()
    assert server["provenance.stamp.status"] == status
    assert server["provenance.request.hash"] == HASH, "hashed all the same"
    assert server.get("provenance.stamp.kid") == ("x" if status in {"unsigned", "mismatched"} else None)


def test_a_proxy_in_front_vouches_for_the_peer(mesh: Mesh, spans: Any) -> None:
    mesh.stub()(REQUEST, metadata=[("x-forwarded-client-cert", "URI=spiffe://forged,By=x;URI=spiffe://mesh/web")])

    assert spans.server()["provenance.peer.principal"] == "spiffe://mesh/web"


def test_the_stamp_travels_when_nobody_instruments_and_touches_no_other_span(
    activate: Any, start: Any, spans: Any, no_faults: None
) -> None:
    activate()
    mesh = start()
    tracer: Any = trace.get_tracer("user")
    for kind in (SpanKind.INTERNAL, SpanKind.SERVER):
        with tracer.start_as_current_span("the user's own", kind=kind) as span:
            mesh.stub()(REQUEST)
        assert dict(span.attributes) == {}
        assert parse(mesh.servicer.values("provenance")[0]).kid == "checkout"
    with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes={"http.request.method": "GET"}) as span:
        mesh.stub()(REQUEST)
    assert dict(span.attributes) == {"http.request.method": "GET"}


def test_what_opentelemetry_suppresses_is_not_stamped(mesh: Mesh, spans: Any) -> None:
    # That is how exporters keep their own calls out of the traces.
    token = attach(set_value("suppress_instrumentation", True))
    try:
        mesh.stub()(REQUEST)
    finally:
        detach(token)

    assert mesh.servicer.values("provenance") == mesh.servicer.values("x-request-id") == []


def test_a_call_with_metadata_near_the_limit_goes_without_a_stamp(mesh: Mesh, spans: Any) -> None:
    assert mesh.stub()(REQUEST, metadata=[("big", "x" * 7000)]).value
    assert mesh.servicer.values("provenance") == []
    assert faults.counts() == {"grpc.client": 1}
    faults.reset()


def test_streams_pass_untouched(mesh: Mesh, spans: Any) -> None:
    stream = grpc.insecure_channel(mesh.target).stream_stream(
        f"/{SERVICE}/Count", StringValue.SerializeToString, StringValue.FromString
    )

    assert [m.value for m in stream(iter([REQUEST, REQUEST]))] == ["two shirts", "two shirts"]


@pytest.mark.parametrize(
    ("shell", "name"),
    [
        (outgoing, "request_hash"),
        (outgoing, "stamp_now"),
        (outgoing, "own_span"),
        (incoming, "request_hash"),
        (incoming, "incoming_attributes"),
        (incoming, "combined"),
        (server_shell, "observed"),
        (server_shell, "_observed_methods"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_broken_middleware_never_breaks_a_call(
    activate: Any,
    start: Any,
    spans: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shell: Any,
    name: str,
    way: str,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(name)

    faults.reset()
    activate(GrpcInstrumentorClient(), GrpcInstrumentorServer())
    mesh = start()
    monkeypatch.setattr(shell, name, broken)
    with caplog.at_level(logging.WARNING, logger="provenance"):
        assert (
            WAYS[way](mesh.stub(), REQUEST, timeout=DEADLINE_SECONDS, metadata=[("k", "1")]).value
            == "two shirtstwo shirts"
        )

    assert mesh.servicer.values("k") == ["1"]
    assert faults.counts() == {shell.PLACE: 1}
    assert [r.levelname for r in caplog.records if r.name == "provenance"] == ["WARNING"]
    assert mesh.serializer.calls == mesh.response_serializer.calls == 1
    spans.of(SpanKind.CLIENT)
    spans.of(SpanKind.SERVER)


def test_uninstrument_restores_everything(start: Any, spans: Any, no_faults: None) -> None:
    import grpc._channel
    import grpc._server

    before = grpc._channel.Channel.unary_unary, grpc._server._find_method_handler
    ProvenanceInstrumentor().instrument()
    mesh = start()
    stub = mesh.stub()
    stub(REQUEST)
    assert mesh.servicer.values("provenance")

    ProvenanceInstrumentor().uninstrument()
    assert (grpc._channel.Channel.unary_unary, grpc._server._find_method_handler) == before
    for each in (stub, mesh.stub()):  # one that was made while we were active, too
        each(REQUEST)
        assert mesh.servicer.values("provenance") == []
    assert mesh.serializer.calls == 3
