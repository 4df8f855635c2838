"""Whom a gRPC server's own TLS verified, over real connections with client certificates."""

from concurrent import futures
from typing import Any

import grpc
import pytest
from cryptography import x509
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer

from provenance import names
from provenance.http.messages import certified_of
from provenance.identity import certified_principal
from tests.provenance.certificates import self_signed

CHECKOUT = "spiffe://cluster.local/ns/shop/sa/checkout"
FORGED = ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/bank")


@pytest.mark.parametrize(
    ("sans", "principal"),
    [
        ([CHECKOUT], CHECKOUT),
        (["checkout.shop", CHECKOUT], CHECKOUT),
        (
            ["checkout.shop.serviceaccount.identity.linkerd.cluster.local"],
            "checkout.shop.serviceaccount.identity.linkerd.cluster.local",
        ),
        (["a.example", "b.example"], None),
        ([CHECKOUT, "spiffe://other/sa/x"], None),
        (["", "x" * 5000], None),
        ([], None),
    ],
)
def test_the_principal_of_a_certificate(sans: list[str], principal: str | None) -> None:
    assert certified_principal(sans) == principal


def test_the_callers_certificate_goes_before_a_header_that_it_could_write(
    spans: Any, activate: Any, no_faults: Any
) -> None:
    server_key, server_cert = self_signed(x509.DNSName("localhost"))
    client_key, client_cert = self_signed(x509.UniformResourceIdentifier(CHECKOUT))
    activate(GrpcInstrumentorServer(), GrpcInstrumentorClient())
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Pay": handler}),))
    trusts_the_client = grpc.ssl_server_credentials([(server_key, server_cert)], client_cert, require_client_auth=True)
    port = server.add_secure_port("localhost:0", trusts_the_client)
    server.start()
    credentials = grpc.ssl_channel_credentials(server_cert, client_key, client_cert)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        pay: Any = channel.unary_unary("/t.T/Pay")
        pay(b"body", metadata=(FORGED,), timeout=20)
    server.stop(None).wait()

    assert spans.server()[names.PEER_PRINCIPAL] == CHECKOUT


def test_what_an_asgi_server_tells_of_the_clients_certificate() -> None:
    _, pem = self_signed(x509.DNSName("checkout.shop"), x509.UniformResourceIdentifier(CHECKOUT))
    _, nameless = self_signed()

    def told(*chain: bytes) -> str | None:
        return certified_of({"extensions": {"tls": {"client_cert_chain": [each.decode() for each in chain]}}})

    assert told(pem) == CHECKOUT
    assert told(nameless) is None
    assert told() is None
    assert certified_of({"extensions": {"tls": {}}}) is None
    assert certified_of({"extensions": None}) is None
    assert certified_of({}) is None
