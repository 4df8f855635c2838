"""The grade: every planted incident has its finding, and every finding its incident."""

import json

import polars as pl
import pytest

from collector.demo.incidents import NANOSECONDS, Planted, grade, signatures
from collector.demo.plan import INCIDENTS, SERVICES, Plan, Ports
from collector.demo.report import document, verdict_lines
from collector.forensics.findings import SCHEMA, Finding, to_frame

PLAN = Plan(
    seed=1,
    duration_seconds=60.0,
    ports={service.name: Ports(1, 2, 3) for service in SERVICES},
    card_network="127.0.0.7:9000",
    drop="127.0.0.9:9001",
)
START = 1_795_400_000 * NANOSECONDS
PLANTED = {name: Planted(name, START + i * NANOSECONDS, s) for i, (name, s) in enumerate(signatures(PLAN).items())}


def make_finding(name, **overrides):
    """The finding that incident `name` deserves."""
    begin = PLANTED[name].planted_at_unix_nano
    common = {
        "severity": "high",
        "score": 0.9,
        "first_seen_unix_nano": begin + 200_000_000,
        "last_seen_unix_nano": begin + 20 * NANOSECONDS,
        "count": 12,
        "explanation": f"about {name}",
    }
    specific = {
        "rogue": {"kind": "shadow", "reasons": ("unstamped", "mesh_bypass"), "callee": "payment"},
        "bypass": {"kind": "shadow", "reasons": ("mesh_bypass",), "caller": "checkout", "callee": "inventory"},
        "egress": {
            "kind": "egress",
            "reasons": ("unlisted", "beacon"),
            "caller": "inventory",
            "destination": PLAN.drop,
        },
        "slow": {
            "kind": "latency",
            "reasons": ("latency_shift",),
            "caller": "checkout",
            "callee": "pricing",
            "operation": "shop.Pricing/Quote",
        },
    }
    return Finding(**{**common, **specific[name], **overrides})


def graded(*findings, planted=INCIDENTS):
    return grade([PLANTED[name] for name in planted], to_frame(list(findings)))


def test_all_found_and_nothing_else_is_perfect():
    result = graded(*map(make_finding, INCIDENTS))
    assert result.ok
    assert [len(outcome.finding_ids) for outcome in result.outcomes] == [1, 1, 1, 1]


@pytest.mark.parametrize("missing", INCIDENTS)
def test_one_missed_incident_is_named(missing):
    result = graded(*(make_finding(name) for name in INCIDENTS if name != missing))
    assert not result.ok
    assert [outcome.planted.name for outcome in result.outcomes if not outcome.found] == [missing]
    assert result.unexpected == ()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("rogue", {"callee": "pricing"}),
        ("rogue", {"caller": "checkout"}),
        ("rogue", {"reasons": ("tampered",)}),
        ("rogue", {"kind": "egress"}),
        ("bypass", {"caller": "gateway"}),
        ("bypass", {"caller": None}),
        ("bypass", {"reasons": ("unstamped",)}),
        ("bypass", {"callee": "payment"}),
        ("egress", {"caller": "payment"}),
        ("egress", {"destination": PLAN.card_network}),
        ("egress", {"reasons": ()}),
        ("slow", {"operation": "shop.Pricing/Catalog"}),
        ("slow", {"operation": None}),
        ("slow", {"callee": "checkout"}),
        *((name, {"first_seen_unix_nano": START - 10 * NANOSECONDS}) for name in INCIDENTS),
    ],
)
def test_a_finding_about_something_else_is_unexpected_and_finds_nothing(name, overrides):
    wrong = make_finding(name, **overrides)
    result = graded(wrong)
    assert not any(outcome.found for outcome in result.outcomes)
    assert result.unexpected == (wrong.finding_id,)
    assert not result.ok


@pytest.mark.parametrize("name", INCIDENTS)
def test_a_finding_about_what_was_not_planted_is_unexpected(name):
    finding = make_finding(name)
    others = [other for other in INCIDENTS if other != name]
    result = graded(*map(make_finding, INCIDENTS), planted=others)
    assert result.unexpected == (finding.finding_id,)
    assert not result.ok


def test_one_incident_may_have_two_findings():
    twice = [make_finding("bypass", operation=o) for o in ("POST /items/{sku}/reserve", "GET /items/{sku}")]
    result = graded(*twice, planted=["bypass"])
    assert result.ok
    assert set(result.outcomes[0].finding_ids) == {finding.finding_id for finding in twice}


def test_a_grpc_method_is_the_same_with_its_slash():
    assert graded(make_finding("slow", operation="/shop.Pricing/Quote"), planted=["slow"]).ok


def test_nothing_planted_and_nothing_found_is_perfect():
    assert graded(planted=[]).ok
    assert not graded(make_finding("slow"), planted=[]).ok


def test_document_holds_findings_incidents_and_surplus():
    surplus = make_finding("bypass", caller="gateway")
    findings = to_frame([make_finding("rogue"), surplus])
    result = grade([PLANTED["rogue"], PLANTED["slow"]], findings)
    read = json.loads(document(result, findings, "/evidence.duckdb"))
    assert read["ok"] is False
    assert read["unexpected"] == [surplus.finding_id]
    assert read["database"] == "/evidence.duckdb"
    assert read["incidents"] == [
        {
            "name": "rogue",
            "planted_at": "2026-11-23T02:13:20.000Z",
            "found": True,
            "finding_ids": [make_finding("rogue").finding_id],
        },
        {"name": "slow", "planted_at": "2026-11-23T02:13:23.000Z", "found": False, "finding_ids": []},
    ]
    assert {f["finding_id"] for f in read["findings"]} == set(findings["finding_id"])
    assert set(read["findings"][0]) == set(SCHEMA)


def test_verdicts_say_what_was_found_missed_and_invented():
    surplus = make_finding("egress", caller="payment", explanation="payment called somebody")
    findings = to_frame([make_finding("rogue"), surplus])
    lines = verdict_lines(grade([PLANTED["rogue"], PLANTED["slow"]], findings), findings)
    assert lines[0].startswith(f"rogue   02:13:20Z  found as {make_finding('rogue').finding_id}: ")
    assert lines[1].startswith("slow    02:13:23Z  NOT FOUND: ")
    assert lines[2] == f"UNEXPECTED {surplus.finding_id}: payment called somebody"
    assert lines[3] == "1 of 2 planted incidents found; findings that nobody planted: 1"


def test_an_empty_frame_can_be_graded():
    assert grade([], pl.DataFrame(schema=SCHEMA)).ok
