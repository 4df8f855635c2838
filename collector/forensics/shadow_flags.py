"""Which calls are shadow traffic: the expression behind `collector.forensics.shadow`.

Every rule here is about one call; `shadow` gathers the flagged calls into findings and puts them into words.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

import ibis
import ibis.expr.types as ir

from collector.forensics.absence import MISSED, Coverage
from collector.forensics.calls import MARGIN_NS
from collector.forensics.connections import Present
from collector.forensics.findings import EVIDENCE_LIMIT
from collector.forensics.log_lines import path_of
from collector.forensics.stages import staged
from collector.forensics.tables import NS_PER_S, Window, spans
from collector.forensics.verdicts import READ, judge
from provenance.names import STAMP_ABSENT, STAMP_MALFORMED, STAMP_MISMATCHED

MINUTE_NS: Final = 60 * NS_PER_S

ENTRY_STAMPED_RATIO: Final = 0.05
"""An entry point has stamped calls in at most this share of the minutes in which it has any."""

ENTRY_OUTSIDE_RATIO: Final = 0.5
"""In at least this share of its minutes, most of an entry point's callers are unknown."""

ENTRY_SLICES: Final = 10
ENTRY_SLICES_RATIO: Final = 0.6
"""Of the tenths of the recorded time in which the mesh has calls, an entry point has unstamped ones in this share."""

TRACED_CELL_RATIO: Final = 0.9
TRACED_RATIO: Final = 0.8
"""A caller's telemetry is complete if 80 % of its (callee, minute) cells have the parents of 90 % of their calls."""

LOSSY_RATIO: Final = 0.5
LOSSY_MIN_CELLS: Final = 2
"""An exporter that loses spans loses them everywhere: some parents are missing in this share of its cells."""

FLAGS: Final = (
    "unstamped",
    "unknown_caller",
    "bypass_outbound",
    "bypass_inbound",
    "passed_through",
    "tampered",
    "forged_identity",
)

DETAILS: Final = (
    "destination_address",
    "destination_port",
    "uid",
    "plaintext",
    "outbound_by_connection",
    "inbound_by_connection",
)
"""What names the way of a bypass; of calls that are flagged for nothing it is left out."""

_VERDICT: Final = (
    "outbound_record_id",
    "inbound_record_id",
    "outbound_verdict",
    "inbound_verdict",
    "outbound_reason",
    "inbound_reason",
    "verdict",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowParams:
    """What the shadow detector may assume.

    Attributes:
        entry_services: service.name of services that take unstamped traffic by nature (gateways, webhooks).
        infer_entries: Also take services for entry points that behave like one; see `shadow`.
        settle_ns: How long after a server span its caller's span may still arrive (exporters batch for 5 s).
        coverage: How near a proxy's other lines must be for the absence of one to count.
        probe_services: rpc services of health checks.
        probe_user_agents: How user agents of health checks and of scrapers begin; they count on GET and HEAD only.
        probe_paths: Paths of health checks and scrapes; they count on GET and HEAD only.
    """

    entry_services: tuple[str, ...] = ()
    infer_entries: bool = True
    settle_ns: int = 15 * NS_PER_S
    coverage: Coverage = field(default_factory=Coverage)
    probe_services: tuple[str, ...] = ("grpc.health.v1.Health",)
    probe_user_agents: tuple[str, ...] = (
        "kube-probe/",
        "GoogleHC/",
        "ELB-HealthChecker/",
        "Envoy/HC",
        "Consul Health Check",
        "Prometheus/",
        "otelcol",
        "OpenTelemetry Collector",
        "vmagent",
        "vm_promscrape",
        "GrafanaAgent",
        "Alloy/",
        "Datadog Agent",
    )
    probe_paths: tuple[str, ...] = ()


Told = Literal["bypasses", "flags", "entries"]
"""What is read of flagged calls: how they went past the mesh; all that they are flagged for; of all callees whether they are entry points."""


def flagged_calls(
    window: Window, params: ShadowParams, present: Present | None = None, *, told: Told = "entries"
) -> ir.Table:
    """The answered calls of the window, each with what it is flagged for.

    Who takes unstamped calls by nature is told by all that is recorded, so it is asked only of callees of which it decides something
    that is `told`; `entry` is false of the others.

    Columns: trace_id, client_span_id, server_span_id, caller, callee, operation, claimed (the service that the stamp names),
    start_time_unix_nano, outbound_record_id, inbound_record_id, outbound_verdict, inbound_verdict, outbound_reason,
    inbound_reason, verdict, connection_id, entry (the callee takes unstamped calls by nature), one boolean per name in
    `FLAGS`, flagged: any of them, and `DETAILS`.
    """
    narrow = partial(_narrow, params=params)
    judged = judge(window.widened(MARGIN_NS), params.coverage, present, narrow, _with_looks)
    facts = staged("facts", _facts(judged, params))
    # What other calls say of a call is read before those outside the window are left out.
    table = facts.mutate(telemetry_complete=ibis.literal(False)) if told == "bypasses" else _with_telemetry(facts)
    asked = facts.mutate(decides=_needs_entry(facts, told))
    table = window.of(table.mutate(entry=_is_entry(table.callee, asked, window, params)))
    # Kubernetes probes the application itself, past its sidecar; that is how it is meant.
    missed_in = (table.inbound_verdict == MISSED) & ~(table.probe & ~table.has_request_id)
    # What comes from outside comes in plaintext, or with a client's own certificate.
    missed_out = (table.outbound_verdict == MISSED) & ~(table.plaintext & (table.entry | table.probe))
    forged = table.misnamed | (table.principal.notnull() & missed_in)
    orphan = table.orphan & table.settled & table.telemetry_complete
    nobody = table.caller.isnull() & (table.settled | ~table.has_parent)
    outside = table.entry | table.probe
    table = table.mutate(
        unstamped=table.bare & (missed_in | table.client_stamped | (nobody & ~outside)),
        unknown_caller=orphan & (table.claimed.notnull() | ~outside),
        bypass_outbound=missed_out,
        bypass_inbound=missed_in,
        passed_through=table.passed_through & ~table.probe,
        forged_identity=forged,
    )
    flagged = ibis.literal(False)
    for name in FLAGS:
        flagged |= table[name].fill_null(False)
    return table.select(
        "trace_id",
        "client_span_id",
        "server_span_id",
        "caller",
        "callee",
        "operation",
        "start_time_unix_nano",
        *_VERDICT,
        "connection_id",
        "entry",
        *FLAGS,
        *DETAILS,
        claimed=ibis.ifelse(table.unknown_caller, table.claimed, ibis.null("string")),
        flagged=flagged,
    )


def summary(window: Window, params: ShadowParams, present: Present | None = None) -> ir.Table:
    """All answered calls, counted by what is known of them.

    Columns: caller, callee, claimed, the verdicts and their reasons, `FLAGS`, flagged, entry; calls, first, last (ns), and, for
    flagged calls, `DETAILS`, trace_ids, span_ids (the client's where there is one, else the server's) and record_ids of the earliest
    `EVIDENCE_LIMIT` of each (caller, callee, details).
    """
    # Flows into an entry point come from anywhere; of nothing else is it asked beyond what calls are flagged for.
    flows = present is None or present.flows
    table = staged("flagged_calls", flagged_calls(window, params, present, told="entries" if flows else "flags"))
    table = table.mutate(
        **{name: ibis.ifelse(table.flagged, table[name], ibis.null(table[name].type())) for name in DETAILS}
    )
    table = table.mutate(span_id=ibis.coalesce(table.client_span_id, table.server_span_id))
    table = _shown(table.filter(table.flagged)).union(table.filter(~table.flagged).mutate(shown=ibis.literal(False)))
    order = [table.start_time_unix_nano, table.trace_id, table.server_span_id]
    return table.group_by(
        "caller",
        "callee",
        "claimed",
        "outbound_verdict",
        "inbound_verdict",
        "outbound_reason",
        "inbound_reason",
        "verdict",
        *FLAGS,
        "flagged",
        "entry",
        *DETAILS,
    ).agg(
        calls=table.count(),
        first=table.start_time_unix_nano.min(),
        last=table.start_time_unix_nano.max(),
        shown_at=table.start_time_unix_nano.collect(where=table.shown, order_by=order),
        trace_ids=table.trace_id.cast("string").collect(where=table.shown, order_by=order),
        span_ids=table.span_id.collect(where=table.shown, order_by=order),
        outbound_record_ids=table.outbound_record_id.collect(where=table.shown, order_by=order),
        inbound_record_ids=table.inbound_record_id.collect(where=table.shown, order_by=order),
        connection_ids=table.connection_id.collect(where=table.shown, order_by=order),
    )


def _shown(table: ir.Table) -> ir.Table:
    """The flagged calls with `shown`: the earliest `EVIDENCE_LIMIT` of each group."""
    earliest = ibis.row_number().over(
        group_by=[table.caller, table.callee, *(table[name] for name in DETAILS)],
        order_by=[table.start_time_unix_nano, table.trace_id, table.server_span_id],
    )
    return table.mutate(shown=earliest < EVIDENCE_LIMIT)


def _narrow(table: ir.Table, params: ShadowParams) -> ir.Table:
    """What verdicts and flags are made of, and `altered` and `probe`: hashes and user agents are as wide as all the rest."""
    # A body that broke off half-way hashes differently, and nobody touched it.
    cut = table.error & (table.server_request_bytes < table.client_request_bytes).fill_null(False)
    return table.select(
        *READ,
        "parent_found",
        "protocol",
        "stamp_kid",
        "client_stamp_kid",
        "received_unix_nano",
        has_parent=table.parent_span_id.notnull(),
        altered=(table.client_request_hash != table.server_request_hash).fill_null(False) & ~cut,
        probe=_probe(
            params,
            rpc=ibis.ifelse(table.protocol == "rpc", table.operation.re_replace("/[^/]*$", ""), ibis.null("string")),
            method=table.method,
            agent=table.user_agent,
            path=table.path,
        ),
    )


def _facts(table: ir.Table, params: ShadowParams) -> ir.Table:
    """What can be said of each call by itself, and whether its callee's middleware looks at calls like it."""
    stamped = table.stamp_kid.notnull() & table.stamp_status.notin((STAMP_ABSENT, STAMP_MALFORMED)).fill_null(True)
    looks = table.looks
    missing = table.stamp_status.isin((STAMP_ABSENT, STAMP_MALFORMED)) | (
        table.stamp_status.isnull() & table.stamp_kid.isnull()
    )
    newest = spans().received_unix_nano.max().as_scalar()
    return table.select(
        "trace_id",
        "client_span_id",
        "server_span_id",
        "has_parent",
        "caller",
        "callee",
        "operation",
        "start_time_unix_nano",
        *_VERDICT,
        "parent_found",
        "has_request_id",
        "principal",
        "passed_through",
        "plaintext",
        "misnamed",
        destination_address=table.peer_address,
        destination_port=ibis.coalesce(table.peer_port, table.destination_port),
        connection_id=ibis.coalesce(table.outbound_connection_id, table.inbound_connection_id),
        outbound_by_connection="outbound_by_connection",
        inbound_by_connection="inbound_by_connection",
        uid=ibis.coalesce(table.outbound_uid, table.inbound_uid),
        minute=table.start_time_unix_nano // MINUTE_NS,
        stamped=stamped,
        bare=(missing & looks).fill_null(False),
        client_stamped=table.client_stamp_kid.notnull(),
        claimed=ibis.ifelse(stamped, table.stamp_kid.re_replace(r"/.*$", ""), ibis.null("string")),
        orphan=table.has_parent & ~table.parent_found & table.caller.isnull(),
        settled=table.received_unix_nano <= newest - params.settle_ns,
        tampered=table.altered | (table.stamp_status == STAMP_MISMATCHED).fill_null(False),
        probe="probe",
    )


def _with_looks(table: ir.Table) -> ir.Table:
    """The calls with `looks`: whether the callee's middleware ever looked for a stamp, in that process and protocol."""
    keyed = table.mutate(replica=table.callee_instance.fill_null(""))
    looking = keyed.filter(keyed.stamp_status.notnull() | keyed.stamp_kid.notnull())
    looking = looking.select(
        looking_callee=looking.callee, looking_replica=looking.replica, looking_protocol=looking.protocol
    ).distinct()
    joined = keyed.left_join(
        looking,
        [
            keyed.callee == looking.looking_callee,
            keyed.replica == looking.looking_replica,
            keyed.protocol == looking.looking_protocol,
        ],
    )
    return joined.mutate(looks=joined.looking_callee.notnull()).drop(
        "replica", "looking_callee", "looking_replica", "looking_protocol"
    )


def _probe(
    params: ShadowParams, *, rpc: ir.StringValue, method: ir.StringValue, agent: ir.StringValue, path: ir.StringValue
) -> ir.BooleanValue:
    """Whether a call of this rpc service, HTTP method, user agent and path is a health check or a scrape."""
    known = path.isin(params.probe_paths) if params.probe_paths else ibis.literal(False)
    for prefix in params.probe_user_agents:
        known |= agent.startswith(prefix).fill_null(False)
    probe = known.fill_null(False) & method.isin(("GET", "HEAD")).fill_null(False)
    return probe | rpc.isin(params.probe_services).fill_null(False) if params.probe_services else probe


def _needs_entry(calls: ir.Table, told: Told) -> ir.BooleanValue:
    """Whether anything that is told of a call depends on its callee being an entry point."""
    if told == "entries":
        return ibis.literal(True)
    plain = calls.plaintext & (calls.outbound_verdict == MISSED)
    return plain if told == "bypasses" else plain | (calls.caller.isnull() & (calls.bare | calls.orphan))


def _is_entry(callee: ir.StringValue, calls: ir.Table, window: Window, params: ShadowParams) -> ir.BooleanValue:
    """Whether a callee takes unstamped traffic by nature, as it says or as all of these calls have it."""
    declared = callee.isin(params.entry_services) if params.entry_services else ibis.literal(False)
    if not params.infer_entries:
        return declared
    # As a join it would be built over all calls: of stages the engine does not know how large they are.
    return declared | callee.isin(_entries(calls, window, params).entry_service)


def _entries(table: ir.Table, window: Window, params: ShadowParams) -> ir.Table:
    """(entry_service), judged by minutes of the window and by everything that is recorded before its end.

    Of those callees alone of whose calls any `decides`.
    """
    deciding = table.filter(table.decides).select("callee").distinct()
    minutes = table.filter(~table.probe).group_by("callee", "minute").agg(share=table.caller.isnull().mean())
    outside = minutes.group_by("callee").agg(outside_ratio=(minutes.share > 0.5).mean())
    candidates = outside.filter(outside.outside_ratio >= ENTRY_OUTSIDE_RATIO).semi_join(deciding, "callee")
    candidates = staged("entry_candidates", candidates.select("callee"))
    recorded = Window(None, window.until_unix_nano)
    history = _history(recorded, candidates, params)
    mesh = staged("recorded_calls", _answers(recorded, candidates).union(history.select("start")))
    bounds = staged("recorded_time", mesh.agg(begin=mesh.start.min(), span=mesh.start.max() - mesh.start.min() + 1))
    mesh = _with_tenth(mesh, bounds).agg(mesh_tenths=lambda t: t.tenth.nunique())
    history = _with_tenth(history, bounds)
    services = history.group_by("service").agg(
        minutes=history.minute.nunique(),
        stamped_minutes=history.minute.nunique(where=history.stamped),
        tenths=history.tenth.nunique(where=~history.stamped),
    )
    services = services.cross_join(mesh)
    like_one = (services.stamped_minutes <= services.minutes * ENTRY_STAMPED_RATIO) & (
        services.tenths >= services.mesh_tenths * ENTRY_SLICES_RATIO
    )
    return services.filter(like_one).select(entry_service=services.service)


def _with_tenth(table: ir.Table, bounds: ir.Table) -> ir.Table:
    joined = table.cross_join(bounds)
    return joined.mutate(tenth=(joined.start - joined.begin) // (joined.span // ENTRY_SLICES + 1))


def _answers(until: Window, candidates: ir.Table) -> ir.Table:
    """(start) of the calls that somebody's span made, of all that is recorded: no probe has a parent. None without candidates."""
    table = until.of(spans().select("witness", "kind", "parent_span_id", "start_time_unix_nano"))
    table = table.filter((table.witness == "app") & (table.kind == "SERVER") & table.parent_span_id.notnull())
    # As a join, so that an engine that finds no candidates reads nothing.
    asked = candidates.select(asked=ibis.literal("SERVER")).distinct()
    table = table.semi_join(asked, table.kind == asked.asked)
    return table.select(start=table.start_time_unix_nano)


def _history(until: Window, candidates: ir.Table, params: ShadowParams) -> ir.Table:
    """(service, start, minute, stamped) of every call to the candidates that is recorded, probes left out."""
    table = spans().select(
        "witness",
        "kind",
        "service_name",
        "start_time_unix_nano",
        "provenance_stamp_status",
        "provenance_stamp_kid",
        "rpc_service",
        "http_request_method",
        "user_agent_original",
        "url_path",
        "url_full",
    )
    table = until.of(table)
    table = table.filter((table.witness == "app") & (table.kind == "SERVER"))
    table = table.semi_join(candidates, table.service_name == candidates.callee)
    probe = _probe(
        params,
        rpc=table.rpc_service,
        method=table.http_request_method,
        agent=table.user_agent_original,
        path=ibis.coalesce(path_of(table.url_path), path_of(table.url_full)),
    )
    kept = table.filter(~probe)
    return staged(
        "history",
        kept.select(
            service=kept.service_name,
            start=kept.start_time_unix_nano,
            minute=kept.start_time_unix_nano // MINUTE_NS,
            stamped=kept.provenance_stamp_kid.notnull()
            & kept.provenance_stamp_status.notin((STAMP_ABSENT, STAMP_MALFORMED)).fill_null(True),
        ),
    )


def _with_telemetry(table: ir.Table) -> ir.Table:
    """The calls with `telemetry_complete`: the caller's spans normally arrive, so that a missing one means something.

    The caller is the service that the stamp names; without a stamp, whoever else calls that callee. Judged by cells of
    (callee, minute), each with one vote, so that neither a flood nor one broken callee decides for all. Where spans are missing
    in half of the cells or more, two at least, it is an exporter that loses some, and not somebody in hiding.
    """
    has_parent = table.filter(table.has_parent | table.claimed.notnull())
    has_parent = has_parent.mutate(origin=_origin(has_parent), whole=~has_parent.orphan)
    cells = has_parent.group_by("origin", "callee", "minute").agg(
        whole=has_parent.whole.mean() >= TRACED_CELL_RATIO,
        lacking=~has_parent.whole.all(),
        begin=has_parent.start_time_unix_nano.min(where=has_parent.whole),
        end=has_parent.start_time_unix_nano.max(where=has_parent.whole),
    )
    origins = cells.group_by("origin").agg(
        whole=cells.whole.mean() >= TRACED_RATIO,
        lossy=(cells.lacking.mean() >= LOSSY_RATIO) & (cells.lacking.sum() >= LOSSY_MIN_CELLS),
        begin=cells.begin.min(),
        end=cells.end.max(),
    )
    origins = origins.filter(origins.whole & ~origins.lossy).select(
        known_origin="origin", known_begin="begin", known_end="end"
    )
    joined = table.left_join(origins, _origin(table) == origins.known_origin)
    within = joined.start_time_unix_nano.between(joined.known_begin, joined.known_end)
    return joined.mutate(telemetry_complete=within.fill_null(False)).drop("known_origin", "known_begin", "known_end")


def _origin(table: ir.Table) -> ir.StringValue:
    return ibis.coalesce(table.claimed, ibis.literal("-> ") + table.callee)
