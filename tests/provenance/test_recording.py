"""Keyed hashes in telemetry: both sides alike, no two calls alike, and nothing where the key is missing."""

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
from opentelemetry.trace import SpanKind

from provenance import faults, names, recording, signing
from provenance.digest import StreamHash, request_hash
from provenance.keys import HMAC, KeySet, new_key, render_key_set


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "keys.json"
    path.write_text(render_key_set(KeySet.of([new_key("checkout", 1, HMAC), new_key("hashes", 3, HMAC)])))
    monkeypatch.setenv(recording.ENVIRONMENT, "keyed")
    recording.record_as_the_environment_says()
    signing.sign_with(path)
    yield path
    signing.sign_with(None)
    monkeypatch.delenv(recording.ENVIRONMENT)
    recording.record_as_the_environment_says()


def test_both_sides_of_a_call_record_one_keyed_hash_and_two_calls_two(
    keyed: Path, spans: Any, activate: Any, no_faults: Any
) -> None:
    activate(GrpcInstrumentorServer(), GrpcInstrumentorClient())
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "t.T",
                {
                    "Pay": grpc.unary_unary_rpc_method_handler(lambda request, _context: request),
                    "Upload": grpc.stream_unary_rpc_method_handler(lambda requests, _context: b"".join(requests)),
                },
            ),
        )
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        pay: Any = channel.unary_unary("/t.T/Pay")
        upload: Any = channel.stream_unary("/t.T/Upload")
        for _ in range(2):
            pay(b"yes", timeout=20)
        upload(iter([b"y", b"es"]), timeout=20)
    server.stop(None).wait()

    def recorded(kind: SpanKind) -> set[object]:
        found = [dict(span.attributes or {}) for span in spans.of(kind, 3)]
        assert {each[names.HASH_KEY] for each in found} == {"hashes/3"}
        assert not any(names.REQUEST_HASH in each for each in found)
        return {each[names.KEYED_HASH] for each in found}

    stream = StreamHash()
    stream.update(b"y")
    stream.update(b"es")
    assert recorded(SpanKind.CLIENT) == recorded(SpanKind.SERVER)
    assert len(recorded(SpanKind.CLIENT)) == 3
    assert not recorded(SpanKind.CLIENT) & {request_hash(b"yes"), stream.hexdigest()}


def test_without_the_key_no_hash_is_recorded_and_that_is_told(keyed: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults.reset()
    signing.sign_with(None)

    attributes: dict[str, str | int] = {}
    recording.current_recording().add_request(attributes, b"\0", "ab" * 32, 5)
    recording.current_recording().add_text(attributes, b"\0", b"", b"")
    assert attributes == {names.REQUEST_SIZE: 5}
    assert "provenance keys new hashes" in caplog.text
    faults.reset()


def test_a_way_to_record_that_does_not_exist_is_no_silent_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(recording.ENVIRONMENT, "hashed")
    with pytest.raises(recording.HashModeError, match="expected plain or keyed"):
        recording.record_as_the_environment_says()


def test_the_key_that_everybody_has_signs_and_verifies_no_stamp(keyed: Path) -> None:
    assert signing.signing_key("hashes") is None
    assert signing.verification_key("hashes/3") is None
    assert signing.verification_key("checkout/1") is not None
