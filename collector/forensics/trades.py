"""What a threshold trades: what one gets for a smaller value, and for a larger one. What is not named here trades as its name says."""

from typing import Final

from collector.forensics.thresholds import Threshold

TRADES: Final[dict[str, tuple[str, str]]] = {
    "shadow.settle_ns": (
        "findings sooner; a caller whose exporter batches for longer looks unknown",
        "slow exporters are waited for; unknown callers are told so much later",
    ),
    "shadow.coverage.within_ns": (
        "more calls of quiet services stay unknown; a log that paused accuses nobody",
        "quiet services are judged too; a log that lost lines for so long may accuse a call",
    ),
    "shadow.coverage.clock_margin_ns": (
        "calls next to the last line are judged; clocks that differ by more accuse wrongly",
        "clocks may differ by so much; the first and last calls beside a gap stay unknown",
    ),
    "latency.startup_ns": (
        "slow first calls after a deployment count",
        "a service that is slow right after its start is not told",
    ),
    "latency.sample": (
        "faster; shares of a cause are rougher",
        "finer shares; more traces are read for each slow edge",
    ),
    "latency.max_edges": (
        "faster in a wide incident; the mildest edges are not explained",
        "more is explained, and takes longer",
    ),
    "latency.earlier_days": ("faster; what is usual is known by less", "slower; what an edge did weeks ago counts"),
    "latency.min_days": (
        "a rhythm is known sooner; two incidents at the same time of day excuse a third",
        "what happens every day is told for more days",
    ),
    "latency.shift.min_ratio": (
        "milder slowdowns are told, and a day's ordinary variation with them",
        "only what is much slower is told",
    ),
    "latency.shift.min_tail_ratio": ("slow tails are told sooner, and noise with them", "only long tails are told"),
    "latency.shift.min_increase_ns": (
        "very fast calls that became merely fast are told",
        "shifts of fast edges are not told",
    ),
    "latency.shift.min_calls": (
        "quiet edges and short episodes are told, by fewer calls",
        "quiet edges are never told",
    ),
    "latency.shift.max_chance": (
        "fewer false alarms; weak shifts are missed",
        "weak shifts are told; one in so many quiet edges is told too",
    ),
    "latency.shift.rest_ratio": ("one bad moment may be an episode", "an episode must be even; uneven ones are missed"),
    "latency.shift.min_separation": ("edges that wander are told", "edges that wander much are never told"),
    "latency.shift.min_duration_ns": ("pauses are told as incidents", "short incidents are not told"),
    "egress.min_beacon_score": ("irregular callers are told", "jittered beacons are missed"),
    "egress.max_jitter_ratio": ("beacons with jitter are missed", "random traffic begins to look like a beacon"),
    "egress.min_beacon_calls": (
        "beacons are told after fewer calls, and chance with them",
        "slow beacons need a wider window",
    ),
    "egress.settle_ns": (
        "told sooner; a callee that reports late looks like an outside one",
        "late reports are waited for; egress is told so much later",
    ),
    "egress.odd.min_times_others": ("peaks that come again are told", "one peak among a few is not told"),
    "egress.max_destinations": (
        "less memory and time; the rhythm of rarer destinations is not judged",
        "more destinations are judged call by call, and take longer",
    ),
}
"""By table and key: (smaller, larger)."""


def trade_of(threshold: Threshold) -> tuple[str, str]:
    """(what a smaller value brings, what a larger one brings); empty where there is no smaller and larger."""
    if isinstance(threshold.value, bool) or not isinstance(threshold.value, int | float):
        return "", ""
    told = TRADES.get(f"{threshold.table}.{threshold.name}")
    if told is not None:
        return told
    if threshold.name.startswith("min"):
        return "more is told, chance among it", "less is told, and later"
    if threshold.name.startswith("max"):
        return "less is told", "more is told, chance among it"
    return ("judged sooner, by less", "judged later, by more") if threshold.name.endswith("_ns") else ("", "")
