"""Whom a proxy vouched for, and where a call went: read from headers and targets that others wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance import identity
from provenance.addresses import peer_attributes, socket_attributes, target_attributes
from provenance.context import current_request_id, outgoing_request_id, serving, usable
from provenance.identity import MAX_ELEMENT_LENGTH, peer_principal

SLEEP = "spiffe://cluster.local/ns/foo/sa/sleep"
ELEMENT = f'By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=ab12;Subject="";URI={SLEEP}'
FORGED = ELEMENT.replace("sleep", "admin")


@pytest.mark.parametrize(
    ("xfcc", "principal"),
    [
        (ELEMENT, SLEEP),
        (f"{FORGED},{ELEMENT}", SLEEP),
        (f"{FORGED}, {ELEMENT}", SLEEP),
        (f'{FORGED},{ELEMENT};Subject="CN=x,O=y;URI=spiffe://no"', SLEEP),
        (f'Subject="CN=\\"a,b\\"";URI={SLEEP}', SLEEP),
        (f'URI="{SLEEP}"', SLEEP),
        (f"uri={SLEEP}", SLEEP),
        (f'By=x;Subject="open,{ELEMENT}', SLEEP),  # a quote that the client left open changes nothing
        (f"{FORGED},By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=ab12", None),  # the rightmost has no URI
        (f"{FORGED},", None),
        ("URI=", None),
        ("", None),
        ("garbage;URI=spiffe://x", None),
        (f'URI="{SLEEP}" ;By=x', SLEEP),
        (f"URI={SLEEP} ;By=x", SLEEP),
        (ELEMENT + "x" * 10_000, None),
        ("x" * 50_000 + f",{ELEMENT}", SLEEP),  # what a client wrote to the left is not read, and hides nothing
    ],
)
def test_only_the_rightmost_element_is_believed(xfcc: str, principal: str | None) -> None:
    assert peer_principal(xfcc, None) == principal


def test_an_element_is_read_up_to_a_bound() -> None:
    room = MAX_ELEMENT_LENGTH - len(f"URI={SLEEP};")
    for filler, principal in ((room, SLEEP), (room + 1, None)):
        element = f"URI={SLEEP};" + "x" * filler
        assert peer_principal(element, None) == peer_principal(f"{FORGED},{element}", None) == principal


def test_nothing_of_a_longer_element_is_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Pattern:
        def match(self, element: str, at: int) -> None:
            read.append(len(element) - at)

    monkeypatch.setattr(identity, "_PAIR", Pattern())
    for filling in (" ", "\\", '"', ";", 'A="', "A= ;", '\\"', ","):
        assert peer_principal("URI=" + filling * 20_000 + '"x', None) is None
    assert max(read) <= MAX_ELEMENT_LENGTH


def test_linkerd_names_its_client() -> None:
    identity = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local"

    assert peer_principal(None, identity) == identity
    assert peer_principal(ELEMENT, identity) == SLEEP
    assert peer_principal(None, "") is None
    assert peer_principal(None, None) is None


@given(st.text(alphabet='By=URI;,"\\ spiffe:/x') | st.text())
def test_any_header_gives_a_principal_or_none(xfcc: str) -> None:
    principal = peer_principal(xfcc, None)

    assert principal is None or principal


@pytest.mark.parametrize(
    ("target", "address", "port"),
    [
        ("localhost:50051", "localhost", 50051),
        ("checkout", "checkout", 443),
        ("dns:///checkout.shop.svc:8080", "checkout.shop.svc", 8080),
        ("dns:checkout:8080", "checkout", 8080),
        ("dns://10.0.0.10/checkout", "checkout", 443),
        ("ipv4:10.0.0.1:50051", "10.0.0.1", 50051),
        ("ipv6:[2001:db8::1]:50051", "2001:db8::1", 50051),
        ("ipv6:2001:db8::1", "2001:db8::1", 443),
        ("[::1]:50051", "::1", 50051),
        ("unix:/run/x.sock", "/run/x.sock", None),
        ("unix:///run/x.sock", "/run/x.sock", None),
        ("unix-abstract:x", "x", None),
        ("xds:///checkout", "checkout", None),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", None, None),
        ("", None, None),
        ("host:port", None, None),
    ],
)
def test_the_server_is_what_the_channel_dials(target: str, address: str | None, port: int | None) -> None:
    expected = {"server.address": address, "server.port": port}

    assert target_attributes(target) == {key: value for key, value in expected.items() if value is not None}


@pytest.mark.parametrize(
    ("peer", "address", "port"),
    [
        ("ipv4:10.0.0.1:57284", "10.0.0.1", 57284),
        ("ipv6:%5B::1%5D:57284", "::1", 57284),
        ("ipv6:[::1]:57284", "::1", 57284),
        ("ipv4:10.2.1.1:57284,127.0.0.1:57284", "10.2.1.1", 57284),
        ("unix:", None, None),
        ("unix:/run/x.sock", "/run/x.sock", None),
        ("", None, None),
    ],
)
def test_the_peer_is_who_connected(peer: str, address: str | None, port: int | None) -> None:
    expected = {"network.peer.address": address, "network.peer.port": port}

    assert peer_attributes(peer) == {key: value for key, value in expected.items() if value is not None}


@given(st.text() | st.text(alphabet="dnsipv46:/[]%.,0123456789"))
def test_any_target_and_any_peer_can_be_read(text: str) -> None:
    ports = (target_attributes(text).get("server.port", 1), peer_attributes(text).get("network.peer.port", 1))

    assert all(isinstance(port, int) and 0 <= port <= 65_535 for port in ports)


def test_socket_addresses() -> None:
    assert socket_attributes(("::1", 80, 0, 0)) == {"network.peer.address": "::1", "network.peer.port": 80}
    assert socket_attributes(("10.0.0.1", 0)) == {"network.peer.address": "10.0.0.1"}
    assert socket_attributes("/run/x.sock") == {"network.peer.address": "/run/x.sock"}
    for nothing in (None, "", (), ("", 80), b"\0abstract", 5):
        assert socket_attributes(nothing) == {}


def test_a_request_id_is_forwarded_while_its_request_is_served() -> None:
    with serving("outer"):
        assert outgoing_request_id() == "outer"
        with serving(None):
            assert current_request_id() is None
            assert outgoing_request_id() != outgoing_request_id(), "each call alone is a request of its own"
        assert current_request_id() == "outer"
    assert current_request_id() is None


@pytest.mark.parametrize("unusable", ["", "a b", "ü", "a\r\nx: y", "x" * 257, "\x7f"])
def test_an_id_that_could_break_an_outgoing_call_is_not_forwarded(unusable: str) -> None:
    assert usable(unusable) is None
    with serving(unusable):
        assert current_request_id() is None
