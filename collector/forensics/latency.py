"""Latency: which edges got slower than their own normal, and which span explains it. One finding per cause.

Three steps. SQL counts the calls of every edge by time bucket and duration bin; `shifts` finds the stretches in which an edge was
slower; SQL fetches sampled traces from before and during, and `attribution` takes them apart. Edges that share a cause share a
finding: its subject is the cause, `affected` the edges that people feel it on.

Plain OpenTelemetry spans are enough. Calls that fail and vanish are not looked for here.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from collector.forensics.attribution import Sample, Trace, common_factor, place_traces, shares, take_apart
from collector.forensics.beside import Rates, beside
from collector.forensics.causes import (
    Cause,
    Claim,
    Common,
    Evidence,
    Figures,
    calls_in_all,
    causes_of,
    common_cause,
    describe,
    united,
)
from collector.forensics.deltas import separating, values_of
from collector.forensics.durations import (
    KEY,
    Normal,
    SlowEdge,
    component_figures,
    first_spans,
    histogram,
    sampled_calls,
    spans_of_traces_sql,
)
from collector.forensics.earlier import History, day_before, unusual
from collector.forensics.findings import Finding
from collector.forensics.queue_waits import longest_waits, queue_finding, waits_in, waits_sql
from collector.forensics.shifts import Series, Shift, ShiftParams, find_shifts
from collector.forensics.statements import compiled_once, windowed
from collector.forensics.tables import NS_PER_S, Query, Window, compile_sql

BUCKETS: Final = 144
"""Time buckets of a window: ten minutes in a day, 25 s in an hour, 0.4 s in a minute. Sparse ones are joined."""


ATTRIBUTE_SAMPLE: Final = 40
MAX_ATTRIBUTE_TRACES: Final = 400
"""Traces of each slow edge and side, and of all, whose attributes are compared."""

MIN_APART: Final = 0.3
"""A value is told if, beyond doubt, its part of the slow traces is this much larger than that of the others."""


@dataclass(frozen=True, slots=True)
class LatencyParams:
    """How to look for latency.

    Attributes:
        baseline: A window that is normal by definition; None compares the window with itself, whichever part was faster, and with the same
            hours of the day before, where something is slower than then.
        shift: What counts as slower.
        startup_ns: Calls to a service this soon after its very first span are start-up, not evidence; at most a twentieth of
            the window.
        sample: Calls of an edge to take apart, before and during each; 150 tell a share to about a tenth.
        max_edges: Slow edges to take apart, those with the most lost time first.
        common_cause: Whether to report (as low) that everything slowed together.
        earlier_days: How many earlier days to ask what an edge did at the same time; what it does on most of them is no incident. 0 asks none.
        min_days: Earlier days with calls enough at that time: on fewer, nothing is known to be usual.
    """

    baseline: Window | None = None
    shift: ShiftParams = field(default_factory=ShiftParams)
    startup_ns: int = 10 * NS_PER_S
    sample: int = 150
    max_edges: int = 40
    common_cause: bool = True
    earlier_days: int = 7
    min_days: int = 3


@dataclass(frozen=True, slots=True)
class _Search:
    """One run: how to ask, and what is known before the edges are taken apart."""

    query: Query
    window: Window
    params: LatencyParams
    slow: Sequence[SlowEdge]

    @property
    def hull(self) -> Window:
        """The window and the explicit baseline in one."""
        other = self.params.baseline
        return self.window if other is None else _hull(self.window, other)

    def normal(self, edge: SlowEdge, *more: Shift) -> Normal:
        """When this edge was normal; with `more` shifts that are not its own."""
        shifts = tuple(dict.fromkeys((*(e.shift for e in self.slow if e.key == edge.key), *more)))
        return Normal(self.params.baseline or self.window, shifts)


@dataclass(frozen=True, slots=True)
class _Explained:
    """One incident: its causes, whether everything slowed together, and what the spans of some of its traces say of themselves."""

    causes: Sequence[Cause]
    common: Common | None
    values: pl.DataFrame | None


def latency_sql(window: Window, params: LatencyParams | None = None) -> dict[str, str]:
    """The statements that start a search: calls and messages by edge, bucket and bin, the baseline's where one is given, first spans.

    The statements that fetch sampled traces follow from their answers.
    """
    params = params or LatencyParams()
    statements = {
        "durations": _durations_sql(window),
        "services": _first_spans_sql(),
        "queues": waits_sql(window, BUCKETS),
    }
    if params.baseline is not None:
        statements["baseline"] = _durations_sql(params.baseline)
        statements["queues_baseline"] = waits_sql(params.baseline, BUCKETS)
    return statements


def _first_spans_sql() -> str:
    return compiled_once(first_spans)


def _durations_sql(window: Window) -> str:
    return windowed(window, lambda blank: compiled_once(histogram, blank, BUCKETS))


def find_latency(query: Query, window: Window, params: LatencyParams | None = None) -> list[Finding]:
    """One finding for each cause of slower edges in the window, strongest first."""
    params = params or LatencyParams()
    is_told = params.baseline is not None
    if not is_told and params.earlier_days:
        params = replace(params, baseline=day_before(query, window, params.shift))
    statements = latency_sql(window, params)
    durations = query(statements["durations"])
    if durations.is_empty():
        return []
    baseline = query(statements["baseline"]) if "baseline" in statements else None
    first = dict(query(statements["services"]).select("service_name", "first_unix_nano").iter_rows())
    slow = slow_edges(durations, baseline, first, params)
    history = None if is_told else History(min(first.values()), params.earlier_days, params.min_days)
    if history is not None:
        slow = unusual(query, slow, history, params.shift)
    search = _Search(query, window, params, slow)
    groups = incidents(slow[: params.max_edges])
    findings = _findings(search, [_explain(search, number, group) for number, group in enumerate(groups)])
    findings += _queues(search, statements, first, history)
    return sorted(findings, key=lambda f: (-f.score, f.finding_id))


def _queues(
    search: _Search, statements: Mapping[str, str], first: Mapping[str, int], history: History | None
) -> list[Finding]:
    """One finding for each queue in which messages wait longer, of several stretches for the worst."""
    waits = search.query(statements["queues"])
    if waits.is_empty():
        return []
    before = search.query(statements["queues_baseline"]) if "queues_baseline" in statements else None
    slow = slow_edges(waits, before, first, search.params)[: search.params.max_edges]
    if history is not None:
        slow = unusual(search.query, slow, history, search.params.shift, rows=waits_in, around=search.window)
    worst: dict[tuple[str | None, str, str, str], SlowEdge] = {}
    for edge in slow:
        worst.setdefault(edge.key, edge)
    return [queue_finding(edge, longest_waits(search.query, search.window, edge)) for edge in worst.values()]


def slow_edges(
    durations: pl.DataFrame, baseline: pl.DataFrame | None, first: Mapping[str, int], params: LatencyParams
) -> list[SlowEdge]:
    """The edges that got slower, one a shift, most lost time first."""
    before = {} if baseline is None else _by_edge(baseline)
    found: list[SlowEdge] = []
    for key, rows in _by_edge(durations).items():
        series = edge_series(rows, before.get(key), first.get(key[1]), params.startup_ns)
        shifts = find_shifts(series, params.shift)
        told = [beside(_rates(rows), shift) for shift in shifts]
        found += [SlowEdge(*key, shift=shift, beside=b) for shift, b in zip(shifts, told, strict=True)]
    return sorted(found, key=lambda e: (-(e.shift.during_ns - e.shift.before_ns) * e.shift.calls_during, e.label))


def incidents(slow: Sequence[SlowEdge]) -> list[list[SlowEdge]]:
    """Slow edges by incident: shifts that overlap by at least half of the shorter one. An edge is in an incident once.

    So two shifts of one edge are two incidents, even beside an edge that was slow all the while; what caused both is told once by
    `causes.united`.
    """
    groups: list[list[SlowEdge]] = []
    for edge in slow:
        near = (g for g in groups if any(_overlap(edge.shift, other.shift) >= 0.5 for other in g))
        home = next((g for g in near if all(other.key != edge.key for other in g)), None)
        if home is None:
            groups.append([edge])
        else:
            home.append(edge)
    return groups


def edge_series(rows: pl.DataFrame, before: pl.DataFrame | None, first_span: int | None, startup_ns: int) -> Series:
    """An edge's counts by bucket and bin; an explicit baseline's buckets come first, those of a start-up are emptied."""
    bins = np.unique(np.concatenate([p["bin"].to_numpy() for p in (rows, before) if p is not None]))
    edges, counts = _timeline(rows, bins)
    starting = first_span is not None and first_span >= edges[0]
    if starting and first_span is not None:
        limit = first_span + min(startup_ns, int(edges[-1] - edges[0]) // 20)
        counts[(edges[:-1] < limit) & (edges[1:] > first_span)] = 0
    if before is None:
        return Series(edges, bins, counts, startup=starting)
    earlier, normal = _timeline(before, bins)
    return Series(np.concatenate([earlier[:-1], edges]), bins, np.concatenate([normal, counts]), baseline=BUCKETS)


def _timeline(rows: pl.DataFrame, bins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    edges = int(rows["window_since"][0]) + np.linspace(0, int(rows["window_ns"][0]), BUCKETS + 1).astype(np.int64)
    counts = np.zeros((BUCKETS, len(bins)), dtype=np.int64)
    columns = np.searchsorted(bins, rows["bin"].to_numpy())
    np.add.at(counts, (rows["bucket"].to_numpy(), columns), rows["calls"].to_numpy())
    return edges, counts


def _rates(rows: pl.DataFrame) -> Rates:
    """An edge's calls and errors by bucket."""
    edges = int(rows["window_since"][0]) + np.linspace(0, int(rows["window_ns"][0]), BUCKETS + 1).astype(np.int64)
    calls, errors = np.zeros(BUCKETS, dtype=np.int64), np.zeros(BUCKETS, dtype=np.int64)
    np.add.at(calls, rows["bucket"].to_numpy(), rows["calls"].to_numpy())
    np.add.at(errors, rows["bucket"].to_numpy(), rows["errors"].to_numpy())
    return Rates(edges, calls, errors)


def _by_edge(durations: pl.DataFrame) -> dict[tuple[str | None, str, str, str], pl.DataFrame]:
    parts = durations.partition_by(*KEY, as_dict=True)
    return {(k[0], k[1], k[2], k[3]): part for k, part in parts.items()}


def _overlap(a: Shift, b: Shift) -> float:
    shared = min(a.end_unix_nano, b.end_unix_nano) - max(a.start_unix_nano, b.start_unix_nano)
    return shared / max(min(a.end_unix_nano - a.start_unix_nano, b.end_unix_nano - b.start_unix_nano), 1)


def _hull(a: Window, b: Window) -> Window:
    since = (
        None if a.since_unix_nano is None or b.since_unix_nano is None else min(a.since_unix_nano, b.since_unix_nano)
    )
    until = (
        None if a.until_unix_nano is None or b.until_unix_nano is None else max(a.until_unix_nano, b.until_unix_nano)
    )
    return Window(since, until)


def _explain(search: _Search, number: int, group: Sequence[SlowEdge]) -> _Explained:
    """The causes of one incident: sampled traces are fetched, taken apart and grouped by cause."""
    with_normal = [(edge, search.normal(edge)) for edge in group]
    sampled = search.query(compile_sql(sampled_calls(with_normal, search.hull, search.params.sample)))
    ids = sampled["trace_id"].unique().sort().to_list()
    traces = place_traces(search.query(spans_of_traces_sql(ids, search.hull))) if ids else {}
    evidence = _take_apart(sampled, traces, len(group))
    factor = common_factor(
        _traces_of(traces, [s for e in evidence for s in e.before]),
        _traces_of(traces, [s for e in evidence for s in e.during]),
    )
    claims = [
        Claim(edge, share, part, number)
        for edge, part in zip(group, evidence, strict=True)
        for share in shares(part.before, part.during, factor)
    ]
    causes = causes_of(claims)
    common = Common(group, evidence, factor) if factor > 1 and search.params.common_cause else None
    return _Explained(causes, common, _values(search, evidence) if causes else None)


def _findings(search: _Search, explained: Sequence[_Explained]) -> list[Finding]:
    """One finding for each cause of all incidents together, and one for what slowed everything."""
    notes = _notes(search)
    causes = united([cause for incident in explained for cause in incident.causes])
    findings = [
        describe(cause, _figures(search, cause), notes, _apart(explained[cause.farthest.incident].values, cause))
        for cause in causes
    ]
    common = [incident.common for incident in explained if incident.common is not None]
    return [*findings, common_cause(common)] if common else findings


def _values(search: _Search, evidence: Sequence[Evidence]) -> pl.DataFrame:
    """What the spans of some of the sampled traces say of themselves."""
    ids: dict[str, None] = {}
    for part in evidence:
        for side in (part.before, part.during):
            ids.update(dict.fromkeys(s.trace_id for s in side[:ATTRIBUTE_SAMPLE]))
    return values_of(search.query, list(ids)[:MAX_ATTRIBUTE_TRACES], search.hull)


def _apart(values: pl.DataFrame | None, cause: Cause) -> str:
    """The value that sets the edge's slow calls apart from its normal ones, in words; empty where none does clearly."""
    if values is None:
        return ""
    claim = cause.farthest
    limit = (max(claim.edge.shift.before_ns, 1) * claim.edge.shift.during_ns) ** 0.5
    samples = [*claim.evidence.before, *claim.evidence.during]
    slow = pl.Series([s.trace_id for s in samples if s.duration_ns >= limit], dtype=pl.String)
    normal = pl.Series([s.trace_id for s in samples if s.duration_ns < limit], dtype=pl.String)
    found = separating(values, slow, normal).filter(pl.col("score") >= MIN_APART)
    if found.is_empty():
        return ""
    row = found.row(0, named=True)
    return (
        f"; {row['key']} = {row['value']} on {row['service']} is in {row['slow_ratio']:.0%} of the slow calls' traces "
        f"and in {row['normal_ratio']:.0%} of the others"
    )


def _take_apart(sampled: pl.DataFrame, traces: Mapping[str, Trace], edges: int) -> list[Evidence]:
    parts: defaultdict[tuple[int, bool], list[Sample]] = defaultdict(list)
    for number, during, trace_id, span_id in sampled.select("edge", "during", "trace_id", "span_id").iter_rows():
        sample = take_apart(traces[trace_id], span_id) if trace_id in traces else None
        if sample is not None:
            parts[number, during].append(sample)
    return [Evidence(parts[n, False], parts[n, True]) for n in range(edges)]


def _traces_of(traces: Mapping[str, Trace], samples: Sequence[Sample]) -> list[Trace]:
    return [traces[trace_id] for trace_id in dict.fromkeys(s.trace_id for s in samples)]


def _figures(search: _Search, cause: Cause) -> Figures:
    edge, share = cause.nearest.edge, cause.nearest.share
    if cause.component.kind == "hop":
        return Figures(
            before_ns=share.before_ns,
            during_ns=share.during_ns,
            calls_before=edge.shift.calls_before,
            calls_during=calls_in_all(cause.stretches),
            first_unix_nano=min(s.start_unix_nano for s in cause.stretches),
            last_unix_nano=max(s.end_unix_nano for s in cause.stretches),
        )
    limit: int | None = None
    figures = None
    for _ in range(2):
        normal = search.normal(edge, *cause.stretches)
        table = component_figures(cause.component, cause.stretches, edge.shift.quantile, normal, search.hull, limit)
        row = search.query(compile_sql(table)).row(0, named=True)
        figures = Figures(
            before_ns=row["before_ns"] or 0.0,
            during_ns=row["during_ns"] or 0.0,
            calls_before=row["calls_before"],
            calls_during=row["calls_during"],
            first_unix_nano=row["first_unix_nano"] or edge.shift.start_unix_nano,
            last_unix_nano=row["last_unix_nano"] or edge.shift.end_unix_nano,
        )
        # Buckets are coarse: the shift begins with its first call that is nearer to the new duration than to the old.
        limit = round((figures.before_ns * figures.during_ns) ** 0.5)
    return figures or Figures(0, 0, 0, 0, edge.shift.start_unix_nano, edge.shift.end_unix_nano)


def _notes(search: _Search) -> list[str]:
    more = len(search.slow) - search.params.max_edges
    return [f"{more} more slow edges were not taken apart"] if more > 0 else []
