"""`provenance scan`: what it prints, where, and what it exits with."""

import json
import random
from pathlib import Path

import polars as pl
import pytest

from collector.commands.scan import main, render_findings
from collector.commands.times import parse_time
from collector.errors import ConfigError
from collector.forensics.findings import SCHEMA, Finding, to_frame
from collector.forensics.scan import examine, scan
from collector.store.database import Store
from collector.store.writer import Writer
from tests.collector.forensics.factories import (
    T0,
    Row,
    S,
    make_proxy_record,
    make_socket,
    make_span,
    store,
    to_arrow,
)
from tests.collector.forensics.outbound import make_flow

NOW = T0 + 3600 * S


def evidence(*, rogue: bool) -> tuple[list[Row], list[Row]]:
    """A minute of `web` calling `pay`; the rogue calls it once, past its proxy and without a stamp."""
    spans: list[Row] = []
    records: list[Row] = []
    for n in range(13):
        at = {"start_time_unix_nano": T0 + n * 5 * S}
        ids = {"trace_id": n + 1, "provenance_request_id": f"request-{n}", "url_path": "/"}
        spans += [
            make_span(span_id=1, kind="CLIENT", service_name="web", **ids, **at),
            make_span(span_id=2, parent_span_id=1, service_name="pay", provenance_stamp_status="unsigned", **ids, **at),
        ]
        records.append(make_proxy_record(service_name="pay", request_id=f"request-{n}", record_id=n + 1, **at))
    if rogue:
        bare = {"provenance_request_id": "rogue", "url_path": "/", "provenance_stamp_status": "absent"}
        spans.append(make_span(trace_id=99, service_name="pay", start_time_unix_nano=T0 + 31 * S, **bare))
    return spans, records


def write(path: Path, *, rogue: bool, logged: bool = True) -> str:
    spans, records = evidence(rogue=rogue)
    batches = {"spans": to_arrow("spans", spans).to_batches()[0]}
    if logged:
        batches["proxy_records"] = to_arrow("proxy_records", records).to_batches()[0]
    with Store.open(path) as opened, Writer(opened) as writer:
        writer.append(batches).result(30)
    return str(path)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("bad") / "evidence.duckdb", rogue=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("good") / "evidence.duckdb", rogue=False)


def test_the_table_fits_80_columns_and_findings_exit_1(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bad, "--kind", "shadow"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "SEVERITY  KIND       CALLS  LAST SEEN            SUBJECT",
        "critical  shadow         1  2026-09-21T14:13:51Z unknown -> pay",
        "    mesh_bypass, unstamped: 1 call to pay carried no stamp, and pay's proxy,",
        "    which logged 13 other inbound calls around then, did not see it; it began at",
        "    2026-09-21T14:13:51Z.",
        "    to close it: set PeerAuthentication STRICT for pay (Linkerd:",
        "    default-inbound-policy all-authenticated) and let a NetworkPolicy admit its",
        "    callers' pods alone.",
        "",
        "1 finding",
    ]
    assert max(len(line) for line in out.splitlines()) <= 80
    assert err == ""


def test_a_clean_scan_exits_0_and_says_so(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([good]) == 0
    assert capsys.readouterr().out == "no findings\n"


def test_a_window_without_anything_in_it_is_told(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([good, "--kind", "latency", "--since", "2026-12-01"]) == 0
    assert "nothing was looked at" in capsys.readouterr().err


def test_of_an_import_the_newest_calls_are_judged_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = {"kind": "CLIENT", "server_address": "api.example", "server_port": 443, "received_unix_nano": T0}
    spans = [make_span(span_id=i + 1, trace_id=i + 1, start_time_unix_nano=T0 + i * S, **out) for i in range(3)]
    path = tmp_path / "evidence.duckdb"
    with Store.open(path) as opened, Writer(opened) as writer:
        writer.append({"spans": to_arrow("spans", spans).to_batches()[0]}).result(30)
    policy = tmp_path / "entry.yaml"
    policy.write_text(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: other}\n"
        "spec: {hosts: [other.example], ports: [{number: 443, name: tls, protocol: TLS}]}\n"
    )
    assert main([str(path), "--kind", "egress", "--policy", str(policy)]) == 1
    assert "no ServiceEntry has api.example:443" in " ".join(capsys.readouterr().out.split())


def test_json_lines_carry_the_whole_finding(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bad, "--kind", "shadow,egress", "--format", "ndjson"]) == 1
    [line] = capsys.readouterr().out.splitlines()
    finding = json.loads(line)
    assert set(finding) == set(SCHEMA)
    assert finding["trace_ids"] == [f"{99:032x}"]
    assert finding["attack_ids"] == ["T1562.004"]


def test_what_could_not_be_judged_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "evidence.duckdb", rogue=False, logged=False)
    assert main([path, "--kind", "shadow"]) == 0
    out, err = capsys.readouterr()
    assert out == "no findings\n"
    assert err.startswith("provenance scan: 100 % of 13 calls could not be judged by access logs: ")


@pytest.mark.slow
def test_since_and_until_limit_the_window(bad: str) -> None:
    def code(*arguments: str) -> int:
        return main([bad, "--kind", "shadow", *arguments], now=lambda: NOW)

    assert code("--since", "1h") == 1
    assert code("--since", "2026-09-21T14:13:52Z") == 0
    assert code("--until", "2026-09-21T14:13:51Z") == 0
    assert code("--since", "59m", "--until", "1m") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["--since", "5m", "--until", "10m"], "is not before"),
        (["--policy", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
)
def test_usage_errors_exit_2(good: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([good, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_the_user_knows_probes_by_agent_and_by_path(tmp_path: Path) -> None:
    spans, records = evidence(rogue=False)
    bare = {"provenance_stamp_status": "absent", "http_request_method": "GET", "service_name": "pay"}
    at = {"start_time_unix_nano": T0 + 31 * S}
    spans.append(make_span(trace_id=99, user_agent_original="curl/8.5.0", url_path="/healthz?full", **bare, **at))
    path = tmp_path / "evidence.duckdb"
    with Store.open(path) as opened, Writer(opened) as writer:
        batches = {"spans": to_arrow("spans", spans), "proxy_records": to_arrow("proxy_records", records)}
        writer.append({table: rows.to_batches()[0] for table, rows in batches.items()}).result(30)
    assert main([str(path), "--kind", "shadow"]) == 1
    assert main([str(path), "--kind", "shadow", "--probe", "curl/"]) == 0
    assert main([str(path), "--kind", "shadow", "--probe", "kube", "--probe", "/healthz"]) == 0
    assert main([str(path), "--kind", "shadow", "--probe", "/health"]) == 1


@pytest.mark.parametrize(
    "arguments", [["--probe", " "], ["--kind", "shadow,ghosts"], ["--kind", ","], ["--format", "xml"], []]
)
def test_bad_flags_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*(["evidence.duckdb"] if arguments else []), *arguments])
    assert stopped.value.code == 2


@pytest.mark.parametrize("source", ["/no/such/evidence.duckdb", "http://127.0.0.1:1", "ftp://example.test"])
def test_nothing_there_to_ask_exits_3(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([source]) == 3
    assert source in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("shadow", "latency", "egress", "--entry", "--probe", "--policy", "exit codes", "15m")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", NOW - 900 * S),
        ("2h", NOW - 7200 * S),
        ("999999999d", 0),
        ("2026-09-21T14:13:20Z", T0),
        ("2026-09-21T16:13:20+02:00", T0),
        ("2026-09-21 14:13:20", T0),
        ("2026-09-21T14:13:20.123456789Z", T0 + 123_456_789),
        ("2026-09-21T14:13:20.5Z", T0 + 500_000_000),
        ("2026-09-21T14:13:20,999999999999Z", T0 + 999_999_999),
        ("1970-01-01", 0),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "m", "-5m", "5 m", "15w", "2026-13-01T00:00:00Z", "25:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time"):
        parse_time(text, NOW)


@pytest.mark.parametrize("text", ["0001-01-01", "0001-01-01T00:00:00+14:00", "1969-12-31", "2262-04-11", "9999-12-31"])
def test_times_beyond_nanoseconds_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/no/such/evidence.duckdb", "--until", text]) == 2
    assert "beyond what nanoseconds can say" in capsys.readouterr().err


def test_a_recorded_name_cannot_drive_the_terminal() -> None:
    name = "pay\x1b[2J"
    finding = Finding(
        kind="shadow",
        reasons=("unstamped",),
        severity="low",
        score=0.5,
        callee=name,
        first_seen_unix_nano=T0,
        last_seen_unix_nano=T0,
        count=1,
        explanation=f"1 call to {name}",
        completeness=name,
    )
    assert "\x1b" not in "".join(render_findings(to_frame([finding]), 80))


def test_kinds_that_are_not_asked_for_are_not_run() -> None:
    query = store(*evidence(rogue=True))
    assert scan(query, kinds=("egress",)).is_empty()
    assert scan(query, kinds=("shadow", "shadow")).height == 1


def test_an_empty_store_is_clean_and_keeps_the_schema() -> None:
    result = examine(store())
    assert result.findings.schema == pl.Schema(SCHEMA)
    assert (result.findings.height, result.notes) == (0, ())


@pytest.mark.parametrize("seed", range(3))
def test_no_two_findings_of_random_evidence_are_known_by_one_id(seed: int) -> None:
    rng = random.Random(seed)
    hosts = ["api.example.com", "API.example.com", "198.51.100.7", "2001:db8::7", "a.b:443", "169.254.169.254"]
    services, ports = ["web", "pay", "10.0.0.5"], [None, 443, 8443]
    at = (T0 + second * S for second in range(300))

    def left() -> Row:
        return make_span(
            service_name=rng.choice(services), kind="CLIENT", start_time_unix_nano=next(at),
            server_address=rng.choice(hosts), server_port=rng.choice(ports), network_peer_address=rng.choice([None, "198.51.100.7"]),
        )  # fmt: skip

    def flow() -> Row:
        return make_flow(
            start_time_unix_nano=next(at), destination_name=rng.choice([*hosts, None]), destination_port=rng.choice([443, 8443]),
            source_workload=rng.choice([None, *services]), protocol=rng.choice(["tcp", "udp"]), destination_workload=rng.choice([None, "pay"]),
        )  # fmt: skip

    def socket() -> Row:
        seen = next(at)
        return make_socket(
            service_name=rng.choice(services), capture=rng.choice(["captured", "bypassed"]), remote_port=rng.choice([80, 8080]),
            remote_address=rng.choice(["10.0.0.2", "10.0.0.3"]), first_seen_unix_nano=seen, last_seen_unix_nano=seen + S,
        )  # fmt: skip

    allowed = [{"service_name": "web", "destination": "api.example.com", "port": 443}]
    spans, flows, sockets = ([make() for _ in range(n)] for make, n in ((left, 120), (flow, 60), (socket, 60)))
    query = store(spans, egress_allow=allowed, flows=flows, sockets=sockets)
    found = scan(query)
    assert found.height >= 3
    assert found["finding_id"].is_unique().all(), found.filter(found["finding_id"].is_duplicated())
