"""Every destination outside by source: what went there, which policy allows it, how clock-like it is and what is unusual of it.

One row a source and host, whichever ports, since a beacon that changes its port is one beacon, as in RITA. Spans come first: a flow of a
workload to what its spans name already is the same traffic seen twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.beacon import MAX_LOG10, MIN_UNIQUE_SECONDS, observation
from collector.forensics.beacons import score_pairs
from collector.forensics.columns import pairs_of
from collector.forensics.departures import (
    HOUR_NS,
    HOURS,
    TIMES,
    Sources,
    Witness,
    hours,
    seen_before,
    times,
    ways,
)
from collector.forensics.oddities import (
    WEAK,
    OddityParams,
    Way,
    first_seen,
    oddities,
    registered_domain,
    tunnels,
    volume,
)
from collector.forensics.own_addresses import Suspect, own_addresses, own_sql
from collector.forensics.statements import compiled_once
from collector.forensics.tables import NS_PER_S, Query, Window, egress_allow, workloads
from collector.forensics.territory import Territory
from collector.policy.calls import Call, Verdict, written
from collector.policy.listed import EgressPolicy, address_of
from collector.policy.policies import Policies, listed_alone
from collector.schema import ibis_schema

By = Literal["workload", "address"]

MAX_ADDRESSES: Final = 20
"""Of those that a name resolved to, so many are shown."""

_DAY_NS: Final = 24 * HOUR_NS
_LABEL_KEYS: Final = ("k8s.pod.label.", "k8s.pod.labels.")

BEACON: Final = {n: pl.Float64() for n in ("score", "ts", "ds", "hist", "dur", "interval_s", "jitter_ratio")}

ROWS: Final = {
    "source": pl.String(),
    "destination": pl.String(),
    "port": pl.Int64(),
    "ports": pl.List(pl.Int64()),
    "protocols": pl.List(pl.String()),
    "witness": pl.String(),
    "connections": pl.Int64(),
    "bytes_out": pl.Int64(),
    "bytes_in": pl.Int64(),
    "first_seen_unix_nano": pl.Int64(),
    "last_seen_unix_nano": pl.Int64(),
    "allowed_by": pl.String(),
    "refused_by": pl.String(),
    "beacon": pl.Struct(BEACON),
    "reasons": pl.List(pl.String()),
    "flagged": pl.Boolean(),
    "notes": pl.List(pl.String()),
    "addresses": pl.List(pl.String()),
    "failed": pl.Int64(),
    "web": pl.Boolean(),
    "namespace": pl.String(),
    "source_addresses": pl.List(pl.String()),
}
"""`reasons` are what speaks against a row, `flagged` whether that is a finding, `notes` the numbers behind reasons as sentences."""


@dataclass(frozen=True, slots=True)
class View:
    """How to look.

    Attributes:
        policies: What is allowed; None reads the rows of `egress_allow`.
        by: None: by workload where there are spans or records that name workloads, else by address.
        internal: Blocks, addresses, names and `*.suffixes` that are no egress.
        external: What is, although its address is nobody's on the Internet.
        baseline: The window whose habits `first_seen` and `volume` know; None: no `first_seen`, and `volume` within the window alone.
        witnesses: Whom to ask.
        rhythm: Of which witnesses to score beacons.
        settle_ns: Spans received within this time of the newest one are not judged yet.
        min_beacon_score, max_jitter_ratio, min_beacon_calls: As of `EgressParams`.
        odd: Thresholds of `oddities`.
    """

    policies: Policies | None = None
    by: By | None = None
    internal: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    baseline: Window | None = None
    witnesses: tuple[Witness, ...] = ("spans", "flows")
    rhythm: tuple[Witness, ...] = ("spans", "flows")
    settle_ns: int = 10 * NS_PER_S
    min_beacon_score: float = 0.5
    max_jitter_ratio: float = 0.35
    min_beacon_calls: int = 10
    odd: OddityParams = field(default_factory=OddityParams)


@dataclass(frozen=True, slots=True)
class Destinations:
    """The rows (columns `ROWS`, flagged ones first, then the busiest), how sources are named in them, and what could not be seen."""

    rows: pl.DataFrame
    by: By
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Search:
    """Where one witness is asked, for what and how."""

    query: Query
    window: Window
    witness: Witness
    sources: Sources
    view: View


@dataclass(frozen=True, slots=True)
class Leaving:
    """What left, before it is judged.

    Attributes:
        frames: By witness, columns `departures.WAYS`; of spans also those that name no host.
        policies: By which it is judged.
        known: Service name and namespace by address.
        calls, unnamed: Spans that no service's span answered, and how many of them name no address.
    """

    frames: Mapping[Witness, pl.DataFrame]
    policies: Policies
    known: Mapping[str, tuple[str, str | None]]
    calls: int
    unnamed: int


def leaving(query: Query, window: Window, view: View) -> Leaving:
    """What left. Raises ConfigError if a row of `egress_allow` is not a destination, and what `query` raises."""
    policies = stored_policies(query) if view.policies is None else view.policies
    known = _workloads(query)
    territory = Territory((*view.internal, *policies.internal), view.external, frozenset(known))
    sources = Sources("workload", known)
    frames: dict[Witness, pl.DataFrame] = {}
    calls = unnamed = 0
    for witness in view.witnesses:
        found = ways(query, window, witness, sources, view.settle_ns)
        if witness == "spans":
            calls, unnamed = (int(f["calls"].sum()) for f in (found, found.filter(pl.col("host").is_null())))
            frames[witness] = _outside_of_mesh(query, window, territory, found.filter(pl.col("host").is_not_null()))
        else:
            frames[witness] = _outside_of_networks(territory, found)
    return Leaving(frames, policies, known, calls, unnamed)


def examine_destinations(
    query: Query, window: Window, view: View | None = None, left: Leaving | None = None
) -> Destinations:
    """Every destination outside; `left` is what `leaving` found, if it was asked already. Raises what `leaving` raises."""
    view = view or View()
    left = leaving(query, window, view) if left is None else left
    by = view.by or _natural(left.frames)
    sources = Sources(by, left.known)
    frames = left.frames
    if by == "address":
        frames = {w: sources.named(frame) for w, frame in frames.items() if w == "flows"}
    everything = _once(frames)
    if everything.is_empty():
        return Destinations(pl.DataFrame(schema=ROWS), by, tuple(left.policies.notes))
    judge = Judge.of(query, left.policies, by)
    parts = [
        _rows(_Search(query, window, part["witness"][0], sources, view), part, judge)
        for part in everything.partition_by("witness", maintain_order=True)
    ]
    descending = {"flagged": True, "connections": True, "source": False, "destination": False}
    rows = pl.concat(parts).sort(*descending, descending=list(descending.values()))
    return Destinations(rows, by, (*left.policies.notes, *_notes(left.policies, rows, view)))


def stored_policies(query: Query) -> Policies:
    """What the collector has stored; raises ConfigError if a row is not a destination."""
    return listed_alone(EgressPolicy.from_rows(query(compiled_once(egress_allow)).to_dicts()))


@dataclass(frozen=True, slots=True)
class Judge:
    """The policies and what is known of workloads: namespace and pods' labels by service name."""

    policies: Policies
    facts: Mapping[str, tuple[str | None, Mapping[str, str] | None]]

    @classmethod
    def of(cls, query: Query, policies: Policies, by: By) -> "Judge":
        """With what the resources say of workloads, where a policy wants to know."""
        return cls(policies, _facts(query) if policies.is_given and by == "workload" else {})

    def verdict(
        self, source: str, namespace: str | None, host: str, port: int | None, more: tuple[list[str], str | None]
    ) -> Verdict | None:
        """What they say of one way; `more`: its addresses and its protocol."""
        told, labels = self.facts.get(source, (None, None))
        workload = self.policies.workload(source, namespace or told, labels)
        return self.policies.judge(Call.of(workload, host, port, *more))


def _workloads(query: Query) -> dict[str, tuple[str, str | None]]:
    """Service name and namespace by address; addresses of nodes, which many share, left out."""
    found = query(compiled_once(_addresses))
    return {address: (name, namespace) for address, name, namespace, _ in found.iter_rows()}


def _addresses() -> ir.Table:
    table = workloads()
    one_each = table.filter(~table.host_network.fill_null(False)).select(
        "address", "service_name", "namespace", "received_unix_nano"
    )
    return one_each.order_by("received_unix_nano")


def _facts(query: Query) -> dict[str, tuple[str | None, Mapping[str, str] | None]]:
    """Namespace and pods' labels of services, as their resources say; what two of a service's resources say differently is not known."""
    facts: dict[str, tuple[str | None, Mapping[str, str] | None]] = {}
    for name, attributes in query(compiled_once(_resources)).iter_rows():
        said = dict(pairs_of(attributes))
        labels = {k.removeprefix(p): v for k, v in said.items() for p in _LABEL_KEYS if k.startswith(p)} or None
        namespace = said.get("k8s.namespace.name")
        if name in facts:
            before, others = facts[name]
            namespace = namespace if before == namespace else None
            labels = (
                None if labels is None or others is None else {k: v for k, v in labels.items() if others.get(k) == v}
            )
        facts[name] = (namespace, labels)
    return facts


def _resources() -> ir.Table:
    return ibis.table(ibis_schema("resources"), name="resources").select("service_name", "attributes")


def _outside_of_networks(territory: Territory, found: pl.DataFrame) -> pl.DataFrame:
    """Flows from inside to outside."""
    found = found.filter(pl.col("callee").is_null())
    columns = (found[name].to_list() for name in ("source_address", "host", "address"))
    return found.filter(pl.Series(territory.crosses(*columns), dtype=pl.Boolean))


def _outside_of_mesh(query: Query, window: Window, territory: Territory, found: pl.DataFrame) -> pl.DataFrame:
    """Spans' ways to what is neither the mesh's own nor inside by its name or by configuration."""
    if found.is_empty():
        return found
    own = own_addresses(query, own_sql(window))

    def leaves(source: str, host: str, port: int | None) -> bool:
        configured = territory.is_configured(host, address_of(host))
        if configured is not None:
            return not configured
        return not own.holds(Suspect(source, host, port)) and not territory.holds_name(host)

    rows = found.select("source", "host", "port").iter_rows()
    return found.filter(pl.Series([leaves(*row) for row in rows], dtype=pl.Boolean))


def _natural(leaving: Mapping[Witness, pl.DataFrame]) -> By:
    """By workload where anything names one: spans do, and flows whose source is not called by its address."""
    named = [
        frame
        for frame in leaving.values()
        if frame.filter(pl.col("source") != pl.col("source_address").fill_null("")).height
    ]
    return "workload" if named else "address"


def _once(leaving: Mapping[Witness, pl.DataFrame]) -> pl.DataFrame:
    """Both witnesses together, flows only where no span tells of them."""
    frames = dict(leaving)
    if "spans" in frames and "flows" in frames:
        spans, flows = frames["spans"], frames["flows"]
        told = pl.concat([spans.select("source", "host"), spans.select("source", host="address").drop_nulls()]).unique()
        by_address = flows.join(told, left_on=["source", "address"], right_on=["source", "host"], how="anti")
        frames["flows"] = by_address.join(told, on=["source", "host"], how="anti")
    return pl.concat(frames.values())


def _rows(search: _Search, part: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    view = search.view
    rows = _totals(part, judge).with_row_index("pair")
    pairs = rows.select("pair", "source", host="destination")
    beacons = _beacons(search, part, pairs) if search.witness in view.rhythm else None
    unusual = _unusual(search, part)
    reasons = [_reasons(row, unusual, view) for row in rows.iter_rows(named=True)]
    told = rows.with_columns(
        odd=pl.Series([r for r, _ in reasons], dtype=pl.List(pl.String)),
        notes=pl.Series([n for _, n in reasons], dtype=pl.List(pl.String)),
    )
    return _with_beacons(told, beacons, view).select(pl.col(name).cast(dtype) for name, dtype in ROWS.items())


def _totals(part: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    """One row a source and host, with the verdict of all its ways."""
    verdicts = _verdicts(part, judge)
    total = (pl.when(pl.col(n).is_not_null().any()).then(pl.col(n).sum()).alias(n) for n in ("bytes_out", "bytes_in"))
    refused = pl.col("allowed").eq_missing(False)
    return (
        part.with_columns(verdicts)
        .group_by("source", "host")
        .agg(
            pl.col("witness", "is_name", "namespace").first(),
            pl.col("port").sort_by("calls", descending=True).drop_nulls().unique(maintain_order=True).alias("ports"),
            pl.col("protocol").drop_nulls().unique().sort().alias("protocols"),
            pl.col("address").drop_nulls().unique().sort().head(MAX_ADDRESSES).alias("addresses"),
            pl.col("source_address").drop_nulls().unique().sort().alias("source_addresses"),
            pl.col("calls").sum().alias("connections"),
            pl.col("first_unix_nano").min().alias("first_seen_unix_nano"),
            pl.col("last_unix_nano").max().alias("last_seen_unix_nano"),
            pl.col("failed").sum(),
            pl.col("longest_ns").max(),
            pl.col("web", "stores").any(),
            *total,
            pl.col("rule").filter(pl.col("rule") != "").unique(maintain_order=True).str.join("; ").alias("rules"),
            pl.col("against").filter(refused).first().alias("refused_by"),
            refused.any().alias("unlisted"),
            pl.col("allowed").eq_missing(True).all().alias("listed"),
        )
        .with_columns(
            port=pl.col("ports").list.first(),
            allowed_by=pl.when("listed").then("rules"),
        )
        .rename({"host": "destination"})
        .sort("source", "destination")
    )


def _verdicts(part: pl.DataFrame, judge: Judge) -> list[pl.Series]:
    """`allowed`, `rule` and `against` of every way."""
    found: list[Verdict | None]
    if judge.policies.is_given:
        addresses = {
            host: [a for a in listed if a is not None]
            for host, listed in part.group_by("host").agg(pl.col("address").unique()).iter_rows()
        }
        columns = part.select("source", "namespace", "host", "port", "protocol").iter_rows()
        found = [judge.verdict(s, n, host, port, (addresses[host], p)) for s, n, host, port, p in columns]
    else:
        found = [None] * part.height
    return [
        pl.Series("allowed", [None if v is None else v.allowed for v in found], dtype=pl.Boolean),
        pl.Series("rule", ["" if v is None else v.rule for v in found], dtype=pl.String),
        pl.Series("against", [None if v is None else v.against for v in found], dtype=pl.String),
    ]


def _beacons(search: _Search, part: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """RITA's scores by pair, in the last 24 h of all that left."""
    first, last = min(part["first_unix_nano"].to_list()), max(part["last_unix_nano"].to_list())
    often = part.group_by("source", "host").agg(pl.col("calls").sum()).filter(pl.col("calls") >= MIN_UNIQUE_SECONDS)
    hosts = often["host"].unique().to_list()
    recent = Window(
        max(search.window.since_unix_nano or first, last - _DAY_NS - HOUR_NS), search.window.until_unix_nano
    )
    calls = pl.DataFrame(schema=TIMES)
    if hosts:
        calls = times(search.query, recent, search.witness, search.sources, hosts)
    numbered = calls.join(pairs, on=["source", "host"])
    return score_pairs(
        numbered["pair"].cast(pl.Int64).to_numpy(),
        numbered["start_time_unix_nano"].to_numpy(),
        numbered["size"].fill_null(-1).to_numpy(),
        observation(first, last),
        pairs.height,
    )


def _with_beacons(rows: pl.DataFrame, beacons: pl.DataFrame | None, view: View) -> pl.DataFrame:
    if beacons is None:
        beacons = pl.DataFrame(schema={"pair": pl.Int64, **BEACON, "log10_close": pl.Float64, "log10_few": pl.Float64})
    joined = rows.join(beacons.with_columns(pl.col("pair").cast(pl.UInt32)), on="pair", how="left")
    rhythmic = (
        (pl.col("score") >= view.min_beacon_score)
        & (pl.col("connections") >= view.min_beacon_calls)
        & (
            ((pl.col("jitter_ratio") <= view.max_jitter_ratio) & (pl.col("log10_close") <= MAX_LOG10))
            | (pl.col("log10_few") <= MAX_LOG10)
        )
        & ~pl.col("listed")
        # Polling a database or a queue is what clients do: telling only where a policy refuses it.
        & (~pl.col("stores") | pl.col("unlisted"))
    ).fill_null(value=False)
    parts = (
        pl.when("unlisted").then(pl.lit(["unlisted"])).otherwise(pl.lit([], dtype=pl.List(pl.String))),
        pl.when(rhythmic).then(pl.lit(["beacon"])).otherwise(pl.lit([], dtype=pl.List(pl.String))),
        pl.col("odd"),
    )
    strong = pl.col("reasons").list.set_difference(sorted(WEAK)).list.len() > 0
    weak = pl.col("reasons").list.set_intersection(sorted(WEAK)).list.len() >= len(WEAK)
    return joined.with_columns(
        beacon=pl.when(pl.col("score").is_not_null()).then(pl.struct(*BEACON)),
        reasons=pl.concat_list(*parts),
    ).with_columns(flagged=strong | weak)


@dataclass(frozen=True, slots=True)
class _Unusual:
    """What is unusual of pairs, by (source, host); tunnels by (source, registered domain)."""

    new: Mapping[tuple[str, str], bool]
    volumes: Mapping[tuple[str, str], list[str]]
    tunnels: Mapping[tuple[str, str], int]
    names_are_known: bool


def _unusual(search: _Search, part: pl.DataFrame) -> _Unusual:
    view = search.view
    new: dict[tuple[str, str], bool] = {}
    if view.baseline is not None:
        before = seen_before(search.query, view.baseline, search.witness, search.sources)
        new = {(s, h): fleet for s, h, fleet in first_seen(part, before, view.odd).iter_rows()}
    volumes: dict[tuple[str, str], list[str]] = {}
    judged = volume(_history(search, part), _first_hour(search.window), view.odd)
    for row in judged.iter_rows(named=True):
        volumes.setdefault((row["source"], row["host"]), []).append(
            f"{size(row['bytes'])} {row['direction']} in one hour, where {size(row['usual'])} is usual (robust z {row['z']:.0f})"
        )
    named = {(s, domain): names for s, domain, names, _ in tunnels(part, view.odd).iter_rows()}
    known = search.witness == "spans" or 2 * sum(part["is_name"].to_list()) >= part.height
    return _Unusual(new, volumes, named, names_are_known=known)


def _history(search: _Search, part: pl.DataFrame) -> pl.DataFrame:
    """The hours of the window and of the baseline, if so much went anywhere that an hour can be far more."""
    window, view = search.window, search.view
    much = part.group_by("host").agg(most=pl.max_horizontal(pl.col("bytes_out").sum(), pl.col("bytes_in").sum()))
    if not much.filter(pl.col("most") >= view.odd.min_bytes).height:
        return pl.DataFrame(schema=HOURS)
    since = window.since_unix_nano if view.baseline is None else view.baseline.since_unix_nano
    wide = Window(since, window.until_unix_nano)
    return hours(search.query, wide, search.witness, search.sources, part["host"].unique().to_list())


def _first_hour(window: Window) -> int | None:
    return None if window.since_unix_nano is None else window.since_unix_nano // HOUR_NS


def _reasons(row: Mapping[str, Any], unusual: _Unusual, view: View) -> tuple[list[str], list[str]]:
    """What is unusual of a row, the strongest first, and the numbers of it. Of what a policy allows, only volume."""
    pair = (row["source"], row["destination"])
    volumes = unusual.volumes.get(pair, [])
    found, notes = (["volume"] if volumes else []), [*volumes]
    if row["listed"]:
        return found, notes
    names = unusual.tunnels.get((row["source"], registered_domain(row["destination"]))) if row["is_name"] else None
    if names is not None:
        found.append("dns_tunnel")
        notes.append(f"{names} names under {registered_domain(row['destination'])}")
    way = Way(
        host=row["destination"],
        is_name=row["is_name"],
        ports=tuple(row["ports"]),
        protocols=frozenset(row["protocols"]),
        calls=row["connections"],
        longest_ns=row["longest_ns"],
        is_web=row["web"],
        names_are_known=unusual.names_are_known,
    )
    odd = oddities(way, view.odd)
    if "long_connection" in odd:
        notes.append(f"one connection lasted {row['longest_ns'] / HOUR_NS:.1f} h")
    if pair in unusual.new:
        found.append("first_seen")
        notes.append(f"{'nobody' if unusual.new[pair] else 'it never'} called it in the baseline")
    return [*found, *odd], notes


def _notes(policies: Policies, rows: pl.DataFrame, view: View) -> list[str]:
    notes: list[str] = []
    if not policies.is_given:
        notes.append("no policy is given: nothing can be unlisted")
    elif rows.filter(pl.col("allowed_by").str.contains("ALLOW_ANY|trafficPolicy Allow")).height:
        notes.append(
            "a policy that allows everything is no list: what only ALLOW_ANY or trafficPolicy Allow let out is not told as unlisted"
        )
    if view.baseline is None:
        notes.append("no baseline: nothing can be seen for the first time (give --since)")
    return notes


def size(count: float) -> str:
    """Bytes as people read them."""
    for limit, unit, scale in ((1e3, "B", 1.0), (1e6, "kB", 1e3), (1e9, "MB", 1e6)):
        if count < limit:
            return f"{count / scale:.0f} {unit}" if unit == "B" else f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def destination_of(row: Mapping[str, Any]) -> str:
    """host:port of a row with one port, the host alone of others."""
    ports: Sequence[int] = row["ports"]
    return written(row["destination"], ports[0] if len(ports) == 1 else None)
