"""Egress: what leaves the mesh unlisted or like a clock is found; what is the mesh's own, listed or not settled is not."""

import random

import pytest

from collector.errors import ConfigError
from collector.forensics.egress import (
    EgressParams,
    OwnAddresses,
    Suspect,
    egress_sql,
    examine_egress,
    find_egress,
)
from collector.forensics.tables import Window
from collector.policy import EgressPolicy, EgressRule, parse_policy, to_batch
from tests.collector.forensics.factories import MINUTE, T0, S, make_proxy_record, make_request_id, make_span, store

OTHER = [{"service_name": None, "destination": "api.payments.example", "port": 443}]
LATER = T0 + 10 * MINUTE


def out(at, *, host="203.0.113.9", port=8443, service="inventory", **extra):
    """One HTTP call out of the mesh."""
    return make_span(
        span_id=int(at) % 2**40 + 1,
        service_name=service,
        name="POST",
        kind="CLIENT",
        start_time_unix_nano=at,
        server_address=host,
        server_port=port,
        http_request_method="POST",
        **{"provenance_request_size": 200, **extra},
    )


def clock(count=20, period=3 * S, **extra):
    return [out(T0 + i * period, **extra) for i in range(count)]


def served(host="checkout.mesh", port=8080, at=T0, service="checkout", **client):
    """A call that a service answered, at `host:port`."""
    return [
        make_span(
            trace_id=at,
            span_id=1,
            service_name="gateway",
            name="Buy",
            kind="CLIENT",
            server_address=host,
            server_port=port,
            start_time_unix_nano=at,
            **client,
        ),
        make_span(trace_id=at, span_id=2, parent_span_id=1, service_name=service, name="Buy", start_time_unix_nano=at),
    ]


# Something newer, so that everything before it is settled.
NEWEST = [make_span(start_time_unix_nano=LATER, service_name="gateway")]


EVERYTHING = Window()


def find(spans, allow=(), records=(), window=EVERYTHING, **params):
    return find_egress(store([*spans, *NEWEST], records, allow), window, EgressParams(**params))


def test_nothing_in_nothing_out():
    assert find_egress(store(), Window()) == []
    assert set(egress_sql(Window(T0, LATER))) >= {"destinations", "answering", "listeners"}


def test_an_unlisted_beacon_is_one_finding_with_its_numbers():
    (finding,) = find(clock(), OTHER)
    assert (finding.kind, finding.caller, finding.callee, finding.destination) == (
        "egress",
        "inventory",
        None,
        "203.0.113.9:8443",
    )
    assert finding.reasons == ("unlisted", "beacon")
    assert finding.severity == "critical"
    assert finding.count == 20
    assert (finding.first_seen_unix_nano, finding.last_seen_unix_nano) == (T0, T0 + 57 * S)
    assert finding.explanation.startswith(
        "inventory called 203.0.113.9:8443, on no allow-list, 20 times every 3 s (MAD 0 µs; beacon score "
    )
    assert "4.0 kB out" in finding.explanation
    assert finding.attack_ids == ("T1071.001", "T1029", "T1567")
    assert len(finding.trace_ids) == len(finding.span_ids) == 20
    assert "no outbound access log of inventory's own proxy at that time" in finding.completeness


def test_one_call_to_an_unlisted_destination_is_enough():
    (finding,) = find([out(T0)], OTHER)
    assert (finding.reasons, finding.severity, finding.count) == (("unlisted",), "high", 1)
    assert "called 203.0.113.9:8443, on no allow-list, once" in finding.explanation


def test_a_blocked_attempt_counts_and_says_so():
    (finding,) = find([out(T0 + i * i * S, status_code="ERROR") for i in range(5)], OTHER)
    assert finding.severity == "medium"
    assert "100% of the calls failed" in finding.explanation


def test_without_a_list_only_a_clock_is_a_finding():
    rng = random.Random(1)
    chance = [out(T0 + rng.randrange(9 * MINUTE), host="198.51.100.7") for _ in range(60)]
    (finding,) = find([*clock(), *chance])
    assert finding.reasons == ("beacon",)
    assert "no egress allow-list" in finding.completeness
    assert "on no allow-list" not in finding.explanation


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_is_no_beacon(seed):
    rng = random.Random(seed)
    at, spans = T0, []
    while at < LATER - MINUTE:
        at += int(rng.expovariate(rng.choice([0.2, 1, 5])) * S) + 1
        spans.append(out(at))
    assert find(spans) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_jittered_clock_is_a_beacon(seed):
    rng = random.Random(seed)
    (finding,) = find([out(T0 + i * 10 * S + rng.randrange(2 * S)) for i in range(50)])
    assert finding.reasons == ("beacon",)


def test_clocks_of_several_replicas_do_not_hide_each_other():
    spans = [
        out(T0 + i * 13 * S + r * 4 * S + r * r * S // 2, service_instance_id=f"pod-{r}")
        for r in range(3)
        for i in range(30)
    ]
    (finding,) = find(spans)
    assert finding.reasons == ("beacon",)
    assert finding.count == 90


def test_polling_a_database_is_no_beacon_without_a_list():
    spans = clock(port=5432, host="db.internal", db_system_name="postgresql")
    assert find(spans) == []
    assert find(spans, OTHER)[0].reasons == ("unlisted", "beacon")


@pytest.mark.parametrize(
    "rule",
    [
        {"service_name": None, "destination": "203.0.113.0/24", "port": None},
        {"service_name": "inventory", "destination": "203.0.113.9", "port": 8443},
    ],
)
def test_what_is_listed_is_never_found_however_regular(rule):
    assert find(clock(), [rule]) == []


@pytest.mark.parametrize(
    "rule",
    [
        {"service_name": "billing", "destination": "203.0.113.9", "port": 8443},
        {"service_name": None, "destination": "203.0.113.9", "port": 443},
        {"service_name": None, "destination": "203.0.113.8", "port": None},
    ],
)
def test_what_is_listed_for_others_or_another_port_is_found(rule):
    assert [f.reasons for f in find(clock(), [rule])] == [("unlisted", "beacon")]


def test_a_policy_given_replaces_the_stored_list():
    policy = EgressPolicy((EgressRule(None, "203.0.113.9", None),))
    assert find(clock(), OTHER, policy=policy) == []


def test_a_broken_list_is_an_error_not_an_empty_list():
    with pytest.raises(ConfigError):
        find(clock(), [{"service_name": None, "destination": "not a host/99", "port": None}])


def test_a_lost_callee_is_not_egress():
    lost = [out(T0 + i * S, host="checkout.mesh", port=8080, service="gateway") for i in range(30)]
    assert [f.destination for f in find(lost, OTHER)] == ["checkout.mesh:8080"]
    assert find([*lost, *served()], OTHER) == []
    far = served(at=T0 - 20 * MINUTE)
    assert find([*lost, *far], OTHER, window=Window(T0 - S, LATER)) == []


@pytest.mark.parametrize("proxies", [1, 2, 4])
def test_calls_through_proxies_are_answered_calls(proxies):
    client, server = served(host="198.51.100.1")
    chain = [
        make_span(trace_id=T0, span_id=10 + n, parent_span_id=9 + n if n else 1, witness="proxy", kind="CLIENT")
        for n in range(proxies)
    ]
    server["parent_span_id"] = 10 + proxies - 1
    assert find([client, *chain, server], OTHER) == []


def test_calls_that_are_not_settled_are_not_judged_yet():
    young = out(LATER + 9 * MINUTE)
    assert find([young], OTHER) == []
    assert len(find([young], OTHER, settle_ns=0)) == 1


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"direction": "inbound", "downstream_local_address": "203.0.113.9:8443"}, 0),
        ({"direction": "inbound", "upstream_host": "203.0.113.9:8443"}, 0),
        # The mesh's own only where the proxy went on to the mesh: an external name resolves to several addresses.
        ({"direction": "outbound", "downstream_local_address": "203.0.113.9:8443", "upstream_host": "10.0.0.7:80"}, 0),
        (
            {
                "direction": "outbound",
                "downstream_local_address": "203.0.113.9:8443",
                "upstream_host": "203.0.113.8:443",
            },
            1,
        ),
        ({"direction": "outbound", "downstream_local_address": "203.0.113.9:8443"}, 1),
        # Transparent capture: the local address is where the application wanted to go.
        (
            {
                "direction": "outbound",
                "downstream_local_address": "203.0.113.9:8443",
                "upstream_host": "203.0.113.9:8443",
            },
            1,
        ),
        ({"direction": "outbound", "upstream_host": "203.0.113.9:8443"}, 1),
    ],
)
def test_the_meshs_own_listeners_are_not_outside(record, expected):
    callee = make_proxy_record(direction="inbound", downstream_local_address="10.0.0.7:80")
    assert len(find([out(T0)], OTHER, [make_proxy_record(**record), callee])) == expected


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("checkout", True),
        ("Checkout", True),
        ("checkout.shop", True),
        ("checkout.shop.svc", True),
        ("checkout.shop.svc.cluster.local", True),
        ("checkout.example", False),
        ("checkout.evil.com", False),
        ("checkout.a.svc.evil.com", False),
        ("evil.checkout", False),
        ("10.0.0.1", False),
    ],
)
def test_a_services_name_is_the_meshs_own_a_lookalike_is_not(host, own):
    known = OwnAddresses(frozenset({"10.0.0.1:80"}), frozenset({"checkout"}), frozenset({"shop"}))
    assert known.holds(Suspect("gateway", host, 443)) is own


def test_a_host_header_cannot_whitelist_a_destination():
    forged = make_span(service_name="checkout", server_address="203.0.113.9", server_port=8443)
    assert len(find([out(T0), forged], OTHER)) == 1


def test_what_the_own_proxy_saw():
    ids = [make_request_id() for _ in range(4)]
    spans = [out(T0 + i * i * S, provenance_request_id=request) for i, request in enumerate(ids)]
    logged = [
        make_proxy_record(
            record_id=70 + i, service_name="inventory", direction="outbound", request_id=f"{r[:14]}9{r[15:]}"
        )
        for i, r in enumerate(ids[:3])
    ]
    other = make_proxy_record(service_name="inventory", direction="outbound")
    assert "its own proxy logged 3 of 4 of them" in find(spans, OTHER, logged)[0].explanation
    assert find(spans, OTHER, logged)[0].record_ids == ("70", "71", "72")
    silent = find(spans, OTHER, [other])[0]
    assert "its own proxy logged none of them" in silent.explanation
    assert silent.completeness == ""
    assert "logged" not in find(spans, OTHER)[0].explanation


def test_the_peer_stands_in_where_no_name_was_recorded():
    span = out(T0, host=None, port=None, network_peer_address="198.51.100.4", network_peer_port=53)
    assert [f.destination for f in find([span], OTHER)] == ["198.51.100.4:53"]
    assert find([out(T0, host=None, port=None)], OTHER) == []


def test_metadata_services_and_odd_ports_have_their_techniques():
    (finding,) = find([out(T0, host="169.254.169.254", port=9999)], OTHER)
    assert finding.attack_ids == ("T1567", "T1571", "T1552.005")


def test_spans_delivered_twice_count_once():
    assert find(clock(6) * 2, OTHER)[0].count == 6


def test_unknown_sizes_are_said():
    (finding,) = find(clock(provenance_request_size=None), OTHER)
    assert "no request sizes" in finding.completeness
    assert " out" not in finding.explanation


def test_an_outbound_line_to_an_address_that_answered_names_the_mesh():
    record = make_proxy_record(
        direction="outbound", downstream_local_address="203.0.113.9:8443", upstream_host="10.0.0.9:8080"
    )
    assert find([out(T0), *served(host="10.0.0.9")], OTHER, [record]) == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("legacy.default.svc.cluster.local", 0),
        ("legacy", 0),
        ("nobody-logs", 0),
        ("legacy.example.com", 1),
        ("10.1.2.3", 0),
    ],
)
def test_a_workload_without_opentelemetry_is_in_the_mesh(host, expected):
    logged = [make_proxy_record(service_name="legacy", downstream_local_address="10.1.2.3:8080")]
    assert len(find([out(T0, host=host, port=8080)], OTHER, logged)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("LOCALHOST", 0), ("127.0.0.9", 1), ("localhost.example", 1)],
)
def test_the_pod_itself_is_not_outside(host, expected):
    assert len(find(clock(host=host, port=8126), OTHER)) == expected


@pytest.mark.parametrize(
    ("span", "destination"),
    [
        ({"url_full": "https://Evil.Example/x?y#z"}, "evil.example:443"),
        ({"url_full": "http://evil.example"}, "evil.example:80"),
        ({"url_full": "https://evil.example:8443/x"}, "evil.example:8443"),
        ({"url_full": "https://user:p@ss@evil.example?x@y"}, "evil.example:443"),
        ({"url_full": "https://evil.example\\@good.example/"}, "evil.example:443"),
        ({"url_full": "https://[2001:DB8::1]:8443/"}, "[2001:db8::1]:8443"),
        ({"url_full": "https://[2001:db8::1]/"}, "[2001:db8::1]:443"),
        ({"url_full": "ftp://evil.example/"}, "evil.example"),
        (
            {"url_full": "https://evil.example/", "network_peer_address": "10.0.0.1", "network_peer_port": 3128},
            "evil.example:443",
        ),
        ({"url_full": "https://other/", "server_address": "evil.example"}, "evil.example:443"),
        ({"url_full": "/relative", "server_address": "evil.example"}, "evil.example"),
        ({"server_address": "evil.example", "network_peer_port": 444}, "evil.example:444"),
    ],
)
def test_where_a_client_dialled(span, destination):
    spans = [{**out(T0, host=None, port=None), **span}]
    assert [f.destination for f in find(spans, OTHER)] == [destination]


@pytest.mark.parametrize("span", [{"url_full": "https://api.payments.example/pay"}, {"url_full": "https://x/"}])
def test_the_schemes_port_matches_a_rule(span):
    spans = [out(T0, host="api.payments.example" if "//x/" in span["url_full"] else None, port=None, **span)]
    assert find(spans, OTHER) == []


@pytest.mark.parametrize("url", [None, "", "/path", "https://", "https://host:port/", "not a url"])
def test_calls_that_name_no_address_are_counted(url):
    spans = [out(T0, host=None, port=None, url_full=url), out(T0 + S), *NEWEST]
    report = examine_egress(store(spans, [], OTHER), EVERYTHING)
    assert (len(report.findings), report.calls, report.unnamed) == (1, 2, 1)


def test_an_empty_list_lists_nothing_whether_given_or_stored():
    policy = parse_policy("[egress]\nallow = []", name="x")
    for found in (find([out(T0)], policy=policy), find([out(T0)], to_batch(policy).to_pylist())):
        assert [f.reasons for f in found] == [("unlisted",)]
        assert "no egress allow-list" not in found[0].completeness
    nothing_said = parse_policy("[egress]", name="x")
    assert find([out(T0)], policy=nothing_said) == []
