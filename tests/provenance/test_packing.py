"""One attribute for all: the same said, by either side of a call; and separately where it cannot be written so."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
from opentelemetry.trace import SpanKind

from provenance import names, packing, recording
from provenance.digest import request_hash
from provenance.packing import MAX_PACKED_LENGTH, AttributesModeError, pack, pack_as_the_environment_says, unpack
from provenance.spans import add_attributes


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(packing.ENVIRONMENT, "packed")
    pack_as_the_environment_says()
    yield
    monkeypatch.delenv(packing.ENVIRONMENT)
    pack_as_the_environment_says()


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary"])
def test_both_sides_of_a_call_say_in_one_attribute_what_they_say_in_many(
    packed: None, spans: Any, activate: Any, no_faults: Any, kind: str
) -> None:
    activate(GrpcInstrumentorServer(), GrpcInstrumentorClient())
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler: Any = getattr(grpc, f"{kind}_rpc_method_handler")(lambda request, _: bytes(len(list(request))))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"M": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = getattr(channel, kind)("/t.T/M")
        call(b"one" if kind == "unary_unary" else iter(()))
    server.stop(None).wait()

    of_client, of_server = spans.client(), spans.server()
    packed_by = {"client": of_client.pop(names.PACKED), "server": of_server.pop(names.PACKED)}
    client, callee = (unpack(text) for text in packed_by.values())
    assert client is not None
    assert callee is not None
    client, callee = client | of_client, callee | of_server  # what is known late, of a stream, stands beside
    stamp = (names.STAMP_KID, names.STAMP_NONCE, names.STAMP_TIME, names.REQUEST_ID_ATTRIBUTE)
    for name in (*stamp, names.REQUEST_HASH, names.REQUEST_SIZE, names.RESPONSE_SIZE):
        assert client[name] == callee[name]
    assert not {*stamp, names.STAMP_STATUS} & {*of_client, *of_server}
    assert callee[names.STAMP_STATUS] == "unsigned"
    assert client[names.REQUEST_HASH] == request_hash(b"one" if kind == "unary_unary" else b"")
    assert client[names.SERVER_PORT] == port
    assert callee[names.NETWORK_PEER_ADDRESS] == "127.0.0.1"


@pytest.mark.parametrize(
    "attributes",
    [{names.STAMP_KID: "a b"}, {names.STAMP_KID: "x" * MAX_PACKED_LENGTH}],
    ids=["a space", "too long"],
)
def test_what_cannot_be_written_in_one_is_said_in_many(packed: None, spans: Any, attributes: dict[str, str]) -> None:
    with trace.get_tracer("t").start_as_current_span("t", kind=SpanKind.CLIENT) as span:
        assert pack(attributes) is None
        add_attributes(span, attributes, {names.SERVER_PORT: 1})  # type: ignore[arg-type]  # the SDK's has attributes

    assert spans.client() == attributes | {names.SERVER_PORT: 1}


@given(
    st.dictionaries(
        st.sampled_from([name for name, kind in names.PACKABLE.items() if kind is str]),
        st.text(st.characters(exclude_characters=" "), max_size=20),
    ),
    st.dictionaries(
        st.sampled_from([name for name, kind in names.PACKABLE.items() if kind is int]), st.integers(0, 10**15)
    ),
)
def test_what_is_packed_is_what_is_unpacked(texts: dict[str, str], numbers: dict[str, int]) -> None:
    attributes: dict[str, str | int] = {**texts, **numbers}
    text = pack(attributes)

    if not attributes:
        assert text is None
    else:
        assert text is not None
        assert unpack(text) == attributes


def test_a_late_hash_is_keyed_with_the_nonce_that_is_packed() -> None:
    nonce = "00" * 12
    text = pack({names.STAMP_NONCE: nonce, names.REQUEST_SIZE: 5})

    assert packing.recorded({names.PACKED: text}, names.STAMP_NONCE) == nonce
    assert packing.recorded({names.STAMP_NONCE: "ff", names.PACKED: text}, names.STAMP_NONCE) == "ff"
    assert packing.recorded({names.PACKED: "{cut"}, names.STAMP_NONCE) is None
    assert packing.recorded(None, names.STAMP_NONCE) is None
    assert recording.late_request({names.PACKED: text}, "ab" * 32, 5) == {
        names.REQUEST_HASH: "ab" * 32,
        names.REQUEST_SIZE: 5,
    }


@pytest.mark.parametrize("variable", packing.LIMITS)
def test_values_that_would_be_cut_off_are_not_packed(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(packing.ENVIRONMENT, "packed")
    monkeypatch.setenv(variable, "128")
    with pytest.raises(AttributesModeError, match=variable):
        pack_as_the_environment_says()
    assert not packing.is_packed()


def test_a_setting_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packing.ENVIRONMENT, "tight")
    with pytest.raises(AttributesModeError, match="expected separate or packed"):
        pack_as_the_environment_says()
