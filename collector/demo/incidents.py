"""What was planted, and whether the findings say exactly that: nothing missed, nothing invented. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from collector.demo.plan import Incident, Plan
from collector.forensics.findings import Kind


@dataclass(frozen=True, slots=True)
class Signature:
    """What a finding about one incident says.

    Attributes:
        summary: The incident, for people.
        kind: The finding's kind.
        reasons: One of these is among the finding's reasons.
        caller: None where nothing can vouch for one.
        callee: None for egress.
        operation: None where the finding is about the whole edge.
        destination: host:port for egress, else None.
        onset_slack_seconds: How much earlier than planted the finding may begin. Single calls are evidence to the millisecond;
            when an edge got slow is an estimate over buckets of time.
    """

    summary: str
    kind: Kind
    reasons: frozenset[str]
    caller: str | None = None
    callee: str | None = None
    operation: str | None = None
    destination: str | None = None
    onset_slack_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class Planted:
    """One incident as it was planted, or would have been."""

    name: Incident
    planted_at_unix_nano: int
    signature: Signature


@dataclass(frozen=True, slots=True)
class Outcome:
    """One planted incident and the ids of the findings that belong to it; none: it was missed."""

    planted: Planted
    finding_ids: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether at least one finding belongs to it."""
        return bool(self.finding_ids)


@dataclass(frozen=True, slots=True)
class Grade:
    """The comparison: one outcome for each planted incident, and the ids of the findings that belong to none."""

    outcomes: tuple[Outcome, ...]
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every incident has its finding, and every finding its incident."""
        return not self.unexpected and all(outcome.found for outcome in self.outcomes)


NANOSECONDS: Final = 1_000_000_000


def signatures(plan: Plan) -> Mapping[Incident, Signature]:
    """What each incident of this plan looks like when it is found."""
    return {
        "rogue": Signature(
            "a program without middleware or sidecar calls payment's port",
            "shadow",
            frozenset({"unstamped", "unknown_caller", "mesh_bypass"}),
            callee="payment",
        ),
        "bypass": Signature(
            "checkout dials inventory around both sidecars",
            "shadow",
            frozenset({"mesh_bypass"}),
            caller="checkout",
            callee="inventory",
        ),
        "egress": Signature(
            f"inventory calls {plan.drop} like a clock",
            "egress",
            frozenset({"unlisted", "beacon"}),
            caller="inventory",
            destination=plan.drop,
        ),
        "slow": Signature(
            "pricing answers Quote 200 ms later",
            "latency",
            frozenset({"latency_shift"}),
            callee="pricing",
            operation="shop.Pricing/Quote",
            onset_slack_seconds=max(2.0, plan.duration_seconds / 20),
        ),
    }


def grade(planted: Sequence[Planted], findings: pl.DataFrame) -> Grade:
    """Match findings (columns of `collector.forensics.findings.SCHEMA`) to incidents; one incident may have several findings."""
    rows = findings.to_dicts()
    outcomes = tuple(Outcome(p, tuple(r["finding_id"] for r in rows if belongs(r, p))) for p in planted)
    explained = {finding_id for outcome in outcomes for finding_id in outcome.finding_ids}
    return Grade(outcomes, tuple(r["finding_id"] for r in rows if r["finding_id"] not in explained))


def belongs(finding: Mapping[str, Any], planted: Planted) -> bool:
    """Whether this finding is about that incident: the right subject and reason, and no call in it from before."""
    signature = planted.signature
    earliest = planted.planted_at_unix_nano - int(signature.onset_slack_seconds * NANOSECONDS)
    return (
        finding["kind"] == signature.kind
        and not signature.reasons.isdisjoint(finding["reasons"])
        and finding["callee"] == signature.callee
        and (signature.kind == "latency" or finding["caller"] == signature.caller)
        and (signature.operation is None or _same_operation(finding["operation"], signature.operation))
        and (signature.destination is None or finding["destination"] == signature.destination)
        and finding["first_seen_unix_nano"] >= earliest
    )


def _same_operation(found: str | None, planted: str) -> bool:
    """Whether both name one gRPC method: attributes have `shop.Pricing/Quote`, the wire and span names `/shop.Pricing/Quote`."""
    return found is not None and found.removeprefix("/") == planted
