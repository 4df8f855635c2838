"""What is unusual of a destination, each by a rule that fits in a sentence: pure, frames in, frames out.

first_seen     not reached in the baseline by this source, though it reached enough else there
volume         an hour with far more bytes than this pair's, or this source's, other hours
dns_tunnel     very many names, each used once or so, under one registered domain
metadata_api   where a cloud hands out credentials
long_connection, strobe, raw_address, odd_port   what they say; the last two are weak: one of them alone is no finding
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from collector.forensics.beacon import STROBE_CALLS
from collector.forensics.departures import HOUR_NS
from collector.forensics.territory import METADATA_HOSTS
from collector.policy.calls import is_internal
from collector.policy.listed import address_of

WEAK: Final = frozenset({"raw_address", "odd_port"})

USUAL_PORTS: Final = frozenset(
    {20, 21, 22, 25, 53, 80, 110, 123, 143, 389, 443, 465, 500, 587, 636, 853, 989, 990, 993, 995}
    | {1194, 1433, 1521, 3128, 3306, 3389, 3478, 4317, 4318, 4500, 5222, 5228, 5432, 5671, 5672, 6379, 6443, 6514}
    | {8080, 8443, 8883, 9092, 9093, 9200, 9243, 9418, 9443, 27017, 51820}
)
"""Where services that are reached over the Internet listen: web, mail, names, time, remote access, databases and queues."""

WEB_PORTS: Final = frozenset({80, 443, 8080, 8443})

_SECOND_LEVEL: Final = frozenset(
    {"ac", "co", "com", "edu", "gov", "gob", "go", "gouv", "mil", "ne", "net", "nom", "or", "org"}
)
_NORMAL: Final = 0.6745
"""The MAD of a normal distribution, in standard deviations: makes a robust z comparable to a z."""


@dataclass(frozen=True, slots=True)
class OddityParams:
    """Thresholds.

    Attributes:
        min_baseline_calls: A source with fewer calls out in the baseline has no habit to depart from.
        max_expected_new: A source is used to new destinations if so many were to be expected: Good and Turing's estimate, the share of
            calls in the baseline that were their destination's only one, times the calls now.
        min_hours: Fewer hours with traffic are no history.
        min_z: Robust z of the logarithm of an hour's bytes.
        min_mad: Of that logarithm, at least: with it and `min_z`, an hour of a steady pair has to exceed its median twentyfold.
        min_bytes: An hour with less is never far more.
        min_times_others: And so many times the largest of the hours before and after its stretch of such hours: what was nearly as much
            at another time, such as last night's backup, is a habit.
        min_subdomains: Names under one registered domain; RITA's lowest step.
        max_calls_per_name: A tunnel uses a name once, and a resolver asks again once or twice.
        long_connection_ns: RITA's step from nothing to low, 4 h.
    """

    min_baseline_calls: int = 50
    max_expected_new: float = 0.1
    min_hours: int = 12
    min_z: float = 8.0
    min_mad: float = 0.25
    min_bytes: int = 1_000_000
    min_times_others: float = 2.0
    min_subdomains: int = 100
    max_calls_per_name: float = 3.0
    long_connection_ns: int = 4 * HOUR_NS


def first_seen(now: pl.DataFrame, before: pl.DataFrame, params: OddityParams) -> pl.DataFrame:
    """Of `source`, `host`, `calls` now and before: `source`, `host`, `by_fleet` of what is new to a source that has habits."""
    habits = before.group_by("source").agg(
        known_calls=pl.col("calls").sum(), single=(pl.col("calls") == 1).sum().cast(pl.Float64)
    )
    expected = now.group_by("source").agg(calls_now=pl.col("calls").sum()).join(habits, on="source")
    steady = expected.filter(
        (pl.col("known_calls") >= params.min_baseline_calls)
        & (pl.col("calls_now") * pl.col("single") / pl.col("known_calls") <= params.max_expected_new)
    )
    new = now.select("source", "host").unique().join(before, on=["source", "host"], how="anti")
    new = new.join(steady.select("source"), on="source", how="semi")
    return new.with_columns(by_fleet=~pl.col("host").is_in(before["host"].unique().to_list()))


def volume(hours: pl.DataFrame, since_hour: int | None, params: OddityParams) -> pl.DataFrame:
    """Hours far above the others: `source`, `host`, `direction`, `hour`, `bytes`, `usual` (the median), `z`; one row a pair and direction.

    `hours` as `departures.HOURS`, those of the baseline too; judged are those from `since_hour` on. A pair with too little history is
    judged by its source's hours, if more than half of such an hour's bytes are its own.
    """
    found: list[pl.DataFrame] = []
    for direction in ("out", "in"):
        column = f"bytes_{direction}"
        pairs = hours.filter(pl.col(column).is_not_null()).select("source", "host", "hour", bytes=column)
        own = _excess(pairs, ["source", "host"], params)
        totals = pairs.group_by("source", "hour").agg(pl.col("bytes").sum())
        by_source = _excess(totals, ["source"], params).rename({"bytes": "total"})
        short = pairs.group_by("source", "host").len().filter(pl.col("len") < params.min_hours).drop("len")
        main = (
            pairs.join(short, on=["source", "host"], how="semi")
            .join(by_source, on=["source", "hour"])
            .filter(pl.col("bytes") * 2 > pl.col("total"))
        )
        found += [
            f.select("source", "host", "hour", "bytes", "usual", "z").with_columns(direction=pl.lit(direction))
            for f in (own, main)
        ]
    everything = pl.concat(found)
    if since_hour is not None:
        everything = everything.filter(pl.col("hour") >= since_hour)
    return everything.sort("z", descending=True).unique(
        ["source", "host", "direction"], keep="first", maintain_order=True
    )


def _excess(hours: pl.DataFrame, key: Sequence[str], params: OddityParams) -> pl.DataFrame:
    """The rows whose bytes are far above the median of their key's, and above all hours but those next to them, with `usual` and `z`."""
    logged = hours.with_columns(log=(pl.col("bytes") + 1).log())
    middle = logged.group_by(key).agg(usual_log=pl.col("log").median(), known=pl.len(), usual=pl.col("bytes").median())
    joined = logged.join(middle, on=list(key)).with_columns(distance=pl.col("log") - pl.col("usual_log"))
    mad = joined.group_by(key).agg(mad=pl.col("distance").abs().median().clip(lower_bound=params.min_mad))
    scored = joined.join(mad, on=list(key)).with_columns(z=_NORMAL * pl.col("distance") / pl.col("mad"))
    is_far = (pl.col("z") >= params.min_z) & (pl.col("bytes") >= params.min_bytes)
    marked = scored.filter(pl.col("known") >= params.min_hours).sort(*key, "hour").with_columns(far=is_far)
    begins = pl.col("far") & ~(pl.col("far").shift(1, fill_value=False) & (pl.col("hour").diff().fill_null(0) == 1))
    staged = marked.with_columns(stretch=pl.when("far").then(begins.cum_sum().over(key)))
    return (
        staged.filter("far")
        .join(_largest_elsewhere(staged, key), on=[*key, "stretch"])
        .filter(pl.col("bytes") >= params.min_times_others * pl.col("elsewhere"))
        .select(*key, "hour", "bytes", "usual", "z")
    )


def _largest_elsewhere(staged: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """By key and `stretch`, the most bytes of an hour that is not in that stretch: `elsewhere`."""
    parts = staged.group_by(*key, "stretch").agg(most=pl.col("bytes").max())
    pairs = parts.filter(pl.col("stretch").is_not_null()).join(parts, on=list(key), suffix="_other")
    others = pairs.filter(pl.col("stretch").ne_missing(pl.col("stretch_other")))
    return others.group_by(*key, "stretch").agg(elsewhere=pl.col("most_other").max())


def tunnels(ways: pl.DataFrame, params: OddityParams) -> pl.DataFrame:
    """Sources with very many names under one registered domain: `source`, `domain`, `names`, `calls`."""
    named = ways.filter(pl.col("is_name")).select("source", "host", "calls")
    domains = {host: registered_domain(host) for host in named["host"].unique().to_list()}
    if not domains:
        return pl.DataFrame(schema={"source": pl.String, "domain": pl.String, "names": pl.Int64, "calls": pl.Int64})
    counted = (
        named.with_columns(domain=pl.col("host").replace_strict(domains, return_dtype=pl.String))
        .filter(pl.col("host") != pl.col("domain"))
        .group_by("source", "domain")
        .agg(names=pl.col("host").n_unique().cast(pl.Int64), calls=pl.col("calls").sum().cast(pl.Int64))
    )
    return counted.filter(
        (pl.col("names") >= params.min_subdomains) & (pl.col("calls") / pl.col("names") <= params.max_calls_per_name)
    )


def registered_domain(host: str) -> str:
    """What somebody registered: `example.com` of `a.b.example.com`, `example.co.uk` of `a.example.co.uk`.

    By the custom of two-letter countries, not by the Public Suffix List, which changes weekly: a name below a suffix that this does
    not know counts as one domain, which only makes a tunnel easier to see.
    """
    labels = host.split(".")
    country = len(labels) >= 3 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
    return ".".join(labels[-3:] if country else labels[-2:])


@dataclass(frozen=True, slots=True)
class Way:
    """What one row says of itself: host, ports, protocol and figures."""

    host: str
    is_name: bool
    ports: tuple[int, ...]
    protocols: frozenset[str]
    calls: int
    longest_ns: int | None
    is_web: bool
    names_are_known: bool
    """Whether this witness knows names at all: an address without one says nothing where no record has one."""


def oddities(way: Way, params: OddityParams) -> list[str]:
    """What is odd by the row alone, the strongest first."""
    found: list[str] = []
    if way.host in METADATA_HOSTS:
        found.append("metadata_api")
    if way.longest_ns is not None and way.longest_ns >= params.long_connection_ns:
        found.append("long_connection")
    if way.calls >= STROBE_CALLS:
        found.append("strobe")
    address = address_of(way.host)
    if address is not None and way.names_are_known and not is_internal(address):
        found.append("raw_address")
    usual = WEB_PORTS if way.is_web else USUAL_PORTS
    if way.ports and not usual & set(way.ports) and way.protocols <= {"tcp", "udp"}:
        found.append("odd_port")
    return found
