"""A believable night for the workbench: one mesh, four incidents, one clock that stands still; and a fake `Evidence`."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import polars as pl

from collector.errors import CollectorError  # noqa: TC001 - the fake is read as the real one is
from collector.forensics.findings import Finding, to_frame
from tui.snapshots import (
    Edge,
    Edges,
    Findings,
    Health,
    Hits,
    Hop,
    ProxyRecord,
    Trace,
    TraceQuery,
    TraceSpan,
    TraceSummary,
    View,
)

SECOND = 1_000_000_000
MILLI = 1_000_000
NOW = 1_795_403_647 * SECOND  # 2026-11-23 03:14:07Z


def clock() -> int:
    return NOW


def trace_id_of(n: int) -> str:
    return f"{0x4BF92F3577B34DA6A3CE929D0E0E4736 + n * 0x1F3D5B79:032x}"


def span_id_of(n: int) -> str:
    return f"{0x00F067AA0BA902B7 + n * 0x9E3779B1:016x}"


def make_finding(**overrides) -> Finding:
    values: dict[str, Any] = {
        "kind": "shadow",
        "reasons": ("mesh_bypass", "unstamped"),
        "severity": "critical",
        "score": 0.98,
        "callee": "payment",
        "first_seen_unix_nano": NOW - 118 * SECOND,
        "last_seen_unix_nano": NOW - 4 * SECOND,
        "count": 31,
        "explanation": "31 calls to payment carried no stamp, and payment's proxy, which logged 412 other calls in that "
        "time, saw none of them; the first at 03:12:09Z.",
        "way": "plaintext_accepted",
        "remedy": "set PeerAuthentication to STRICT for payment",
        "affected": ("? -> payment payment.Payment/Charge",),
        "trace_ids": tuple(trace_id_of(i) for i in range(3)),
        "span_ids": (span_id_of(17), span_id_of(17), span_id_of(17)),
        "record_ids": (),
        "completeness": "2 of 33 calls could not be judged: payment's proxy had not logged yet",
        "attack_ids": ("T1562.004",),
    }
    return Finding(**(values | overrides))


def findings_of_the_night() -> list[Finding]:
    return [
        make_finding(),
        make_finding(
            reasons=("mesh_bypass",),
            severity="high",
            score=0.91,
            caller="checkout",
            callee="inventory",
            operation="POST /reserve",
            count=44,
            last_seen_unix_nano=NOW - 9 * SECOND,
            explanation="44 of 96 calls went around both proxies: neither checkout's nor inventory's logged them, though "
            "each logged other calls before and after.",
            way="",
            remedy="",
            affected=("checkout -> inventory POST /reserve", "gateway -> checkout checkout.Checkout/Buy"),
            completeness="",
            trace_ids=(trace_id_of(0), trace_id_of(4)),
            span_ids=(span_id_of(7), span_id_of(7)),
        ),
        make_finding(
            kind="egress",
            reasons=("unlisted", "beacon"),
            severity="high",
            score=0.97,
            caller="inventory",
            callee=None,
            destination="127.0.0.9:8443",
            count=18,
            last_seen_unix_nano=NOW - 2 * SECOND,
            explanation="inventory called 127.0.0.9:8443, on no allow-list, 18 times every 3.0 s (MAD 0.01 s; beacon score "
            "0.97); 4.1 kB out.",
            way="",
            remedy="list 127.0.0.9:8443 in the egress policy if it is meant, else let a NetworkPolicy refuse it",
            affected=("inventory -> 127.0.0.9:8443",),
            attack_ids=("T1071.001", "T1041"),
            completeness="",
        ),
        make_finding(
            kind="latency",
            reasons=("latency_shift",),
            severity="medium",
            score=0.83,
            caller="checkout",
            callee="pricing",
            operation="pricing.Pricing/Quote",
            count=61,
            last_seen_unix_nano=NOW - 3 * SECOND,
            explanation="pricing pricing.Pricing/Quote takes 212 ms instead of 4.1 ms (p50, 61 calls since 03:12:07Z against "
            "240 before); it explains 97 % of the rise on gateway POST /buy (18 → 229 ms).",
            way="",
            remedy="",
            affected=("checkout -> pricing pricing.Pricing/Quote", "gateway -> checkout checkout.Checkout/Buy"),
            attack_ids=(),
            completeness="",
        ),
    ]


def make_findings(findings: Sequence[Finding]) -> Findings:
    frame = to_frame(list(findings))
    by_id = {f.finding_id: f for f in findings}
    return Findings(tuple(by_id[i] for i in frame["finding_id"]), frame)


def make_edge(**overrides) -> Edge:
    values: dict[str, Any] = {
        "caller": "gateway",
        "callee": "checkout",
        "operation": "checkout.Checkout/Buy",
        "calls": 303,
        "request_rate": 5.05,
        "error_ratio": 0.0,
        "duration_ns_p50": 18 * MILLI,
        "duration_ns_p95": 41 * MILLI,
        "duration_ns_p99": 77 * MILLI,
        "last_seen_unix_nano": NOW - 3 * SECOND,
        "rate_series": tuple(10 + (i * 7) % 5 for i in range(24)),
        "duration_series": tuple((18 + (i * 5) % 4) * MILLI for i in range(24)),
    }
    return Edge(**(values | overrides))


def edges_of_the_night() -> list[Edge]:
    slow = tuple((4 if i < 15 else 205 + i) * MILLI for i in range(24))
    return [
        make_edge(
            caller=None, callee="gateway", operation="POST /buy", calls=301, error_ratio=0.013,
            duration_ns_p50=229 * MILLI, duration_series=tuple((18 if i < 15 else 229) * MILLI for i in range(24)),
        ),
        make_edge(caller=None, callee="gateway", operation="GET /catalog", calls=288, request_rate=4.8, duration_ns_p50=7 * MILLI),
        make_edge(duration_ns_p50=225 * MILLI, duration_series=tuple((18 if i < 15 else 225) * MILLI for i in range(24))),
        make_edge(caller="checkout", callee="pricing", operation="pricing.Pricing/Quote", duration_ns_p50=212 * MILLI, duration_series=slow),
        make_edge(
            caller="checkout", callee="payment", operation="payment.Payment/Charge", calls=299, error_ratio=0.0134,
            duration_ns_p50=6_200_000,
        ),
        make_edge(caller="checkout", callee="inventory", operation="POST /reserve", calls=96, request_rate=1.6, duration_ns_p50=3_100_000),
        make_edge(
            caller=None, callee="payment", operation="payment.Payment/Charge", calls=31, request_rate=0.27,
            duration_ns_p50=2_900_000, rate_series=tuple(0 if i < 15 else 3 for i in range(24)),
            duration_series=tuple(None if i < 15 else 3 * MILLI for i in range(24)),
        ),
        make_edge(
            caller="inventory", callee="127.0.0.9:8443", operation="POST", calls=18, request_rate=0.33, is_external=True,
            duration_ns_p50=1_400_000,
        ),
    ]  # fmt: skip


def make_edges(edges: Sequence[Edge]) -> Edges:
    names = [f.name for f in fields(Edge)]
    rows = [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(e).items()} for e in edges]
    return Edges(tuple(edges), pl.DataFrame(rows, schema=None if rows else names, infer_schema_length=None))


def make_summary(n: int = 0, **overrides) -> TraceSummary:
    values: dict[str, Any] = {
        "trace_id": trace_id_of(n),
        "start_time_unix_nano": NOW - (4 + 3 * n) * SECOND,
        "duration_ns": (229 + 7 * n) * MILLI,
        "root_service": "gateway",
        "root_operation": "POST /buy",
        "service_count": 5,
        "span_count": 19,
        "error_count": 1 if n % 4 == 0 else 0,
    }
    return TraceSummary(**(values | overrides))


def make_hits(query: TraceQuery, items: Sequence[TraceSummary]) -> Hits:
    return Hits(query, tuple(items), pl.DataFrame([asdict(i) for i in items]))


def make_span(n: int = 0, **overrides) -> TraceSpan:
    values: dict[str, Any] = {
        "span_id": span_id_of(n),
        "parent_span_id": None,
        "depth": 0,
        "service_name": "gateway",
        "name": "POST /buy",
        "kind": "SERVER",
        "witness": "app",
        "start_time_unix_nano": NOW - 5 * SECOND,
        "duration_ns": 229 * MILLI,
        "self_time_ns": 3 * MILLI,
        "on_critical_path": True,
        "error": False,
        "status_message": None,
        "stamp_status": None,
        "request_hash": None,
        "request_id": None,
        "destination": None,
        "attributes": (("http.request.method", "POST"),),
    }
    return TraceSpan(**(values | overrides))


HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
REQUEST_ID = "5f1c0f1e-3c52-9d21-8f5e-2f6c1a8d7b90"


def spans_of_a_buy() -> list[TraceSpan]:
    """gateway → checkout → (inventory around the mesh, pricing slow, payment failing), with Envoys' spans between."""
    start = NOW - 5 * SECOND
    at = lambda ms: start + int(ms * MILLI)  # noqa: E731
    table: list[tuple[int | None, str, str, str, str, float, float, bool, dict[str, Any]]] = [
        # parent, service, name, kind, witness, start ms, duration ms, path, extra
        (None, "gateway", "ingress", "SERVER", "proxy", 0, 231, True, {}),
        (0, "gateway", "POST /buy", "SERVER", "app", 1, 229, True, {"stamp_status": "absent"}),
        (1, "gateway", "checkout.Checkout/Buy", "CLIENT", "app", 2, 227, True, {"request_hash": HASH}),
        (2, "gateway", "egress checkout", "CLIENT", "proxy", 2.4, 226, True, {}),
        (3, "checkout", "ingress", "SERVER", "proxy", 3, 225, True, {}),
        (4, "checkout", "checkout.Checkout/Buy", "SERVER", "app", 3.5, 224, True, {"stamp_status": "unsigned", "request_hash": HASH}),
        (5, "checkout", "POST /reserve", "CLIENT", "app", 4, 3.4, False, {"request_hash": HASH, "destination": "127.0.0.1:9131"}),
        (6, "inventory", "POST /reserve", "SERVER", "app", 5, 2, False, {"stamp_status": "unsigned", "request_hash": HASH}),
        (7, "inventory", "POST", "CLIENT", "app", 6, 0.9, False, {"destination": "127.0.0.9:8443"}),
        (5, "checkout", "pricing.Pricing/Quote", "CLIENT", "app", 8, 213, True, {"request_hash": HASH}),
        (9, "checkout", "egress pricing", "CLIENT", "proxy", 8.2, 212.6, True, {}),
        (10, "pricing", "ingress", "SERVER", "proxy", 8.4, 212.3, True, {}),
        (11, "pricing", "pricing.Pricing/Quote", "SERVER", "app", 8.6, 212, True, {"stamp_status": "unsigned", "request_hash": HASH}),
        (12, "pricing", "SELECT price", "INTERNAL", "app", 9, 210, True, {"attributes": (("db.system", "sqlite"),)}),
        (5, "checkout", "payment.Payment/Charge", "CLIENT", "app", 222, 5.1, True, {"request_hash": HASH, "error": True, "status_message": "card declined"}),
        (14, "checkout", "egress payment", "CLIENT", "proxy", 222.3, 4.6, True, {}),
        (15, "payment", "ingress", "SERVER", "proxy", 222.6, 4.1, True, {}),
        (16, "payment", "payment.Payment/Charge", "SERVER", "app", 223, 3.4, True, {"stamp_status": "unsigned", "request_hash": HASH[::-1], "error": True, "status_message": "card declined"}),
        (17, "payment", "POST /authorize", "CLIENT", "app", 223.8, 2.0, True, {"destination": "127.0.0.7:9443"}),
    ]  # fmt: skip
    depths: list[int] = []
    spans = []
    for n, (parent, service, name, kind, witness, begins, takes, path, extra) in enumerate(table):
        depths.append(0 if parent is None else depths[parent] + 1)
        spans.append(
            make_span(
                n,
                parent_span_id=None if parent is None else span_id_of(parent),
                depth=depths[n],
                service_name=service,
                name=name,
                kind=kind,
                witness=witness,
                start_time_unix_nano=at(begins),
                duration_ns=int(takes * MILLI),
                self_time_ns=int(takes * MILLI) // 10,
                on_critical_path=path,
                request_id=REQUEST_ID,
                **({"attributes": (("http.request.method", "POST"), ("provenance.request_id", REQUEST_ID))} | extra),
            )
        )
    return spans


def make_record(**overrides) -> ProxyRecord:
    values: dict[str, Any] = {
        "service_name": "checkout",
        "direction": "inbound",
        "start_time_unix_nano": NOW - 5 * SECOND + 3 * MILLI,
        "duration_ns": 225 * MILLI,
        "method": "POST",
        "path": "/checkout.Checkout/Buy",
        "response_code": 200,
        "response_flags": None,
        "upstream_host": "127.0.0.1:9121",
        "request_id": REQUEST_ID,
    }
    return ProxyRecord(**(values | overrides))


def make_trace(n: int = 0, spans: Sequence[TraceSpan] | None = None, hops: Sequence[Hop] = ()) -> Trace:
    spans = spans_of_a_buy() if spans is None else list(spans)
    records = (
        make_record(),
        make_record(service_name="gateway", direction="outbound", upstream_host="127.0.0.1:15121"),
        make_record(service_name="payment", path="/payment.Payment/Charge", response_code=200, response_flags="UF"),
    )
    names = ("span_id", "parent_span_id", "service_name", "name", "duration_ns", "error")
    frame = pl.DataFrame([{k: getattr(s, k) for k in names} for s in spans])
    return Trace(trace_id_of(n), tuple(spans), records, tuple(hops), frame)


def make_health(**overrides) -> Health:
    values: dict[str, Any] = {
        "span_count": 12_345,
        "newest_unix_nano": NOW - 2 * SECOND,
        "service_count": 5,
        "incomplete": (),
    }
    return Health(**(values | overrides))


class FakeEvidence:
    """`Evidence` from memory. Setting `error` makes every answer raise it; `gate` holds answers back until it is set."""

    def __init__(self, *, name: str = "http://127.0.0.1:4318", is_live: bool = True) -> None:
        self.name = name
        self.is_live = is_live
        self.has_moving_window = False
        self.health = make_health()
        self.found = findings_of_the_night()
        self.edge_items = edges_of_the_night()
        self.summaries = [make_summary(n) for n in range(40)]
        self.traces = {trace_id_of(n): make_trace(n) for n in range(40)}
        self.verdicts = (Hop(span_id_of(6), span_id_of(7), "missed", "missed"),)
        self.error: CollectorError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[object] = []
        self.interrupted: list[str] = []
        self.is_closed = False

    def _answer(self, question):
        self.asked.append(question)
        assert self.gate.wait(20), "the test never opened the gate"
        if self.error is not None:
            raise self.error

    def status(self) -> Health:
        self._answer("status")
        return self.health

    def findings(self) -> Findings:
        self._answer("findings")
        return make_findings(self.found)

    def edges(self) -> Edges:
        self._answer("edges")
        return make_edges(self.edge_items)

    def search(self, query: TraceQuery) -> Hits:
        self._answer(query)
        items = [
            s
            for s in self.summaries
            if (not query.errors_only or s.error_count) and s.duration_ns >= (query.min_duration_ns or 0)
        ]
        return make_hits(query, items)

    def trace(self, trace_id: str) -> Trace:
        self._answer(trace_id)
        return self.traces.get(trace_id) or replace(make_trace(spans=[]), trace_id=trace_id)

    def hops(self, trace: Trace):
        self._answer(("hops", trace.trace_id))
        return self.verdicts if trace.spans else ()

    def sql_of(self, view: View) -> str:
        self._answer(view)
        return f"-- {type(view).__name__}\nSELECT count(*)\nFROM spans\nWHERE service_name = 'payment[/red]';"

    def interrupt(self, lane: str) -> None:
        self.interrupted.append(lane)

    def close(self) -> None:
        self.is_closed = True
