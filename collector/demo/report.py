"""What the demo prints about its grade. Pure."""

import json
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import polars as pl

from collector.commands.output import write_frame
from collector.commands.terminal import escape
from collector.demo.incidents import NANOSECONDS, Grade, Outcome


def document(grade: Grade, findings: pl.DataFrame, database: str) -> str:
    """The JSON document: findings, incidents, unexpected (ids of findings that belong to no incident), database, ok."""
    rows = StringIO()
    write_frame(findings, "json", rows)
    incidents = [_incident(outcome) for outcome in grade.outcomes]
    whole = {
        "findings": json.loads(rows.getvalue()),
        "incidents": incidents,
        "unexpected": list(grade.unexpected),
        "database": database,
        "ok": grade.ok,
    }
    return json.dumps(whole, indent=2)


def verdict_lines(grade: Grade, findings: pl.DataFrame) -> list[str]:
    """One line for each planted incident, one for each finding that nobody planted, and the sum of it."""
    explanations = dict(findings.select("finding_id", "explanation").iter_rows())
    return [
        *(_verdict_line(outcome) for outcome in grade.outcomes),
        *(f"UNEXPECTED {i}: {escape(explanations[i])}" for i in grade.unexpected),
        summary(grade),
    ]


def summary(grade: Grade) -> str:
    """The grade in one line."""
    if not grade.outcomes and grade.ok:
        return "nothing was planted, nothing was found"
    found = sum(outcome.found for outcome in grade.outcomes)
    surplus = f"; findings that nobody planted: {len(grade.unexpected)}" if grade.unexpected else ", and nothing else"
    return f"{found} of {len(grade.outcomes)} planted incidents found{surplus}"


def _verdict_line(outcome: Outcome) -> str:
    planted = outcome.planted
    verdict = f"found as {', '.join(outcome.finding_ids)}" if outcome.found else "NOT FOUND"
    return f"{planted.name:<7} {clock(planted.planted_at_unix_nano)}  {verdict}: {planted.signature.summary}"


def _incident(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.planted.name,
        "planted_at": rfc3339(outcome.planted.planted_at_unix_nano),
        "found": outcome.found,
        "finding_ids": list(outcome.finding_ids),
    }


def rfc3339(unix_nano: int) -> str:
    """`2026-01-02T03:04:05.678Z`."""
    return (
        datetime.fromtimestamp(unix_nano / NANOSECONDS, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def clock(unix_nano: int) -> str:
    """`03:04:05Z`."""
    return f"{datetime.fromtimestamp(unix_nano / NANOSECONDS, UTC):%H:%M:%S}Z"
