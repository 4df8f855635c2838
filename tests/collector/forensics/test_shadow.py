"""Shadow traffic: what is proven is found, and what could not have been seen is never held against anyone."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.forensics.findings import Finding
from collector.forensics.shadow import ShadowParams, ShadowReport, examine_shadow, shadow_sql
from collector.forensics.tables import Window
from tests.collector.forensics.factories import (
    MINUTE,
    MS,
    T0,
    Row,
    S,
    make_proxy_record,
    make_request_id,
    make_span,
    next_id,
    store,
)

OLD_UUID_VERSION = 14


@dataclass
class Mesh:
    """Calls, and what each of their witnesses wrote."""

    spans: list[Row] = field(default_factory=list)
    records: list[Row] = field(default_factory=list)

    def call(
        self,
        at: int,
        caller: str | None = "web",
        callee: str = "pay",
        *,
        logs: tuple[str, ...] = ("outbound", "inbound"),
        stamp: str | None = "unsigned",
        proxies: tuple[str, ...] = (),
        request_id: str | None = "new",
        skew: int = 0,
        client: Row | None = None,
        server: Row | None = None,
        record: Row | None = None,
    ) -> None:
        """One call, `at` ns after T0; a caller of None leaves no client span; `logs` are the proxies that log it."""
        trace, client_id, server_id = next_id(), next_id(), next_id()
        start = T0 + at
        key = make_request_id() if request_id == "new" else request_id
        kid = (caller or "ghost") if stamp == "unsigned" else None
        both = {
            "provenance_request_id": key,
            "url_path": "/charge",
            "http_request_method": "POST",
            "http_route": "/charge",
        }
        parent = None
        if caller is not None:
            hashed = {"provenance_request_hash": "aa", "provenance_stamp_kid": kid} if stamp == "unsigned" else {}
            ids = {"trace_id": trace, "span_id": client_id, "kind": "CLIENT", "service_name": caller}
            times = {"start_time_unix_nano": start - MS, "duration_ns": 14 * MS}
            self.spans.append(make_span(**{**both, **ids, **times, **hashed, **(client or {})}))
            parent = client_id
        for name in proxies:
            proxy_id = next_id()
            ids = {"trace_id": trace, "span_id": proxy_id, "parent_span_id": parent, "service_name": name}
            self.spans.append(make_span(witness="proxy", start_time_unix_nano=start, **ids))
            parent = proxy_id
        stamps = {"provenance_stamp_status": stamp, "provenance_stamp_kid": kid}
        ids = {"trace_id": trace, "span_id": server_id, "parent_span_id": parent, "service_name": callee}
        hashed = {"provenance_request_hash": "aa"} if stamp is not None else {}
        row = {**both, **stamps, **ids, **hashed, "start_time_unix_nano": start + skew, **(server or {})}
        self.spans.append(make_span(**row))
        written = None if key is None else key[:OLD_UUID_VERSION] + "9" + key[OLD_UUID_VERSION + 1 :]
        for side in logs:
            whose = caller if side == "outbound" else callee
            if whose is None:
                continue
            moved = skew if side == "inbound" else 0
            line = {"direction": side, "service_name": whose, "request_id": written, "path": "/charge?x=1"}
            when = {"start_time_unix_nano": start + moved - MS // 2, "duration_ns": 11 * MS}
            self.records.append(make_proxy_record(**{**line, **when, **(record or {})}))

    def steady(self, seconds: int = 60, every: int = 5, **call: Any) -> "Mesh":
        """A call every few seconds."""
        for at in range(0, seconds, every):
            self.call(at * S, **call)
        return self

    def examine(self, window: Window = Window(), **params: Any) -> ShadowReport:  # noqa: B008
        return examine_shadow(store(self.spans, self.records), window, ShadowParams(**params))

    def only(self, **params: Any) -> Finding:
        [finding] = self.examine(**params).findings
        return finding

    def clean(self, **params: Any) -> bool:
        return self.examine(**params).findings == []


# --- bypass -----------------------------------------------------------------------------------------------------------


def test_a_meshed_and_stamped_mesh_is_clean() -> None:
    report = Mesh().steady().examine()
    assert (report.findings, report.calls, report.unjudged) == ([], 12, 0)


@pytest.mark.parametrize(
    ("logs", "severity", "words"),
    [
        (
            (),
            "high",
            ["pay's proxy, which logged 12 other inbound calls", "web's proxy, which logged 12 other outbound"],
        ),
        (("outbound",), "high", ["pay's proxy"]),
        (("inbound",), "medium", ["web's proxy"]),
    ],
)
def test_the_side_that_a_call_bypassed_is_named(logs: tuple[str, ...], severity: str, words: list[str]) -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, logs=logs)
    finding = mesh.only()
    assert (finding.reasons, finding.severity, finding.count) == (("mesh_bypass",), severity, 1)
    assert (finding.caller, finding.callee, finding.attack_ids) == ("web", "pay", ("T1562.004",))
    assert all(word in finding.explanation for word in words)
    assert finding.explanation.count("proxy") == len(words)
    assert finding.explanation.endswith("; it began at 2026-09-21T14:13:50Z")
    assert finding.first_seen_unix_nano == T0 + 31 * S - MS


def test_an_unstamped_call_that_nobody_saw_is_critical_and_says_the_numbers() -> None:
    mesh = Mesh().steady()
    for at in range(3):
        mesh.call((31 + at) * S, None, stamp="absent", logs=())
    finding = mesh.only()
    assert (finding.reasons, finding.severity) == (("mesh_bypass", "unstamped"), "critical")
    assert (finding.caller, finding.callee, finding.count) == (None, "pay", 3)
    assert finding.explanation == (
        "3 calls to pay carried no stamp, and pay's proxy, which logged 12 other inbound calls around then, "
        "saw none of them; the first at 2026-09-21T14:13:51Z"
    )
    assert len(set(finding.trace_ids)) == 3
    assert all(len(trace) == 32 for trace in finding.trace_ids)
    assert all(len(span) == 16 for span in finding.span_ids)


def test_a_proxy_that_stopped_logging_half_way_condemns_nobody() -> None:
    mesh = Mesh().steady(60).steady(0)
    for at in range(60, 120, 5):
        mesh.call(at * S, logs=())
    report = mesh.examine()
    assert report.findings == []
    assert report.unjudged == 12
    assert "no line shortly before or after the call" in report.why


def test_a_line_long_before_or_after_covers_nothing() -> None:
    mesh = Mesh()
    mesh.call(0)
    mesh.call(5 * MINUTE, logs=())
    mesh.call(10 * MINUTE)
    assert mesh.clean()


def test_the_last_call_is_not_judged_before_a_later_line_is_there() -> None:
    mesh = Mesh().steady(30)
    mesh.call(31 * S, logs=())
    assert mesh.clean()
    mesh.call(33 * S)
    assert mesh.only().count == 1


def test_no_access_logs_at_all_prove_nothing() -> None:
    report = Mesh().steady(logs=()).examine()
    assert report.findings == []
    assert report.unjudged == report.calls
    assert "no access log and no spans of that proxy" in report.why


def test_missing_proxy_spans_alone_prove_nothing() -> None:
    mesh = Mesh().steady(logs=(), proxies=("web", "pay"))
    mesh.call(31 * S, logs=())
    report = mesh.examine()
    assert (report.findings, report.unjudged) == ([], 1)
    assert "spans are sampled" in report.why


def test_a_log_that_keeps_every_other_line_condemns_nobody() -> None:
    mesh = Mesh()
    for number in range(120):
        mesh.call(number * S, logs=("outbound", "inbound") if number * 7919 % 5 < 3 else ())
    report = mesh.examine()
    assert report.findings == []
    assert "a sample of the calls" in report.why


def test_half_of_the_calls_past_the_mesh_after_a_whole_beginning_are_no_sample() -> None:
    mesh = Mesh()
    for number in range(120):
        mesh.call(number * S, logs=() if number > 45 and number % 2 else ("outbound", "inbound"))
    finding = mesh.only()
    assert finding.reasons == ("mesh_bypass",)
    assert finding.count == 36  # of 37: the last one has no line after it yet


def test_proxy_spans_vouch_where_a_log_is_silent() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, logs=(), proxies=("web", "pay"))
    assert mesh.clean()


@pytest.mark.parametrize(
    "record",
    [{"request_id": None}, {"direction": None}, {"response_code": 503}],
    ids=["no id", "no direction", "failures"],
)
def test_logs_that_could_not_have_shown_the_call_condemn_nobody(record: Row) -> None:
    mesh = Mesh().steady(record=record)
    mesh.call(31 * S, logs=())
    assert mesh.clean()


def test_a_proxy_that_logs_one_direction_is_judged_on_that_direction() -> None:
    mesh = Mesh().steady(logs=("inbound",))
    mesh.call(31 * S, logs=())
    finding = mesh.only()
    assert "web's proxy" not in finding.explanation
    assert finding.completeness == ""


def test_a_call_on_which_nobody_looked_for_a_request_id_cannot_be_missed() -> None:
    mesh = Mesh().steady(stamp=None)
    mesh.call(31 * S, logs=(), request_id=None, stamp=None)
    report = mesh.examine()
    assert (report.findings, report.unjudged) == ([], 1)


def test_a_call_that_arrives_without_the_id_that_the_proxy_gives_every_call_did_not_pass_it() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, None, logs=(), request_id=None, stamp="absent")
    finding = mesh.only()
    assert (finding.reasons, finding.severity) == (("mesh_bypass", "unstamped"), "critical")
    assert "pay's proxy, which logged 12 other inbound calls around then, did not see it" in finding.explanation


def test_an_unclaimed_line_near_a_call_without_an_id_may_be_about_it() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, None, logs=(), request_id=None, stamp="absent")
    mesh.records.append(
        make_proxy_record(service_name="pay", path="/charge", start_time_unix_nano=T0 + 32 * S, direction="inbound")
    )
    assert mesh.only().reasons == ("unstamped",)


def test_a_proxy_that_gives_ids_to_some_calls_alone_proves_nothing_by_a_missing_one() -> None:
    mesh = Mesh().steady()
    mesh.call(20 * S, request_id=None)
    mesh.call(31 * S, None, logs=(), request_id=None, stamp="absent")
    assert mesh.only().reasons == ("unstamped",)


def test_ids_that_never_reach_the_service_prove_nothing_by_their_absence() -> None:
    mesh = Mesh().steady(server={"provenance_request_id": None}, client={"provenance_request_id": None})
    mesh.call(31 * S, None, logs=(), request_id=None, stamp="absent")
    assert mesh.only().reasons == ("unstamped",)


def test_a_kubelets_probe_past_the_sidecar_is_no_finding() -> None:
    mesh = Mesh().steady()
    probe = {"user_agent_original": "kube-probe/1.31", "http_request_method": "GET"}
    mesh.call(31 * S, None, logs=(), request_id=None, stamp="absent", server=probe)
    assert mesh.clean()


def test_a_gateways_log_says_nothing_about_calls_behind_it() -> None:
    mesh = Mesh().steady(logs=())
    for at in range(0, 60, 5):
        mesh.records.append(
            make_proxy_record(service_name="edge", direction="inbound", start_time_unix_nano=T0 + at * S)
        )
    assert mesh.clean()


def test_a_log_that_holds_a_sample_condemns_nobody() -> None:
    mesh = Mesh()
    for at in range(60):
        mesh.call(at * S, logs=("outbound", "inbound") if at % 10 == 0 else ())
    report = mesh.examine()
    assert report.findings == []
    assert "a sample of the calls" in report.why


@pytest.mark.parametrize("calls", [6, 13, 19, 40])
def test_every_second_call_in_a_log_is_a_sample_however_few_there_are_and_it_is_said(calls: int) -> None:
    mesh = Mesh()
    for number in range(calls):
        mesh.call(number * 3 * S, logs=("outbound", "inbound") if number % 2 == 0 else ("outbound",))
    report = mesh.examine()
    assert (report.findings, report.unjudged) == ([], 0)
    [sentence] = report.sampled
    assert sentence.startswith("pay's proxy logs ")
    assert sentence.endswith("of its inbound calls: a sample, or a replica without a sidecar")


@pytest.mark.parametrize(("calls", "missed"), [(30, {10}), (16, set(range(9, 15)))], ids=["one", "in one place"])
def test_few_calls_that_are_missed_in_one_place_are_no_sample(calls: int, missed: set[int]) -> None:
    mesh = Mesh()
    for number in range(calls):
        mesh.call(number * 2 * S, logs=("outbound",) if number in missed else ("outbound", "inbound"))
    assert mesh.only().count == len(missed)


def test_one_replicas_half_empty_log_does_not_excuse_another() -> None:
    mesh = Mesh()
    for number in range(90):
        name = {"service_instance_id": f"pay-{number % 2}"}
        missed = number % 4 == 0 or number == 51  # every second call of pay-0, and one of pay-1's
        mesh.call(number * S, logs=("outbound",) if missed else ("outbound", "inbound"), server=name)
        if not missed:
            mesh.records[-1] |= name
            mesh.records[-2] |= {"service_instance_id": None}
    finding = mesh.only()
    assert finding.count == 1
    assert "pay's proxy logs" in finding.completeness


@pytest.mark.parametrize(
    ("address", "clean"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.7", False)]
)
def test_a_service_that_calls_itself_over_loopback_passes_no_sidecar(address: str, *, clean: bool) -> None:
    mesh = Mesh().steady().steady(caller="pay", callee="stock")
    mesh.call(31 * S, "pay", "pay", logs=(), client={"server_address": address})
    report = mesh.examine()
    assert (report.findings == []) is clean
    assert ("passes no sidecar" in report.why) is clean


OPAQUE = {"request_id": None, "path": None, "method": None, "response_code": 0, "duration_ns": 20 * S}


@pytest.mark.parametrize(
    ("line", "sides"),
    [
        ({"direction": "inbound", "service_name": "pay"}, {"web's"}),
        ({"direction": "inbound", "service_name": "pay", "downstream_local_address": "10.0.0.9:8080"}, {"web's"}),
        ({"direction": "outbound", "service_name": "web", "downstream_local_address": "10.1.1.1:80"}, {"pay's"}),
        ({"direction": "outbound", "service_name": "web", "upstream_host": "10.0.0.5:3306"}, {"pay's"}),
        (
            {
                "direction": "outbound",
                "service_name": "web",
                "downstream_local_address": "10.1.1.2:3306",
                "upstream_host": "10.0.0.5:3306",
            },
            {"web's", "pay's"},
        ),
        ({"direction": "inbound", "service_name": "pay", "start_time_unix_nano": T0 - 40 * S}, {"web's", "pay's"}),
    ],
    ids=["inbound", "listens elsewhere", "outbound", "behind a service", "another port", "another time"],
)
def test_a_connection_that_the_proxy_did_not_look_into_may_have_carried_the_call(line: Row, sides: set[str]) -> None:
    mesh = Mesh().steady(client={"server_port": 80})
    mesh.call(31 * S, logs=(), client={"server_port": 80})
    mesh.records.append(make_proxy_record(**{"start_time_unix_nano": T0 + 20 * S, **OPAQUE, **line}))
    assert {whose for whose in ("web's", "pay's") if f"{whose} proxy, which" in mesh.only().explanation} == sides


def test_a_replica_without_a_sidecar_is_not_condemned_by_anothers_log() -> None:
    mesh = Mesh()
    mesh.steady(logs=("inbound",), server={"service_instance_id": "pay-0"}, record={"service_instance_id": "pay-0"})
    mesh.call(31 * S, logs=(), server={"service_instance_id": "pay-1"})
    assert mesh.clean()
    mesh.call(32 * S, logs=(), server={"service_instance_id": "pay-0"})
    assert mesh.only().count == 1


def test_replicas_that_spans_and_logs_name_differently_are_one_proxy() -> None:
    mesh = Mesh()
    mesh.steady(logs=("inbound",), server={"service_instance_id": "uuid-1"}, record={"service_instance_id": "pay-0"})
    mesh.call(31 * S, logs=(), server={"service_instance_id": "uuid-1"})
    assert mesh.only().count == 1


def test_of_several_files_one_that_stopped_condemns_nobody() -> None:
    mesh = Mesh().steady(60, logs=("inbound",), record={"source": "a.log"})
    mesh.steady(31, logs=("inbound",), record={"source": "b.log"})
    mesh.call(31 * S, logs=())
    assert mesh.clean()


def test_two_calls_under_one_request_id_one_of_them_past_the_mesh() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, request_id="r" * 36)
    mesh.call(31 * S + 40 * MS, None, request_id="r" * 36, logs=(), stamp="absent")
    finding = mesh.only()
    assert (finding.caller, finding.count, finding.severity) == (None, 1, "critical")


@pytest.mark.parametrize("skew", [-2 * S, -50 * MS, 50 * MS, 2 * S])
def test_clocks_that_disagree_between_hosts_accuse_nobody(skew: int) -> None:
    mesh = Mesh().steady(skew=skew)
    assert mesh.clean()
    mesh.call(31 * S, skew=skew, logs=())
    assert mesh.only().count == 1


def test_evidence_delivered_twice_changes_nothing() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, None, stamp="absent", logs=())
    once = mesh.only()
    mesh.spans *= 2
    mesh.records *= 2
    assert mesh.only() == once


# --- stamps and callers -----------------------------------------------------------------------------------------------


def test_an_unstamped_call_from_nobody_is_found_without_access_logs() -> None:
    mesh = Mesh().steady(logs=())
    mesh.call(31 * S, None, stamp="absent", logs=())
    finding = mesh.only()
    assert (finding.reasons, finding.severity) == (("unstamped",), "medium")
    assert finding.completeness.startswith("100 % of 13 calls to pay")


def test_an_unstamped_call_that_the_callees_proxy_saw_is_low() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, None, stamp="absent", logs=("inbound",))
    assert mesh.only().severity == "low"


def test_a_service_without_middleware_is_never_unstamped() -> None:
    mesh = Mesh().steady(stamp=None)
    mesh.call(31 * S, None, stamp=None)
    assert mesh.clean()


def test_where_the_middleware_looks_a_span_without_any_stamp_attribute_is_unstamped() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, None, stamp=None, logs=("inbound",))
    assert mesh.only().reasons == ("unstamped",)


@pytest.mark.parametrize(
    "server",
    [
        {"service_instance_id": "other"},
        {"http_request_method": None, "http_route": None, "rpc_method": "Charge", "rpc_service": "Pay"},
    ],
    ids=["replica", "framework"],
)
def test_middleware_in_one_replica_or_framework_does_not_speak_for_another(server: Row) -> None:
    mesh = Mesh().steady(logs=())
    mesh.call(31 * S, None, stamp=None, logs=(), server=server)
    assert mesh.clean()


def test_a_known_caller_without_middleware_is_no_finding() -> None:
    mesh = Mesh().steady()
    mesh.steady(caller="legacy", stamp="absent")
    assert mesh.clean()


def legacy_call(mesh: Mesh, at: int, logs: tuple[str, ...]) -> None:
    """A call by `legacy`, which has a sidecar and no telemetry."""
    key = make_request_id()
    mesh.call(at, None, stamp="absent", request_id=key, logs=logs)
    line = {"service_name": "legacy", "direction": "outbound", "request_id": key, "path": "/charge"}
    mesh.records.append(make_proxy_record(start_time_unix_nano=T0 + at - MS, duration_ns=13 * MS, **line))


def test_a_caller_without_telemetry_is_known_by_its_proxy() -> None:
    mesh = Mesh().steady()
    for at in range(2, 60, 10):
        legacy_call(mesh, at * S, logs=("inbound",))
    assert mesh.clean()
    legacy_call(mesh, 33 * S, logs=())
    finding = mesh.only()
    assert (finding.caller, finding.count) == ("legacy", 1)
    assert "mesh_bypass" in finding.reasons


def test_one_line_does_not_vouch_for_two_callers() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, request_id="r" * 36)
    mesh.call(31 * S + 5 * MS, None, request_id="r" * 36, logs=("inbound",), stamp="absent")
    assert mesh.only().caller is None


def test_a_stamp_that_was_set_and_never_arrived_is_a_finding() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, stamp="absent", client={"provenance_stamp_kid": "web"})
    finding = mesh.only()
    assert (finding.caller, finding.reasons, finding.severity) == ("web", ("unstamped",), "high")


def test_a_gateway_is_an_entry_point() -> None:
    mesh = Mesh().steady(600, 10)
    mesh.steady(600, 10, caller=None, callee="gateway", stamp="absent", logs=())
    assert mesh.clean()
    assert [f.callee for f in mesh.examine(infer_entries=False).findings] == ["gateway"]
    assert mesh.clean(infer_entries=False, entry_services=("gateway",))


def test_a_flood_does_not_make_an_entry_point() -> None:
    mesh = Mesh().steady(600, 20)
    mesh.steady(600, 1, caller=None, stamp="absent", logs=())
    finding = mesh.only()
    assert (finding.callee, finding.count) == ("pay", 600)


def test_a_flood_of_a_service_that_nobody_else_calls_does_not_make_an_entry_point() -> None:
    mesh = Mesh().steady(1200, 10)
    mesh.call(0, callee="ledger")
    for at in range(900, 1100):
        mesh.call(at * S, None, "ledger", stamp="absent", logs=())
    assert mesh.only().callee == "ledger"


def test_an_entry_point_that_is_called_past_its_own_proxy_is_a_finding() -> None:
    mesh = Mesh().steady(600, 10, caller=None, callee="gateway", stamp="absent", logs=("inbound",))
    mesh.call(31 * S, None, "gateway", stamp="absent", logs=())
    finding = mesh.only(entry_services=("gateway",))
    assert (finding.callee, finding.count, finding.severity) == ("gateway", 1, "critical")


@pytest.mark.parametrize(
    ("server", "clean"),
    [
        ({"user_agent_original": "kube-probe/1.31", "http_request_method": "GET"}, True),
        ({"user_agent_original": "kube-probe/1.31", "http_request_method": "POST"}, False),
        ({"user_agent_original": "OpenTelemetry Collector Contrib/0.110.0", "http_request_method": "GET"}, True),
        ({"user_agent_original": "Go-http-client/1.1", "http_request_method": "GET"}, False),
        ({"url_path": "/healthz", "http_request_method": "GET"}, True),
        ({"url_path": "/healthz/", "http_request_method": "GET"}, False),
        ({"url_path": "/healthz", "http_request_method": "POST"}, False),
        ({"user_agent_original": "curl/8", "http_request_method": "GET"}, False),
    ],
)
def test_health_probes_carry_no_stamp(server: Row, *, clean: bool) -> None:
    mesh = Mesh().steady()
    mesh.call(
        31 * S,
        None,
        stamp="absent",
        logs=("inbound",),
        server=server,
        record={"path": server.get("url_path", "/charge")},
    )
    assert mesh.clean(probe_paths=("/healthz",)) is clean


def test_grpc_health_checks_carry_no_stamp() -> None:
    rpc = {"rpc_service": "grpc.health.v1.Health", "rpc_method": "Check", "rpc_system": "grpc"}
    other = {"rpc_service": "Pay", "rpc_method": "Charge", "rpc_system": "grpc"}
    mesh = Mesh().steady(logs=(), server=other)
    mesh.call(31 * S, None, stamp="absent", logs=(), server=rpc)
    assert mesh.clean()


def test_a_probe_with_a_request_id_past_the_proxy_is_a_finding() -> None:
    mesh = Mesh().steady()
    probe = {"user_agent_original": "kube-probe/1.31", "http_request_method": "GET"}
    mesh.call(31 * S, None, stamp="absent", logs=(), server=probe)
    assert mesh.only().severity == "critical"


def test_a_stamp_of_a_caller_whose_span_never_arrived() -> None:
    mesh = Mesh().steady(120)
    mesh.call(31 * S, None, server={"parent_span_id": next_id(), "provenance_stamp_kid": "web/3"})
    finding = mesh.only()
    assert (finding.caller, finding.reasons, finding.severity) == (None, ("unknown_caller",), "low")
    assert "stamped as web's, whose spans arrive otherwise, or whose spans were lost" in finding.explanation


def test_a_stamp_of_a_caller_whose_span_never_arrived_and_no_proxy_saw_it() -> None:
    mesh = Mesh().steady(120, logs=())
    mesh.call(31 * S, None, logs=(), server={"parent_span_id": next_id(), "provenance_stamp_kid": "web/3"})
    assert mesh.only().severity == "medium"


def test_an_exporter_that_loses_a_span_now_and_then_hides_nobody() -> None:
    mesh = Mesh().steady(600, 2)
    for at in range(15, 600, 60):
        mesh.call(at * S, None, server={"parent_span_id": next_id(), "provenance_stamp_kid": "web"}, logs=("inbound",))
    assert mesh.clean()


def test_the_last_seconds_of_live_data_accuse_nobody() -> None:
    mesh = Mesh().steady(600)
    late = {"parent_span_id": next_id(), "provenance_stamp_kid": "web"}
    mesh.call(590 * S, None, logs=("inbound",), server=late)
    assert mesh.clean()
    assert mesh.only(settle_ns=S).reasons == ("unknown_caller",)


def test_a_sampled_caller_is_not_unknown() -> None:
    mesh = Mesh()
    for at in range(0, 300, 5):
        if at % 20:
            mesh.call(at * S, None, server={"parent_span_id": next_id(), "provenance_stamp_kid": "web"}, logs=())
        else:
            mesh.call(at * S, logs=())
    assert mesh.clean()


# --- tampering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server", [{"provenance_request_hash": "bb"}, {"provenance_stamp_status": "mismatched"}], ids=["hash", "status"]
)
def test_a_body_that_changed_on_the_way(server: Row) -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, server=server)
    finding = mesh.only()
    assert (finding.reasons, finding.severity, finding.caller) == (("tampered",), "high", "web")


def test_a_body_that_broke_off_is_not_tampered_with() -> None:
    mesh = Mesh().steady()
    cut = {"provenance_request_hash": "bb", "provenance_request_size": 10, "status_code": "ERROR"}
    mesh.call(31 * S, client={"provenance_request_size": 99}, server=cut)
    assert mesh.clean()


# --- any mesh ---------------------------------------------------------------------------------------------------------


def test_empty_tables_have_no_findings() -> None:
    assert Mesh().examine() == ShadowReport([], 0, 0, "")


@pytest.mark.slow
def test_the_window_limits_what_is_reported() -> None:
    mesh = Mesh().steady()
    mesh.call(31 * S, logs=())
    assert mesh.examine(Window(T0 + 40 * S, None)).findings == []
    assert len(mesh.examine(Window(T0 + 30 * S, T0 + 32 * S)).findings) == 1


@pytest.mark.parametrize("margin", [0, 5 * S, 30 * S])
def test_a_narrow_window_says_of_a_call_what_the_whole_evidence_says(margin: int) -> None:
    mesh = Mesh().steady(600, request_id="c" * 36)
    mesh.call(301 * S, None, logs=(), request_id=None, stamp="absent")
    whole, narrow = mesh.only(), mesh.examine(Window(T0 + 301 * S - margin, T0 + 301 * S + margin + 1))
    assert whole.severity == "critical"
    assert narrow.unjudged == 0
    [finding] = narrow.findings
    assert finding == whole


def test_the_sql_can_be_shown_and_run_elsewhere() -> None:
    query = store([], [])
    answers = {name: query(sql).height for name, sql in shadow_sql(Window()).items()}
    assert answers == {"calls": 0, "proxies": 0, "sockets": 0, "flows": 0, "dialled": 0}


SIDES = st.sampled_from([("outbound", "inbound"), ("inbound",), ("outbound",), ()])
CALLS = st.lists(
    st.tuples(st.integers(0, 119_000), st.sampled_from(["web", "cart"]), st.sampled_from(["pay", "stock"])), max_size=30
)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=CALLS, deployed=SIDES, skew=st.integers(-90, 90), proxies=st.integers(0, 4))
def test_a_meshed_and_stamped_mesh_is_never_flagged(
    calls: list[tuple[int, str, str]], deployed: tuple[str, ...], skew: int, proxies: int
) -> None:
    mesh = Mesh()
    for at, caller, callee in calls:
        chain = ((caller,) * 4 + (callee,))[-proxies:] if proxies else ()
        mesh.call(at * MS, caller, callee, logs=deployed, skew=skew * MS, proxies=chain)
    assert mesh.clean()


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    calls=CALLS, at=st.integers(1_000, 119_000), skew=st.integers(-90, 90), stamped=st.booleans(), shared=st.booleans()
)
def test_a_planted_bypass_in_a_covered_window_is_always_found(
    *, calls: list[tuple[int, str, str]], at: int, skew: int, stamped: bool, shared: bool
) -> None:
    mesh = Mesh()
    # A minute without a line before or after a call is not covered.
    steady = [(second * 1_000, "web", "pay") for second in (0, 40, 80, 121)]
    for when, caller, callee in [*calls, *steady]:
        mesh.call(when * MS, caller, callee, skew=skew * MS, request_id="f" * 36 if shared else "new")
    planted = "f" * 36 if shared else "new"
    mesh.call(
        at * MS, None, "pay", logs=(), skew=skew * MS, stamp="unsigned" if stamped else "absent", request_id=planted
    )
    found = mesh.examine().findings
    assert sum(f.count for f in found) == 1
    assert [f.callee for f in found] == ["pay"]
    assert "mesh_bypass" in found[0].reasons
