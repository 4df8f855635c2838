"""All detectors over one window, as one frame of findings."""

from collections.abc import Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.egress import EgressParams, examine_egress
from collector.forensics.findings import KINDS, Finding, Kind, to_frame
from collector.forensics.latency import LatencyParams, find_latency
from collector.forensics.shadow import ShadowParams, examine_shadow, percent
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import Query, Window, flows, proxy_records, sockets, spans


@dataclass(frozen=True, slots=True)
class Scan:
    """The findings (columns `findings.SCHEMA`, most severe first), and sentences on what could not be seen."""

    findings: pl.DataFrame
    notes: tuple[str, ...]


def scan(
    query: Query,
    *,
    kinds: Sequence[Kind] = KINDS,
    window: Window | None = None,
    shadow: ShadowParams | None = None,
    egress: EgressParams | None = None,
    latency: LatencyParams | None = None,
) -> pl.DataFrame:
    """The findings of these kinds; columns `findings.SCHEMA`, most severe first. Raises what `query` raises."""
    return examine(query, kinds=kinds, window=window, shadow=shadow, egress=egress, latency=latency).findings


def examine(
    query: Query,
    *,
    kinds: Sequence[Kind] = KINDS,
    window: Window | None = None,
    shadow: ShadowParams | None = None,
    egress: EgressParams | None = None,
    latency: LatencyParams | None = None,
) -> Scan:
    """The findings of these kinds, and what could not be seen. Raises what `query` raises."""
    window = window or Window()
    found: list[Finding] = []
    notes: list[str] = []
    for kind in dict.fromkeys(kinds):
        match kind:
            case "shadow":
                report = examine_shadow(query, window, shadow)
                found += report.findings
                if report.unjudged:
                    notes.append(
                        f"{percent(report.unjudged, report.calls)} of {report.calls:,} calls could not be judged by access logs: "
                        f"{report.why}"
                    )
                notes += report.sampled
            case "egress":
                left = examine_egress(query, window, egress)
                found += left.findings
                if left.unnamed:
                    notes.append(
                        f"{percent(left.unnamed, left.calls)} of {left.calls:,} calls that no service's span answered name no "
                        "address: whether they left the mesh cannot be judged"
                    )
            case "latency":
                found += find_latency(query, window, latency)
    return Scan(to_frame(found), tuple(notes))


def is_nothing_there(query: Query, window: Window) -> bool:
    """Whether no witness saw anything that was there in the window: then a scan of it says nothing. Raises what `query` raises."""
    return query(windowed(window, lambda blank: compiled_once(_first_seen, blank))).is_empty()


def _first_seen(window: Window) -> ir.Table:
    times = [window.of(table).select("start_time_unix_nano") for table in (spans(), proxy_records(), flows())]
    # A socket is there for as long as it is seen.
    lasted = sockets().mutate(start_time_unix_nano=ibis._.last_seen_unix_nano)
    lasted = Window(window.since_unix_nano).of(lasted)
    begun = Window(until_unix_nano=window.until_unix_nano).of(
        lasted.mutate(start_time_unix_nano=ibis._.first_seen_unix_nano)
    )
    return ibis.union(*times, begun.select("start_time_unix_nano")).limit(1)
