"""The egress guard: what it lets pass, what it reports and what it refuses, with each library's own error."""

import logging
from typing import Any

import aiohttp
import grpc
import httpx
import pytest
import requests
import urllib3
from opentelemetry.sdk.trace import TracerProvider

from provenance import names
from provenance.egress_guard import (
    EgressGuard,
    check,
    current_egress_guard,
    guard_as_the_environment_says,
    guard_egress,
    guard_of,
    parse_entry,
    read_list,
)
from provenance.enforcement import ModeError
from provenance.faults import counts
from provenance.faults import reset as forget_faults
from provenance.instrumentor import ProvenanceInstrumentor

LIST = "api.stripe.com:443, *.amazonaws.com, 192.0.2.0/24, [2001:db8::1]:8443, example.com"


@pytest.fixture
def guarded():
    """The shells, with a guard that refuses everything but one name; afterwards as it was."""
    instrumentor = ProvenanceInstrumentor()
    instrumentor.instrument()
    guard = EgressGuard(tuple(read_list("allowed.example:9")), enforces=True)
    guard_egress(guard)
    yield guard
    guard_egress(None)
    instrumentor.uninstrument()


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("api.stripe.com", 443, True),
        ("API.stripe.com.", 443, True),
        ("api.stripe.com", 80, False),
        ("s3.amazonaws.com", 1, True),
        ("amazonaws.com", 1, False),
        ("evilamazonaws.com", 1, False),
        ("192.0.2.9", 5, True),
        ("::ffff:192.0.2.9", 5, True),
        ("192.0.3.9", 5, False),
        ("[2001:db8::1]", 8443, True),
        ("2001:db8::1", 443, False),
        ("example.com", None, True),
        # What does not leave.
        ("localhost", 80, True),
        ("127.0.0.9", 80, True),
        ("10.1.2.3", 80, True),
        ("fd00::1", 80, True),
        ("100.64.0.1", 80, True),
        ("checkout", 8080, True),
        ("checkout.shop.svc", 8080, True),
        ("checkout.shop.svc.cluster.local", 8080, True),
        ("svc.cluster.local.evil.example", 80, False),
        ("169.254.1.1", 80, True),
        ("169.254.169.254", 80, False),
        ("metadata.google.internal", 80, False),
    ],
)
def test_what_is_allowed(host, port, allowed):
    guard = EgressGuard(tuple(read_list(LIST)))
    assert guard.allows(host, port) is allowed
    assert guard.allows(host, port) is allowed  # remembered


def test_lists_may_be_files(tmp_path):
    toml, text = tmp_path / "p.toml", tmp_path / "hosts"
    toml.write_text('[egress]\nallow = ["a.example", {service = "s", destination = "b.example:1"}]')
    text.write_text("# ours\na.example\n\nb.example:1  # theirs\n")
    assert [e.port for e in read_list(str(text))] == [None, 1]
    assert [(e.destination, e.service) for e in read_list(str(toml))] == [("a.example", None), ("b.example", "s")]


@pytest.mark.parametrize(
    "entry", ["", "a b", "10.0.0.0/99", "1.2.3", "a:0", "a:70000", "a:x", "a/b", 5, {"service": "x"}]
)
def test_what_is_no_destination_is_refused(entry):
    with pytest.raises(ModeError, match="list"):
        parse_entry(entry, "list")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PROVENANCE_EGRESS": "enforce"}, "PROVENANCE_EGRESS_ALLOW has to say"),
        ({"PROVENANCE_EGRESS": "perhaps"}, "expected observe, enforce, off"),
        ({"PROVENANCE_EGRESS_ALLOW": "/nowhere/x.toml"}, "cannot be read"),
        ({"PROVENANCE_EGRESS_ALLOW": "a b"}, "neither a host name"),
    ],
)
def test_a_setting_that_cannot_be_used(environ, message):
    with pytest.raises(ModeError, match=message):
        guard_of(environ)


def test_off_unless_configured_and_observe_by_default():
    assert guard_of({}) is None
    assert guard_of({"PROVENANCE_EGRESS": "off", "PROVENANCE_EGRESS_ALLOW": "a.example"}) is None
    observing = guard_of({"PROVENANCE_EGRESS_ALLOW": "a.example"})
    assert observing is not None
    assert not observing.enforces


def test_a_broken_list_ends_the_start_only_where_it_is_enforced(monkeypatch):
    monkeypatch.setenv("PROVENANCE_EGRESS_ALLOW", "/nowhere/x.toml")
    forget_faults()
    guard_as_the_environment_says()
    assert current_egress_guard() is None
    assert counts() == {"egress": 1}
    monkeypatch.setenv("PROVENANCE_EGRESS", "enforce")
    with pytest.raises(ModeError):
        guard_as_the_environment_says()
    forget_faults()


def test_observed_calls_go_on_and_are_told(caplog):
    span: Any
    guard_egress(EgressGuard(tuple(read_list("a.example"))))
    try:
        with caplog.at_level(logging.WARNING), TracerProvider().get_tracer("t").start_as_current_span("out") as span:
            for _ in range(3):
                check(b"evil.example", 443, OSError)
            check("a.example", 443, OSError)
            check(None, 443, OSError)
        guard = current_egress_guard()
        assert guard is not None
        assert guard.unlisted == {"evil.example:443": 3}
        assert span.attributes[names.EGRESS_STATUS] == "unlisted"
        assert [r.getMessage() for r in caplog.records] == [
            "provenance: egress to evil.example:443 is on no list: observed (1 so far)"
        ]
    finally:
        guard_egress(None)


def test_httpx_refuses_with_its_connect_error(guarded):
    with pytest.raises(httpx.ConnectError, match="PROVENANCE_EGRESS_ALLOW does not list it"), httpx.Client() as client:
        client.get("https://evil.example/")
    assert guarded.unlisted == {"evil.example:443": 1}


async def test_httpx_refuses_async_calls_too(guarded):
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError, match="does not list it"):
            await client.get("http://evil.example:8080/")
    assert guarded.unlisted == {"evil.example:8080": 1}


@pytest.mark.parametrize("url", ["https://evil.example/", "http://evil.example/"])
def test_requests_and_urllib3_refuse_with_theirs_and_dial_nothing(guarded, url):
    with pytest.raises(requests.ConnectionError, match="does not list it"):
        requests.get(url, timeout=5)
    with urllib3.PoolManager() as pool, pytest.raises(urllib3.exceptions.MaxRetryError) as error:
        pool.request("GET", url, retries=0)
    assert isinstance(error.value.reason, urllib3.exceptions.NewConnectionError)
    assert "evil.example" in next(iter(guarded.unlisted))


async def test_aiohttp_refuses_with_its_own(guarded):
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="does not list it"):
            await session.get("https://evil.example/")
    assert guarded.unlisted == {"evil.example:443": 1}


def test_grpc_refuses_as_if_nobody_listened(guarded):
    channel: Any
    error: Any
    with grpc.insecure_channel("evil.example:50051") as channel:
        for call in (channel.unary_unary("/s/m"), channel.unary_stream("/s/m")):
            with pytest.raises(grpc.RpcError) as error:
                call(b"")
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "does not list it" in error.value.details()
        with pytest.raises(grpc.RpcError, match="does not list it"):
            channel.stream_stream("/s/m")(iter([b""]))
    assert guarded.unlisted == {"evil.example:50051": 3}


async def test_grpc_aio_refuses_too(guarded):
    channel: Any
    async with grpc.aio.insecure_channel("evil.example:50051") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="does not list it"):
            await channel.unary_unary("/s/m")(b"")
    assert guarded.unlisted == {"evil.example:50051": 1}


def test_listed_and_inner_calls_reach_the_network(guarded):
    with pytest.raises(httpx.ConnectError) as error:
        httpx.get("http://127.0.0.1:1/")
    assert "does not list it" not in str(error.value)
    assert not guarded.unlisted
