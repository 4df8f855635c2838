"""What a table of sockets proves, and above all what it does not: nobody is accused because a proxy's socket has simply gone."""

import pytest

from collector.witnesses.sockets_judge import PROXIES, confirmed, read
from tests.collector.witnesses.socket_factories import (
    APP_CGROUP,
    PEER,
    POD,
    PROXY_CGROUP,
    PROXY_UID,
    listener,
    make_socket,
    proxy_end,
    sidecar,
    snapshot,
)

ISTIO = PROXIES["istio"]


def one(target, *others, **overrides):
    """What one dump says of one of its sockets."""
    return next((j for j in read(snapshot(target, *others, **overrides), ISTIO).judged if j.socket is target), None)


def bypassing(first, second=None):
    """Whether two dumps together call any outgoing socket bypassed."""
    return bool(confirmed(read(first, ISTIO), read(second or first, ISTIO)))


def test_a_connection_whose_other_end_the_proxy_has_is_captured():
    app = make_socket()
    judged = one(app, proxy_end(app), *sidecar())
    assert (judged.direction, judged.capture, judged.proxy_port) == ("outbound", "captured", 15001)


@pytest.mark.parametrize(
    ("near", "far"), [("TIME_WAIT", "LAST_ACK"), ("CLOSE_WAIT", "FIN_WAIT2"), ("FIN_WAIT2", "CLOSE_WAIT")]
)
def test_half_closed_connections_are_captured_too(near, far):
    app = make_socket(state=near, uid=None if near == "TIME_WAIT" else 1000)
    assert one(app, proxy_end(app, state=far), *sidecar()).capture == "captured"


def test_an_open_connection_without_the_other_end_in_two_dumps_bypassed():
    table = snapshot(make_socket(), *sidecar())
    assert one(make_socket(), *sidecar()).capture is None, "one dump is no proof"
    assert bypassing(table)


@pytest.mark.parametrize(
    "state", ["TIME_WAIT", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2", "LAST_ACK", "CLOSING", "SYN_SENT"]
)
def test_a_connection_that_is_not_open_is_never_called_bypassed(state):
    uid = None if state == "TIME_WAIT" else 1000
    assert not bypassing(snapshot(make_socket(state=state, uid=uid), *sidecar()))


def test_a_connection_that_the_second_dump_finds_captured_is_not_accused():
    app = make_socket()
    assert not bypassing(snapshot(app, *sidecar()), snapshot(app, proxy_end(app), *sidecar()))


def test_a_connection_that_ended_between_the_dumps_is_not_accused():
    assert not bypassing(snapshot(make_socket(), *sidecar()), snapshot(make_socket(state="CLOSE_WAIT"), *sidecar()))


def test_a_loose_end_of_the_proxy_may_be_the_missing_one():
    """Two connections with one local port: the redirection gives the second another port on its way to the proxy."""
    app = make_socket()
    loose = proxy_end(app, remote_port=1025)
    table = snapshot(app, loose, *sidecar())
    assert not bypassing(table)
    assert bypassing(table, snapshot(app, *sidecar())), "a loose end that is gone explains nothing"


def test_a_shared_local_port_decides_nothing():
    first, second = make_socket(), make_socket(remote_address="10.1.0.10")
    table = snapshot(first, second, proxy_end(first), *sidecar())
    assert {j.capture for j in read(table, ISTIO).judged if j.direction == "outbound"} == {None}
    assert not bypassing(table)


def test_an_old_end_of_the_same_port_neither_vouches_nor_condemns():
    app = make_socket()
    old = proxy_end(app, state="TIME_WAIT", uid=None)
    assert one(app, old, *sidecar()).capture is None
    assert not bypassing(snapshot(app, old, *sidecar()))


def test_listeners_that_dropped_connections_meanwhile_prove_nothing():
    app = make_socket()
    assert not bypassing(snapshot(app, *sidecar()), snapshot(app, *sidecar(), stalls=1))


def test_the_proxys_own_connections_are_not_the_meshs():
    upstream = make_socket(uid=PROXY_UID, cgroup_id=PROXY_CGROUP)
    assert one(upstream, *sidecar()).capture == "not_mesh"
    assert not bypassing(snapshot(upstream, *sidecar()))


def test_an_application_that_runs_as_the_proxys_user_is_told_by_its_control_group():
    intruder = make_socket(uid=PROXY_UID, cgroup_id=APP_CGROUP)
    assert bypassing(snapshot(intruder, *sidecar()))
    untold = make_socket(uid=PROXY_UID, cgroup_id=None)
    assert one(untold, *sidecar()).capture == "not_mesh", "where control groups are not told, the user decides"


def test_the_proxys_user_is_learned_from_its_listeners():
    ours = [listener(port, uid=77, cgroup_id=PROXY_CGROUP) for port in (15001, 15006)]
    assert one(make_socket(uid=77, cgroup_id=PROXY_CGROUP), *ours).capture == "not_mesh"


def test_without_a_proxy_nothing_is_judged():
    app, served = make_socket(), make_socket(local_port=8080, remote_port=50000)
    reading = read(snapshot(app, served, listener(8080)), ISTIO)
    assert not reading.proxy_found
    assert {j.capture for j in reading.judged} == {None}
    assert not reading.suspects


def served(**overrides):
    return make_socket(**({"local_port": 8080, "remote_address": PEER, "remote_port": 50000} | overrides))


@pytest.mark.parametrize("state", ["ESTABLISHED", "TIME_WAIT"])
def test_an_incoming_connection_at_the_applications_port_did_not_pass_a_redirecting_proxy(state):
    judged = one(served(state=state, uid=None if state == "TIME_WAIT" else 1000), listener(8080), *sidecar())
    assert (judged.direction, judged.capture) == ("inbound", "bypassed")


def test_an_incoming_connection_at_the_proxys_port_is_captured():
    judged = one(served(local_port=15006, uid=PROXY_UID), listener(8080), *sidecar())
    assert (judged.direction, judged.capture, judged.proxy_port) == ("inbound", "captured", 15006)


def test_behind_tproxy_an_incoming_connection_decides_nothing():
    assert one(served(), listener(8080), *sidecar(transparent=True)).capture is None


def test_where_transparency_is_not_told_a_redirected_connection_tells():
    untold = sidecar(transparent=None)
    assert one(served(), listener(8080), *untold).capture is None
    redirected = served(local_port=15006, remote_port=50001, uid=PROXY_UID)
    assert one(served(), redirected, listener(8080), *untold).capture == "bypassed"


def test_a_proxy_that_keeps_the_source_address_is_inside_the_pod():
    incoming = served()
    mirror = make_socket(local_address=PEER, local_port=50000, remote_address=POD, remote_port=8080, uid=PROXY_UID)
    assert one(incoming, mirror, listener(8080), *sidecar()) is None


def test_behind_a_proxy_that_keeps_source_addresses_what_is_left_over_decides_nothing():
    """The mirror of a connection that ended is gone; the one of another that is open shows how this proxy works."""
    ended = served(state="TIME_WAIT", uid=None)
    mirror = make_socket(local_address=PEER, local_port=50009, remote_address=POD, remote_port=8080, uid=PROXY_UID)
    assert one(ended, mirror, listener(8080), *sidecar()).capture is None


@pytest.mark.parametrize("port", [15020, 15021, 15090])
def test_probes_of_the_proxy_are_not_the_meshs(port):
    assert one(served(local_port=port), listener(port, PROXY_UID, PROXY_CGROUP), *sidecar()).capture == "not_mesh"


def test_connections_inside_the_pod_are_not_reported():
    inside = make_socket(remote_address=POD, remote_port=6379)
    loop = make_socket(local_address="127.0.0.1", remote_address="127.0.0.1")
    assert one(inside, *sidecar()) is one(loop, *sidecar()) is None


def test_listeners_are_reported_unless_on_loopback():
    outside, inside = listener(8080), listener(9090)
    assert one(outside) is not None
    assert one(make_socket(local_address="127.0.0.1", remote_port=0, state="LISTEN")) is None
    assert one(inside).capture is None


def test_a_port_that_was_listened_on_earlier_is_still_the_callees():
    ended = served(state="TIME_WAIT", uid=None)
    assert one(ended, *sidecar()).direction is None
    assert one(ended, *sidecar(), listened=frozenset({8080})).direction == "inbound"


@pytest.mark.parametrize(("port", "capture"), [(8125, "bypassed"), (53, None)])
def test_udp_passes_every_sidecar_except_for_names(port, capture):
    assert one(make_socket(protocol="udp", remote_port=port), *sidecar()).capture == capture


def test_linkerds_ports_count_for_linkerd():
    app = make_socket()
    ours = [listener(4140, 2102, PROXY_CGROUP), listener(4143, 2102, PROXY_CGROUP)]
    reading = read(snapshot(app, proxy_end(app, local_port=4140, uid=2102), *ours), PROXIES["linkerd"])
    assert [j.proxy_port for j in reading.judged if j.capture == "captured"] == [4140]
