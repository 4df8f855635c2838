"""Destinations outside, by flows and by spans: what is told of them, what is flagged, and that ordinary days are quiet."""

import polars as pl
import pytest

from collector.forensics.destinations import View, examine_destinations
from collector.forensics.egress import EgressParams, find_egress
from collector.forensics.oddities import registered_domain
from collector.forensics.tables import Window
from collector.policy.listed import parse_policy
from collector.policy.policies import listed_alone
from tests.collector.forensics.factories import T0, S, make_span
from tests.collector.forensics.outbound import DAY, DAY0, HOUR, clock, evidence, make_flow, ordinary

EVERYTHING = Window()
SECOND_DAY = Window(DAY0 + DAY, DAY0 + 2 * DAY)
FIRST_DAY = Window(DAY0, DAY0 + DAY)


def flows(*rows, window=EVERYTHING, **view):
    return examine_destinations(evidence(flows=rows), window, View(**view))


def one(found):
    (row,) = found.rows.iter_rows(named=True)
    return row


def policy(*allowed, **more):
    text = f"[egress]\nallow = {list(allowed)}\n" + "".join(f"{k} = {v}\n" for k, v in more.items())
    return listed_alone(parse_policy(text, name="x"))


def test_a_beacon_in_flows_has_ritas_parts():
    found = flows(*clock(300, source_address="10.0.0.9"), make_flow(start_time_unix_nano=DAY0 + DAY))
    row = next(r for r in found.rows.iter_rows(named=True) if r["source"] == "10.0.0.9")
    assert found.by == "address"
    assert (row["destination"], row["port"], row["connections"]) == ("198.51.100.7", 443, 288)
    assert (row["bytes_out"], row["bytes_in"]) == (288 * 1200, 288 * 5000)
    assert {k: row["beacon"][k] for k in ("score", "ts", "ds", "hist", "dur")} == dict.fromkeys(
        ("score", "ts", "ds", "hist", "dur"), 1.0
    )
    assert (row["reasons"], row["flagged"]) == (["beacon"], True)


def test_one_pair_is_one_row_whichever_ports_it_uses():
    row = one(
        flows(*(make_flow(destination_port=p, start_time_unix_nano=DAY0 + i * S) for i, p in enumerate([443, 443, 80])))
    )
    assert (row["ports"], row["connections"], row["beacon"]) == ([443, 80], 3, None)


@pytest.mark.parametrize(
    ("flow", "view", "leaves"),
    [
        ({}, {}, True),
        ({"destination_address": "10.9.9.9"}, {}, False),
        ({"destination_address": "100.64.0.1"}, {}, False),
        ({"destination_address": "fd00::1", "source_address": "fd00::2"}, {}, False),
        ({"destination_address": "224.0.0.251"}, {}, False),
        ({"destination_address": "2001:db8::5", "source_address": "fd00::2"}, {}, True),
        ({"source_address": "203.0.113.1"}, {}, False),  # from outside
        ({"destination_address": "169.254.169.254"}, {}, True),
        ({"destination_address": "169.254.1.1"}, {}, False),
        ({"destination_address": "10.9.9.9"}, {"external": ("10.9.0.0/16",)}, True),
        ({}, {"internal": ("198.51.100.0/24",)}, False),
        ({"destination_name": "x.corp.example"}, {"internal": ("*.corp.example",)}, False),
        ({"destination_name": "db.shop.svc.cluster.local"}, {}, False),
        ({"destination_name": "svc.cluster.local.evil.example"}, {}, True),
        ({"destination_workload": "checkout"}, {}, False),
        ({"source_address": "203.0.113.1"}, {"internal": ("203.0.113.0/24",)}, True),
        ({}, {"policies": policy(internal=["198.51.100.7"])}, False),
    ],
)
def test_what_leaves(flow, view, leaves):
    assert flows(make_flow(**flow), **view).rows.height == leaves


def test_names_and_addresses_are_kept_apart():
    rows = flows(make_flow(destination_name="API.example"), make_flow()).rows
    assert sorted(rows["destination"]) == ["198.51.100.7", "api.example"]
    assert rows.filter(pl.col("destination") == "api.example")["addresses"].to_list() == [["198.51.100.7"]]


def test_what_a_policy_says_stands_in_the_row():
    allowed = one(flows(*clock(60), policies=policy("198.51.100.0/24")))
    assert (allowed["allowed_by"], allowed["reasons"], allowed["flagged"]) == (
        "egress.allow: 198.51.100.0/24",
        [],
        False,
    )
    assert allowed["beacon"]["score"] == 1  # it is told, and nobody's alarm
    refused = one(flows(make_flow(), make_flow(destination_port=80), policies=policy("198.51.100.7:443")))
    assert refused["allowed_by"] is None
    assert refused["refused_by"] == "egress.allow has no entry for 198.51.100.7:80"
    assert refused["reasons"] == ["unlisted"]


def test_workloads_are_known_by_their_addresses():
    who = {
        "address": "10.0.0.5",
        "service_name": "checkout",
        "namespace": "shop",
        "source": "pods",
        "received_unix_nano": 1,
    }
    query = evidence(flows=[make_flow()], workloads=[who])
    assert one(examine_destinations(query, EVERYTHING))["source"] == "checkout"
    assert one(examine_destinations(query, EVERYTHING, View(by="address")))["source"] == "10.0.0.5"
    other = who | {"address": "198.51.100.7", "service_name": "inside"}
    assert examine_destinations(evidence(flows=[make_flow()], workloads=[other]), EVERYTHING).rows.is_empty()
    node = other | {"host_network": True}
    assert examine_destinations(evidence(flows=[make_flow()], workloads=[node]), EVERYTHING).rows.height == 1


def out(at, host="api.example", **more):
    return make_span(
        kind="CLIENT", service_name="checkout", start_time_unix_nano=at, server_address=host, server_port=443, **more
    )


def test_a_flow_that_a_span_tells_of_is_not_told_twice():
    spans = [
        out(T0, network_peer_address="198.51.100.7", provenance_response_size=7),
        make_span(start_time_unix_nano=T0 + 60 * S),
    ]
    pods = [{"address": "10.0.0.5", "service_name": "checkout", "source": "pods", "received_unix_nano": 1}]
    dark = make_flow(destination_address="203.0.113.9")
    found = examine_destinations(evidence(spans=spans, flows=[make_flow(), dark], workloads=pods), EVERYTHING)
    told = {(r["source"], r["destination"], r["witness"]) for r in found.rows.iter_rows(named=True)}
    assert told == {("checkout", "api.example", "spans"), ("checkout", "203.0.113.9", "flows")}
    assert found.rows.filter(pl.col("witness") == "spans")["bytes_in"].to_list() == [7]


def habits(hosts=5, calls=40):
    return [
        make_flow(destination_name=f"h{h}.example", start_time_unix_nano=DAY0 + i * HOUR // 2)
        for h in range(hosts)
        for i in range(calls)
    ]


def test_what_was_never_reached_before_is_told_of_who_has_habits():
    now = make_flow(start_time_unix_nano=DAY0 + DAY + S, destination_name="new.example")
    found = flows(*habits(), now, window=SECOND_DAY, baseline=FIRST_DAY)
    row = next(r for r in found.rows.iter_rows(named=True) if r["destination"] == "new.example")
    assert row["reasons"] == ["first_seen"]
    assert row["notes"] == ["nobody called it in the baseline"]
    neighbour = make_flow(start_time_unix_nano=DAY0, source_address="10.0.0.6", destination_name="new.example")
    found = flows(*habits(), now, neighbour, window=SECOND_DAY, baseline=FIRST_DAY)
    row = next(r for r in found.rows.iter_rows(named=True) if r["destination"] == "new.example")
    assert row["notes"] == ["it never called it in the baseline"]


def test_who_always_calls_something_new_has_no_habits():
    crawler = [
        make_flow(destination_name=f"s{i}.example{i}", start_time_unix_nano=DAY0 + i * HOUR // 10) for i in range(300)
    ]
    assert not flows(*crawler, window=SECOND_DAY, baseline=FIRST_DAY).rows["flagged"].any()


def test_an_hour_with_far_more_bytes_is_told_also_of_what_is_allowed():
    usual = [make_flow(start_time_unix_nano=DAY0 + h * HOUR, bytes_out=10_000 + 100 * h) for h in range(30)]
    burst = make_flow(start_time_unix_nano=DAY0 + 28 * HOUR + S, bytes_out=80_000_000)
    row = one(flows(*usual, burst, policies=policy("198.51.100.7")))
    assert row["reasons"] == ["volume"]
    assert row["notes"][0].startswith("80.0 MB out in one hour, where 11.4 kB is usual")
    assert one(flows(*usual, policies=policy("198.51.100.7")))["reasons"] == []
    elsewhere = burst | {"destination_address": "203.0.113.77", "record_id": 1}
    rows = flows(*usual, elsewhere).rows.filter(pl.col("destination") == "203.0.113.77")
    assert rows["reasons"].to_list() == [["volume"]]  # by its source's hours: it has none of its own


@pytest.mark.parametrize(
    ("flow", "reasons", "flagged"),
    [
        ({"duration_ns": 5 * HOUR}, ["long_connection"], True),
        ({"duration_ns": 3 * HOUR}, [], False),
        ({"destination_address": "169.254.169.254", "destination_port": 80}, ["metadata_api"], True),
        ({"destination_port": 4444}, ["odd_port"], False),
        ({"protocol": "icmp", "destination_port": None, "source_port": None}, [], False),
    ],
)
def test_oddities_of_one_flow(flow, reasons, flagged):
    row = one(flows(make_flow(**flow)))
    assert (row["reasons"], row["flagged"]) == (reasons, flagged)


def test_an_address_without_a_name_is_odd_where_names_are_known():
    named = [make_flow(destination_name=f"n{i}.example", start_time_unix_nano=DAY0 + i * S) for i in range(5)]
    rows = flows(*named, make_flow(destination_port=4444)).rows.filter(pl.col("destination") == "198.51.100.7")
    assert (rows["reasons"].to_list(), rows["flagged"].to_list()) == ([["raw_address", "odd_port"]], [True])


def test_very_many_names_under_one_domain_are_a_tunnel():
    tunnel = [
        make_flow(
            destination_name=f"{i:032x}.t.evil.co.uk",
            start_time_unix_nano=DAY0 + i * S,
            protocol="udp",
            destination_port=53,
        )
        for i in range(150)
    ]
    rows = flows(*tunnel).rows
    assert rows.filter(pl.col("reasons").list.contains("dns_tunnel")).height == 150
    assert rows["notes"][0][0] == "150 names under evil.co.uk"
    assert not flows(*tunnel[:90]).rows["flagged"].any()
    assert [registered_domain(h) for h in ("a.b.example.com", "a.example.co.uk", "example.com", "com")] == [
        "example.com",
        "example.co.uk",
        "example.com",
        "com",
    ]


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_days_are_quiet(seed):
    ntp = clock(
        64, days=2, seed=seed, jitter=0.05, destination_name="ntp.example.net", destination_port=123, protocol="udp"
    )
    view = {"policies": policy("*.example.com", "ntp.example.net:123"), "baseline": FIRST_DAY}
    rows = flows(*ordinary(seed), *ntp, window=SECOND_DAY, **view).rows
    assert rows.height > 40
    assert rows.filter("flagged").is_empty()
    unlisted = flows(*ordinary(seed), window=SECOND_DAY, baseline=FIRST_DAY).rows
    assert unlisted.filter("flagged").is_empty()


@pytest.mark.parametrize(("jitter", "missing"), [(0.0, 0.0), (0.2, 0.25), (0.5, 0.0), (0.3, 0.5), (0.5, 0.5)])
def test_beacons_with_jitter_and_losses_are_found_among_ordinary_traffic(jitter, missing):
    beacon = clock(120, jitter=jitter, missing=missing, seed=7, destination_name="c2.example.net")
    rows = flows(*ordinary(5, days=1, sources=4), *beacon).rows.filter("flagged")
    assert rows["destination"].to_list() == ["c2.example.net"]


def test_flows_are_findings_of_a_scan_with_their_records():
    rows = clock(300)
    (finding,) = find_egress(evidence(flows=rows), EVERYTHING, EgressParams(policy=policy()))
    assert (finding.caller, finding.destination, finding.count) == ("10.0.0.5", "198.51.100.7:443", 288)
    assert (finding.reasons, finding.severity, finding.score) == (("unlisted", "beacon"), "critical", 1.0)
    assert (
        "10.0.0.5 connected to 198.51.100.7:443, which no policy allows (egress.allow has no entry"
        in finding.explanation
    )
    assert len(finding.record_ids) == 20
    assert set(finding.record_ids) <= {str(row["record_id"]) for row in rows}
    assert finding.attack_ids[:2] == ("T1071", "T1029")


def test_what_totals_say_joins_what_calls_say():
    spans = [out(T0 + i * S * 7 * (i % 5), provenance_request_size=100) for i in range(6)]
    spans.append(out(T0 + 40 * S, duration_ns=5 * HOUR))
    spans.append(make_span(start_time_unix_nano=T0 + 6 * HOUR))
    (finding,) = find_egress(evidence(spans=spans), EVERYTHING, EgressParams(policy=policy()))
    assert finding.reasons == ("unlisted", "long_connection")
    assert finding.explanation.endswith("one connection lasted 5.0 h")
    (alone,) = find_egress(evidence(spans=spans), EVERYTHING)
    assert (alone.reasons, alone.severity) == (("long_connection",), "low")
    assert len(alone.trace_ids) == 7


def test_what_comes_every_night_is_a_habit_and_a_long_night_is_none():
    usual = [make_flow(start_time_unix_nano=DAY0 + h * HOUR, bytes_out=10_000 + 100 * h) for h in range(44)]

    def reasons(*nights):
        backups = [make_flow(start_time_unix_nano=DAY0 + h * HOUR + S, bytes_out=b) for h, b in nights]
        allowed = policy("198.51.100.7")
        return one(flows(*usual, *backups, window=SECOND_DAY, baseline=FIRST_DAY, policies=allowed))["reasons"]

    assert reasons((16, 60_000_000), (40, 80_000_000)) == []
    assert reasons((16, 30_000_000), (40, 80_000_000)) == ["volume"]
    assert reasons((39, 70_000_000), (40, 80_000_000), (41, 75_000_000)) == ["volume"]


def test_who_fetches_much_now_and_then_from_others_has_a_habit_too():
    steady = [make_flow(start_time_unix_nano=DAY0 + h * HOUR, bytes_in=50_000) for h in range(24)]
    browsing = [
        make_flow(destination_address=f"203.0.113.{n}", start_time_unix_nano=DAY0 + h * HOUR + S, bytes_in=b)
        for n, (h, b) in enumerate([(5, 3_000_000), (11, 4_000_000), (19, 2_500_000)])
    ]
    assert not flows(*steady, *browsing).rows["reasons"].list.contains("volume").any()
    rows = flows(
        *steady,
        *browsing,
        make_flow(destination_address="203.0.113.9", start_time_unix_nano=DAY0 + 21 * HOUR, bytes_in=90_000_000),
    ).rows
    assert rows.filter(pl.col("reasons").list.contains("volume"))["destination"].to_list() == ["203.0.113.9"]
