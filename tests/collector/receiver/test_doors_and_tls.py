"""Real gRPC and HTTP clients with the right credentials, with wrong ones and with none; and files that change meanwhile."""

import json
import logging
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme
from google.rpc import code_pb2, status_pb2
from starlette.types import Message, Scope

from collector.errors import ConfigError
from collector.otlp.synthetic import trace_request
from collector.receiver.counters import Counters
from collector.receiver.credentials import Credentials, check_protection, missing_protection, needed, parse_tokens
from collector.receiver.doors import HttpDoor
from collector.receiver.tls import Tls, TlsFiles
from collector.settings import Settings
from tests.collector.receiver.guarded_collector import DEADLINE, READ, WRITE, Client, Files, Guarded, running


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def tokens(shared: Files) -> Iterator[Guarded]:
    """Bound to loopback, without TLS, with tokens."""
    with running(shared.directory, **shared.tokens()) as collector:
        yield collector


# --- tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "grpc_code", "http_status", "asked"),
    [
        (WRITE, "OK", 200, 403),
        (READ, "PERMISSION_DENIED", 403, 200),
        (None, "UNAUTHENTICATED", 401, 401),
        ("x", "UNAUTHENTICATED", 401, 401),
        (WRITE[:-1], "UNAUTHENTICATED", 401, 401),
        (WRITE + "w", "UNAUTHENTICATED", 401, 401),
        (WRITE.upper(), "UNAUTHENTICATED", 401, 401),
    ],
)
def test_a_token_opens_its_own_door(
    tokens: Guarded, token: str | None, grpc_code: str, http_status: int, asked: int
) -> None:
    client, before = Client(token), tokens.spans()

    assert client.send_grpc(tokens) == grpc_code
    assert client.send_http(tokens).status_code == http_status
    assert client.ask(tokens).status_code == asked
    assert tokens.spans() - before == (2 if token == WRITE else 0)


@pytest.mark.parametrize(
    "path", ["/metrics", "/api/v1/status", "/", "/nowhere", "/healthz/", "//healthz", "/V1/traces"]
)
def test_everything_but_the_probes_takes_a_token(tokens: Guarded, path: str) -> None:
    for token in (None, WRITE):
        assert Client(token).get(tokens, path).status_code in {401, 403}
    assert Client(READ).get(tokens, path).status_code in {200, 307, 404}


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_take_none(tokens: Guarded, path: str) -> None:
    assert Client().get(tokens, path).status_code in {200, 503}


def test_a_refusal_over_http_is_a_status_and_a_challenge(tokens: Guarded) -> None:
    missing, forbidden = Client().send_http(tokens), Client(READ).send_http(tokens)
    in_json = Client().send_http(tokens, **{"content-type": "application/json; charset=utf-8"})
    asked = Client().ask(tokens)

    assert missing.headers["www-authenticate"] == 'Bearer realm="mesh-provenance"'
    status = status_pb2.Status.FromString(missing.content)
    assert missing.headers["content-type"] == "application/x-protobuf"
    assert (status.code, "OTEL_EXPORTER_OTLP_HEADERS" in status.message) == (code_pb2.UNAUTHENTICATED, True)
    assert 'error="insufficient_scope"' in forbidden.headers["www-authenticate"]
    assert status_pb2.Status.FromString(forbidden.content).message == "this token is for asking, not for sending"
    assert json.loads(in_json.content)["code"] == code_pb2.UNAUTHENTICATED
    assert "PROVENANCE_READ_TOKEN_FILE" in asked.json()["error"]


@pytest.mark.parametrize(
    "authorization", ["Basic " + WRITE, WRITE, "Bearer", "Bearer\t" + WRITE, "bearer  x " + WRITE, f"Bearer {WRITE}, Bearer {WRITE}"]
)  # fmt: skip
def test_headers_that_are_no_bearer_token(tokens: Guarded, authorization: str) -> None:
    assert Client().send_http(tokens, authorization=authorization).status_code == 401


def test_the_scheme_is_case_insensitive(tokens: Guarded) -> None:
    assert Client().send_http(tokens, authorization=f"bearer {WRITE}").status_code == 200


def test_two_authorization_headers_are_nobodys(tokens: Guarded) -> None:
    headers = [("content-type", "application/x-protobuf"), *[("authorization", f"Bearer {WRITE}")] * 2]
    response = httpx.post(f"{tokens.url}/v1/traces", content=b"", headers=headers, timeout=DEADLINE)

    assert response.status_code == 401


def test_a_large_body_without_a_token_is_answered_and_not_decoded(tokens: Guarded) -> None:
    before, spans = tokens.refused("unauthenticated"), tokens.spans()
    body = trace_request(5000).SerializeToString()
    response = httpx.post(f"{tokens.url}/v1/traces", content=body, headers={"content-type": "application/x-protobuf"}, timeout=DEADLINE)  # fmt: skip

    assert len(body) > 1_000_000
    assert response.status_code == 401
    assert (tokens.refused("unauthenticated"), tokens.spans()) == (before + 1, spans)


def test_refusals_are_counted(tokens: Guarded) -> None:
    before = tokens.refused("unauthenticated"), tokens.refused("forbidden")
    Client().send_grpc(tokens)
    Client(READ).send_http(tokens)

    assert (tokens.refused("unauthenticated"), tokens.refused("forbidden")) == (before[0] + 1, before[1] + 1)


async def test_a_websocket_is_closed() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: object, send: object) -> None:
        raise AssertionError(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await HttpDoor(app, Credentials(), Counters())({"type": "websocket", "path": "/api/v1/query"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_without_token_files_loopback_is_open(files: Files) -> None:
    with running(files.directory) as collector:
        assert Client().send_grpc(collector) == "OK"
        assert Client("whatever").send_http(collector).status_code == 200
        assert Client().ask(collector).status_code == 200


def test_a_write_token_alone_leaves_asking_open(files: Files) -> None:
    with running(files.directory, write_token_file=files.write_tokens) as collector:
        assert Client().send_grpc(collector) == "UNAUTHENTICATED"
        assert Client().ask(collector).status_code == 200


def test_tokens_rotate_without_a_restart(files: Files) -> None:
    fresh = "fresh-" + "f" * 20
    with running(files.directory, **files.tokens()) as collector:
        files.put(files.write_tokens, WRITE, "# the next one", fresh)
        collector.trust.refresh()
        assert [Client(token).send_grpc(collector) for token in (WRITE, fresh)] == ["OK", "OK"]

        files.put(files.write_tokens, fresh)
        collector.trust.refresh()
        assert [Client(token).send_grpc(collector) for token in (WRITE, fresh)] == ["UNAUTHENTICATED", "OK"]
        assert [Client(token).send_http(collector).status_code for token in (WRITE, fresh)] == [401, 200]


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_file_that_makes_no_sense_leaves_the_old_tokens(
    files: Files, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with running(files.directory, **files.tokens()) as collector:
        files.write_tokens.unlink()
        if content is not None:
            files.put(files.write_tokens, content)
        collector.trust.refresh()
        collector.trust.refresh()

        assert Client(WRITE).send_grpc(collector) == "OK"
        assert [r.levelname for r in caplog.records if "stays in use" in r.getMessage()] == ["ERROR"]
        assert collector.health.gauges().stale["the list of write tokens"]
        files.put(files.write_tokens, "n" * 20)
        collector.trust.refresh()
        assert Client(WRITE).send_grpc(collector) == "UNAUTHENTICATED"
        assert not collector.health.gauges().stale["the list of write tokens"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no token in it"),
        ("# nothing\n\n", "no token in it"),
        ("short", "line 1: shorter than 16"),
        ("x" * 20 + "\nwith a space in it anyway", "line 2: a token has letters"),
        ("\n".join("x" * 20 + str(n) for n in range(101)), "at most 100"),
    ],
)
def test_token_files_that_are_none(content: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        parse_tokens(content, "--write-token-file x")
    assert "xxx" not in str(refused.value)


def test_a_token_file_must_be_there_and_ascii(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--read-token-file .* cannot be read: No such file"):
        Credentials(read_token_file=tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="not ASCII"):
        Credentials(write_token_file=tmp_path / "binary")


def test_one_token_cannot_be_for_both(files: Files) -> None:
    files.put(files.read_tokens, READ, WRITE)
    with pytest.raises(ConfigError, match="share a token"):
        Credentials(write_token_file=files.write_tokens, read_token_file=files.read_tokens)


def test_a_secret_that_everybody_may_read_is_warned_of(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    Credentials(write_token_file=files.write_tokens)
    assert caplog.records == []
    files.write_tokens.chmod(0o644)
    Credentials(write_token_file=files.write_tokens)

    assert "--write-token-file" in caplog.text
    assert "chmod o-r" in caplog.text


def test_credentials_show_no_token(files: Files) -> None:
    credentials = Credentials(**files.tokens())

    assert all(WRITE not in repr(watched.value) for watched in credentials.watched)


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        ("/v1/traces", "write"),
        ("/v1/logs", "write"),
        ("/v1", "read"),
        ("/healthz", None),
        ("/readyz", None),
        ("/x", "read"),
    ],
)
def test_what_a_path_takes(path: str, permission: str | None) -> None:
    assert needed(path) == permission


# --- what a host takes ----------------------------------------------------------------------------------------------------

_P = Path("x")
_TLS = {"tls_cert": _P, "tls_key": _P}


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"host": "127.0.0.1"}, ()),
        ({"host": "::1"}, ()),
        ({"host": "localhost"}, ()),
        ({"host": "0.0.0.0"}, ("--tls-cert", "--tls-key", "--write-token-file", "--read-token-file")),
        ({"host": "::", **_TLS}, ("--write-token-file", "--read-token-file")),
        ({"host": "10.0.0.1", **_TLS, "write_token_file": _P}, ("--read-token-file",)),
        ({"host": "10.0.0.1", **_TLS, "write_token_file": _P, "read_token_file": _P}, ()),
        ({"host": "collector.example", **_TLS, "tls_client_ca": _P}, ()),
        ({"host": "10.0.0.1", "write_token_file": _P, "read_token_file": _P}, ("--tls-cert", "--tls-key")),
    ],
)
def test_beyond_loopback_a_host_takes_tls_and_credentials(
    settings: dict[str, object], missing: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    told = Settings(**settings)  # type: ignore[arg-type]
    assert missing_protection(told) == missing
    if not missing:
        check_protection(told)
        return
    with pytest.raises(ConfigError) as refused:
        check_protection(told)
    assert all(flag in str(refused.value) for flag in (*missing, "--insecure", str(settings["host"])))
    check_protection(Settings(insecure=True, **settings))  # type: ignore[arg-type]
    assert "--insecure" in caplog.text


@pytest.mark.parametrize("settings", [{"tls_cert": _P}, {"tls_key": _P}, {"tls_client_ca": _P}])
def test_half_of_tls_is_refused_even_when_insecure(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--tls-"):
        check_protection(Settings(insecure=True, **settings))  # type: ignore[arg-type]


# --- TLS ------------------------------------------------------------------------------------------------------------------


def test_tls_on_both_ports(files: Files) -> None:
    with running(files.directory, **files.tls(), **files.tokens()) as collector:
        authority = files.authority.read_bytes()
        assert Client(WRITE, trusts=authority).send_grpc(collector) == "OK"
        assert Client(WRITE, trusts=authority).send_http(collector).status_code == 200
        assert Client(READ, trusts=authority).ask(collector).status_code == 200
        assert Client(trusts=authority).send_grpc(collector) == "UNAUTHENTICATED"
        assert collector.spans() == 2


def test_a_plaintext_client_gets_nothing_from_a_tls_port(files: Files) -> None:
    with running(files.directory, **files.tls()) as collector:
        assert Client().send_grpc(collector) == "UNAVAILABLE"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{collector.http_port}/healthz", timeout=DEADLINE)
        assert Client(trusts=files.authority.read_bytes()).get(collector, "/healthz").status_code == 200


def test_a_client_that_trusts_another_authority_does_not_connect(files: Files) -> None:
    foreign = trustme.CA().cert_pem.bytes()
    with running(files.directory, **files.tls()) as collector:
        assert Client(trusts=foreign).send_grpc(collector) == "UNAVAILABLE"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            Client(trusts=foreign).get(collector, "/healthz")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused(files: Files, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(files.authority))
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with running(files.directory, **files.tls()) as collector, pytest.raises(httpx.ConnectError):
        httpx.get(f"{collector.url}/healthz", verify=context, timeout=DEADLINE)


def test_mutual_tls(files: Files) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    good = files.clients.issue_cert("sender.example")
    expired = files.clients.issue_cert("sender.example", not_before=past, not_after=past + timedelta(days=1))
    foreign = trustme.CA().issue_cert("sender.example")
    authority = files.authority.read_bytes()
    with running(files.directory, **files.tls(mutual=True)) as collector:
        assert Client(trusts=authority, shows=good).send_grpc(collector) == "OK"
        assert Client(trusts=authority, shows=good).send_http(collector).status_code == 200
        assert Client(trusts=authority, shows=good).ask(collector).status_code == 200
        for bad in (None, expired, foreign):
            assert Client(trusts=authority, shows=bad).send_grpc(collector) == "UNAVAILABLE"
            with pytest.raises(httpx.TransportError):
                Client(trusts=authority, shows=bad).get(collector, "/healthz")
        assert collector.spans() == 2


def test_certificates_rotate_without_a_restart(files: Files) -> None:
    with running(files.directory, **files.tls()) as collector:
        old = files.authority.read_bytes()
        assert Client(trusts=old).send_grpc(collector) == "OK"
        files.issue(trustme.CA())
        new = files.authority.read_bytes()
        assert Client(trusts=old).send_grpc(collector) == "OK", "not before anybody looked"
        collector.trust.refresh()

        assert Client(trusts=new).send_grpc(collector) == "OK"
        assert Client(trusts=new).get(collector, "/healthz").status_code == 200
        assert Client(trusts=old).send_grpc(collector) == "UNAVAILABLE"
        with pytest.raises(httpx.ConnectError):
            Client(trusts=old).get(collector, "/healthz")


def test_client_authorities_rotate_and_what_was_negotiated_ends_with_them(files: Files) -> None:
    authority, old = files.authority.read_bytes(), files.clients
    with running(files.directory, **files.tls(mutual=True)) as collector:
        of_old = Client(trusts=authority, shows=old.issue_cert("a.example"))
        assert of_old.get(collector, "/healthz").status_code == 200
        files.clients = trustme.CA()
        files.replace(files.client_ca, files.clients.cert_pem.bytes())
        collector.trust.refresh()

        assert of_old.send_grpc(collector) == "UNAVAILABLE"
        with pytest.raises(httpx.TransportError):
            of_old.get(collector, "/healthz")
        of_new = Client(trusts=authority, shows=files.clients.issue_cert("a.example"))
        assert of_new.send_grpc(collector) == "OK"
        assert of_new.get(collector, "/healthz").status_code == 200


def test_half_a_renewal_leaves_the_old_certificate(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    with running(files.directory, **files.tls()) as collector:
        authority = files.authority.read_bytes()
        leaf = files.ca.issue_cert("localhost")
        files.replace(files.key, leaf.private_key_pem.bytes())
        collector.trust.refresh()
        assert "key values mismatch" in caplog.text
        assert "stays in use" in caplog.text
        assert Client(trusts=authority).send_grpc(collector) == "OK"

        files.replace(files.cert, leaf.cert_chain_pems[0].bytes())
        with caplog.at_level(logging.INFO):
            collector.trust.refresh()
        assert "was read again" in caplog.text
        assert Client(trusts=authority).send_grpc(collector) == "OK"
        assert Client(trusts=authority).get(collector, "/healthz").status_code == 200


def test_files_that_are_no_certificates(files: Files) -> None:
    text, nowhere = files.directory / "text", files.directory / "nowhere"
    text.write_text("no certificate")
    locked = files.directory / "locked.key"
    locked.write_bytes(_locked_key())
    other = files.directory / "other.key"
    other.write_bytes(files.ca.issue_cert("x.example").private_key_pem.bytes())
    leaf = files.directory / "leaf.crt"
    leaf.write_bytes(files.ca.issue_cert("x.example").cert_chain_pems[0].bytes())
    for broken, complaint in (
        (TlsFiles(nowhere, files.key), "--tls-cert .*nowhere cannot be read"),
        (TlsFiles(files.cert, nowhere), "--tls-key .*nowhere cannot be read"),
        (TlsFiles(files.cert, files.key, nowhere), "--tls-client-ca .*nowhere cannot be read"),
        (TlsFiles(text, files.key), "--tls-cert .*expected a PEM chain"),
        (TlsFiles(files.cert, text), "--tls-key .*expected a PEM chain"),
        (TlsFiles(files.cert, other), "key values mismatch"),
        (TlsFiles(files.cert, locked), "the key is encrypted"),
        (TlsFiles(files.cert, files.key, text), "--tls-client-ca .*expected PEM certificates"),
        (TlsFiles(files.cert, files.key, leaf), "no certificate of an authority"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            Tls(broken)


def _locked_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
