"""What the evidence holds and what it lacks, for a status bar: figures, and one line about what is incomplete."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import ibis
import ibis.expr.types as ir

from collector.forensics.statements import compiled_once
from collector.forensics.tables import NS_PER_S, Query, egress_allow, proxy_records, spans
from collector.schema import EVIDENCE_SINCE_KEY, ibis_schema

NAMED: Final = 3
"""Services that a line names before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class ProxyLog:
    """That a workload's proxy logs in a direction, and when it last did; Unix ns."""

    service_name: str
    direction: str | None
    last_record_unix_nano: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a store.

    Attributes:
        span_count: Rows of `spans`; deliveries that came twice count twice.
        first_start_unix_nano: Earliest start; None without spans.
        last_start_unix_nano: Latest start; None without spans.
        last_received_unix_nano: When the collector last received a span; None without spans.
        services: service.name of every application that sent spans, sorted.
        proxy_logs: Whose proxies log, sorted.
        ingest_errors: Spans and lines that were refused, by reason, most first.
        has_egress_list: Whether there is an egress allow-list.
        evidence_since_unix_nano: What was received before then was removed, to make room; None while nothing was.
    """

    span_count: int
    first_start_unix_nano: int | None
    last_start_unix_nano: int | None
    last_received_unix_nano: int | None
    services: tuple[str, ...]
    proxy_logs: tuple[ProxyLog, ...]
    ingest_errors: tuple[tuple[str, int], ...]
    has_egress_list: bool
    evidence_since_unix_nano: int | None = None

    @property
    def incomplete(self) -> str:
        """What cannot be seen, in one line; empty when nothing is missing."""
        since = None if self.evidence_since_unix_nano is None else _moment(self.evidence_since_unix_nano)
        if not self.span_count:
            return "no spans yet" if since is None else f"no spans since {since}: what came before was removed"
        logging = {log.service_name for log in self.proxy_logs}
        silent = [name for name in self.services if name not in logging]
        parts: list[str] = []
        if not logging:
            parts.append("no proxy access logs: mesh bypass cannot be judged")
        elif silent:
            parts.append(f"no proxy access log of {_some(silent)}")
        if not self.has_egress_list:
            parts.append("no egress allow-list")
        if since is not None:
            parts.append(f"evidence since {since}")
        refused = sum(count for _, count in self.ingest_errors)
        if refused:
            parts.append(f"{refused} refused ({self.ingest_errors[0][0]})")
        return "; ".join(parts)


def status_sql() -> dict[str, str]:
    """The statements behind `status`."""
    return {name: compiled_once(build) for name, build in _STATEMENTS.items()}


def _totals() -> ir.Table:
    table = spans()
    return table.aggregate(
        span_count=table.count(),
        first_start=table.start_time_unix_nano.min(),
        last_start=table.start_time_unix_nano.max(),
        last_received=table.received_unix_nano.max(),
    )


def _services() -> ir.Table:
    table = spans()
    return table.filter(table.witness != "proxy").select("service_name").distinct().order_by("service_name")


def _proxy_logs() -> ir.Table:
    records = proxy_records()
    logs = records.group_by(["service_name", "direction"]).aggregate(last_record=records.start_time_unix_nano.max())
    return logs.order_by("service_name", "direction")


def _ingest_errors() -> ir.Table:
    errors = ibis.table(ibis_schema("ingest_errors"), name="ingest_errors")
    refused = errors.group_by("reason").aggregate(refused=errors["count"].sum())
    return refused.order_by(ibis.desc("refused"), "reason")


def _egress_allow() -> ir.Table:
    return egress_allow().aggregate(rules=egress_allow().count())


def _evidence_since() -> ir.Table:
    meta = ibis.table({"key": "string", "value": "string"}, name="meta")
    return meta.filter(meta.key == EVIDENCE_SINCE_KEY).select(since=meta.value.cast("int64"))


_STATEMENTS: Final[Mapping[str, Callable[[], ir.Table]]] = {
    "totals": _totals,
    "services": _services,
    "proxy_logs": _proxy_logs,
    "ingest_errors": _ingest_errors,
    "egress_allow": _egress_allow,
    "evidence_since": _evidence_since,
}


def status(query: Query) -> Status:
    """The state of a store."""
    answers = {name: query(sql) for name, sql in status_sql().items()}
    totals = answers["totals"].row(0, named=True)
    return Status(
        span_count=totals["span_count"],
        first_start_unix_nano=totals["first_start"],
        last_start_unix_nano=totals["last_start"],
        last_received_unix_nano=totals["last_received"],
        services=tuple(answers["services"]["service_name"]),
        proxy_logs=tuple(ProxyLog(*row) for row in answers["proxy_logs"].iter_rows()),
        ingest_errors=tuple((reason, int(count)) for reason, count in answers["ingest_errors"].iter_rows()),
        has_egress_list=answers["egress_allow"].item() > 0,
        evidence_since_unix_nano=next(iter(answers["evidence_since"]["since"]), None),
    )


def _moment(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
