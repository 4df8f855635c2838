"""Enforce mode: what is refused, with which words, and that nothing gets past it; observe mode refuses nothing."""

import asyncio
import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from provenance import enforcement, faults, signing
from provenance.digest import render_content_digest
from provenance.enforcement import (
    ALTERED,
    MALFORMED,
    NO_STAMP,
    NOT_FRESH,
    NOT_PROVEN,
    SEEN_BEFORE,
    Guard,
    ModeError,
    Nonces,
    guard_of,
)
from provenance.http.asgi import ProvenanceMiddleware
from provenance.http.wsgi import ProvenanceWSGIMiddleware
from provenance.instrumentor import ProvenanceInstrumentor
from provenance.keys import HMAC, KeySet, new_key, render_key_set
from provenance.outgoing import Request, stamp_call
from provenance.stamp import Stamp
from tests.provenance.grpc.test_grpc_kinds import ANSWERS, CLIENTS, KINDS, SERVERS, SERVICE, Running

NOW_MS = 1_790_000_000_000
KEYS = KeySet.of([new_key("web", 1, HMAC), new_key("web", 2, HMAC)])
BODY = b"two shirts"
HASH = hashlib.sha256(BODY).hexdigest()
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def guard(**options: Any) -> Guard:
    return Guard(KEYS.by_kid.get, clock_ms=lambda: NOW_MS, **options)


def headers(*, kid: str = "web/2", at: int = NOW_MS, hash_hex: str | None = HASH, nonce: int = 1) -> dict[str, str]:
    own = {"traceparent": [TRACEPARENT]}
    stamp = Stamp(1, "web", at, nonce.to_bytes(12, "big"))
    outgoing = stamp_call(
        Request("POST", "/pay?to=ann", hash_hex, len(BODY), own), stamp, key=KEYS.by_kid[kid], request_id=None
    )
    return dict(outgoing.headers) | {"traceparent": TRACEPARENT}


def refusal(
    sent: dict[str, str], *, judge: Guard | None = None, target: str = "/pay?to=ann", **more: Any
) -> str | None:
    return (judge or guard()).refusal(sent, method="POST", target=target, **more)


def test_a_proven_call_is_taken() -> None:
    assert refusal(headers(), actual_hash=HASH) is None
    assert refusal(headers(kid="web/1")) is None, "an older key verifies as long as it is there"
    assert refusal(headers(hash_hex=None), actual_hash=HASH) is None, "a stream's digest comes too late to be checked"


REFUSED: dict[str, tuple[str, Callable[[], str | None]]] = {
    "no stamp": (NO_STAMP, lambda: refusal({})),
    "no MAC": (NO_STAMP, lambda: refusal({"provenance": 'v=1, kid="web", t=1, n=:AAAAAAAAAAAAAAAA:'})),
    "noise": (MALFORMED, lambda: refusal({"provenance": "?"})),
    "a digest of noise": (MALFORMED, lambda: refusal(headers() | {"content-digest": "?"})),
    "another key": (NOT_PROVEN, lambda: refusal(headers(), judge=Guard(lambda _: None, clock_ms=lambda: NOW_MS))),
    "another path": (NOT_PROVEN, lambda: refusal(headers(), target="/pay?to=eve")),
    "another trace": (NOT_PROVEN, lambda: refusal(headers() | {"traceparent": TRACEPARENT.replace("4bf9", "4bfa")})),
    "another digest": (
        NOT_PROVEN,
        lambda: refusal(headers() | {"content-digest": render_content_digest("cd" * 32)}, actual_hash="cd" * 32),
    ),
    "another body": (ALTERED, lambda: refusal(headers(), actual_hash="cd" * 32)),
    "old": (NOT_FRESH, lambda: refusal(headers(at=NOW_MS - 300_001))),
    "from the future": (NOT_FRESH, lambda: refusal(headers(at=NOW_MS + 300_001))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_proves_nothing_is_refused(case: str) -> None:
    expected, ask = REFUSED[case]
    assert ask() == expected


def test_a_call_that_came_before_is_refused_until_it_is_stale_anyway() -> None:
    now = [NOW_MS]
    judge = Guard(KEYS.by_kid.get, clock_ms=lambda: now[0])
    assert refusal(headers(), judge=judge) is None
    assert refusal(headers(), judge=judge) == SEEN_BEFORE
    now[0] += 300_000
    assert refusal(headers(), judge=judge) == SEEN_BEFORE
    now[0] += 1
    assert refusal(headers(), judge=judge) == NOT_FRESH


def test_who_has_no_key_cannot_use_up_a_nonce() -> None:
    judge = guard()
    assert refusal(headers(), judge=judge, target="/other") == NOT_PROVEN
    assert refusal(headers(), judge=judge, actual_hash="cd" * 32) == ALTERED
    assert refusal(headers(), judge=judge) is None


def test_what_is_remembered_is_bounded() -> None:
    nonces = Nonces(limit=10)
    for number in range(100):
        stamp = Stamp(1, "web", NOW_MS, number.to_bytes(12, "big"))
        assert nonces.is_new(stamp, now_ms=NOW_MS, tolerance_ms=1000)
        assert not nonces.is_new(stamp, now_ms=NOW_MS, tolerance_ms=1000)
    assert len(nonces) == 10
    assert nonces.is_new(Stamp(1, "web", NOW_MS, bytes([255] * 12)), now_ms=NOW_MS + 2001, tolerance_ms=1000)
    assert len(nonces) == 1


def test_probes_are_let_in() -> None:
    for target in ("/grpc.health.v1.Health/Check", "/healthz", "/readyz?verbose"):
        assert refusal({}, target=target) is None
    assert refusal({}, target="/status") == NO_STAMP
    assert refusal({}, target="/status", judge=guard(excluded=("/status",))) is None


def test_a_lock_that_breaks_stays_shut() -> None:
    def broken(kid: str) -> None:
        raise RuntimeError(kid)

    faults.reset()
    assert refusal(headers(), judge=Guard(broken, clock_ms=lambda: NOW_MS)) == NOT_PROVEN
    assert faults.counts() == {"enforcement": 1}
    faults.reset()


def test_settings_that_cannot_be_used_are_told_at_the_start() -> None:
    assert guard_of({}) is None
    assert guard_of({"PROVENANCE_MODE": "enforce"}, "observe") is None
    asked = guard_of(
        {
            "PROVENANCE_MODE": "Enforce",
            "PROVENANCE_TOLERANCE_SECONDS": "2.5",
            "PROVENANCE_ENFORCE_EXCLUDED": "/status, /metrics",
        }
    )
    assert asked is not None
    assert asked.tolerance_ms == 2500
    assert {"/status", "/metrics", "/healthz"} <= set(asked.excluded)
    for environ in (
        {"PROVENANCE_MODE": "enforcing"},
        {"PROVENANCE_MODE": "enforce", "PROVENANCE_TOLERANCE_SECONDS": "soon"},
        {"PROVENANCE_MODE": "enforce", "PROVENANCE_TOLERANCE_SECONDS": "-1"},
    ):
        with pytest.raises(ModeError, match="expected"):
            guard_of(environ)


# --- gRPC -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def enforcing(tmp_path: Any) -> Iterator[None]:
    """This process signs what it sends, and refuses what is not signed with a key of its file."""
    path = tmp_path / "keys.json"
    path.write_text(render_key_set(KeySet.of([new_key("unknown_service", 1, HMAC), new_key("checkout", 1, HMAC)])))
    signing.sign_with(path)
    enforcement.enforce(guard_of({"PROVENANCE_MODE": "enforce"}))
    ProvenanceInstrumentor().instrument()
    yield
    ProvenanceInstrumentor().uninstrument()
    enforcement.enforce(None)
    signing.sign_with(None)


@pytest.fixture
def start() -> Iterator[Callable[[str], Running]]:
    stops = []

    def run(server: str) -> Running:
        running, stop = SERVERS[server](registered=True)
        stops.append(stop)
        return running

    yield run
    for stop in stops:
        stop()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grpc_server_takes_what_is_signed_and_nothing_else(
    enforcing: None, spans: Any, start: Any, kind: str, server: str
) -> None:
    running = start(server)
    for client in ("sync", "aio"):
        assert CLIENTS[client](running.target, kind) == ANSWERS[kind]

    signing.sign_with(None)  # the client's key, and the server's
    with pytest.raises(grpc.RpcError) as refused:
        CLIENTS["sync"](running.target, kind)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.details() == NO_STAMP


def test_a_handler_that_cannot_be_observed_is_refused_too(
    enforcing: None, start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr("provenance.grpc.server.observed", broken)
    monkeypatch.setattr("provenance.grpc.aio_server.observed", broken)
    for server in ("sync", "aio"):
        with grpc.insecure_channel(start(server).target) as channel:
            stub: Any = channel.unary_unary(
                f"/{SERVICE}/unary_unary", StringValue.SerializeToString, StringValue.FromString
            )
            with pytest.raises(grpc.RpcError) as refused:
                stub(StringValue(value="x"))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    faults.reset()


# --- ASGI -----------------------------------------------------------------------------------------------------------------


class Application:
    """Reads its request to the end and says what it read; remembers whether it was called."""

    def __init__(self, *, answers_first: bool = False) -> None:
        self.answers_first = answers_first
        self.received: list[dict[str, Any]] = []
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if self.answers_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.received or self.received[-1].get("more_body"):
            self.received.append(await receive())
        if not self.answers_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def ask(app: Application, sent: dict[str, str], *pieces: bytes) -> list[dict[str, Any]]:
    answered: list[dict[str, Any]] = []
    messages = [
        {"type": "http.request", "body": piece, "more_body": at < len(pieces) - 1} for at, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pay",
        "raw_path": b"/pay",
        "query_string": b"to=ann",
        "headers": [(key.encode(), value.encode()) for key, value in sent.items()],
    }
    asyncio.run(ProvenanceMiddleware(app)(scope, receive, send))
    return answered


@pytest.fixture
def guarded() -> Iterator[None]:
    enforcement.enforce(guard())
    yield
    enforcement.enforce(None)


def test_an_asgi_application_is_asked_what_is_proven_and_nothing_else(guarded: None) -> None:
    app = Application()
    assert [m.get("status") for m in ask(app, headers(), BODY[:3], BODY[3:])] == [200, None]

    start, body = ask(app, {}, BODY)
    assert start["status"] == 401
    assert dict(start["headers"])[b"www-authenticate"] == b"Provenance"
    assert body["body"].decode().strip() == NO_STAMP
    assert app.calls == 1


@pytest.mark.parametrize("answers_first", [False, True])
def test_the_end_of_an_altered_body_never_arrives(guarded: None, answers_first: bool) -> None:  # noqa: FBT001
    app = Application(answers_first=answers_first)
    answered = ask(app, headers(), BODY[:3], BODY[3:] + b"!")

    assert [message["type"] for message in app.received] == ["http.request", "http.disconnect"]
    assert answered[0]["status"] == (200 if answers_first else 401)
    assert [message for message in answered if message.get("body") == b"done"] == []


def test_in_observe_mode_nothing_is_refused() -> None:
    app = Application()
    assert [m.get("status") for m in ask(app, {}, BODY)] == [200, None]


# --- WSGI, and the frameworks -----------------------------------------------------------------------------------------------


def ask_wsgi(app: Any, sent: dict[str, str], body: bytes) -> tuple[str, bytes]:
    """The status and the body of an answer over WSGI."""
    statuses: list[str] = []
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/pay",
        "QUERY_STRING": "to=ann",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "shop",
        "SERVER_PORT": "80",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    environ |= {f"HTTP_{key.upper().replace('-', '_')}": value for key, value in sent.items()}

    def start_response(status: str, _headers: Any, _error: Any = None) -> Any:
        statuses.append(status)
        return lambda _: None

    answered = b"".join(app(environ, start_response))
    return statuses[-1], answered


def reads_all(environ: Any, start_response: Any) -> list[bytes]:
    read = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [])
    return [read]


def flask_application() -> Any:
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")

    @app.post("/pay")
    def pay() -> bytes:
        data: bytes = flask.request.get_data()
        return data

    return app


@pytest.mark.parametrize("make", [lambda: ProvenanceWSGIMiddleware(reads_all), flask_application])
def test_a_wsgi_application_is_asked_what_is_proven_and_nothing_else(
    guarded: None, make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    ProvenanceInstrumentor().instrument()
    try:
        app = make()
        assert ask_wsgi(app, headers(), BODY) == ("200 OK", BODY)
        assert ask_wsgi(app, {}, BODY) == ("401 Unauthorized", f"{NO_STAMP}\n".encode())
        status, answered = ask_wsgi(app, headers(nonce=2), BODY[:-1] + b"!")
        assert status.startswith(("401", "400", "500"))
        assert BODY[:-1] + b"!" not in answered
    finally:
        ProvenanceInstrumentor().uninstrument()
