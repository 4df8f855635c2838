"""What can be proven with which witnesses: the detectors on copies of the evidence, graded against what really happened.

A verdict is graded by call (trace id), a socket's capture by connection (addresses and ports). Three outcomes of a verdict: `meshed`,
`bypassed`, `unknown`; a call that no witness knows is `unseen`.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from collector.client import open_source
from collector.forensics.call_list import call_verdicts
from collector.forensics.scan import scan
from collector.forensics.tables import Query, Window
from collector.lab.plan import WAYS
from collector.store.database import Store

WITNESSES: Final[dict[str, tuple[str, ...]]] = {
    "spans only": ("proxy_records", "flows", "sockets", "socket_watches", "workloads"),
    "+ access logs": ("flows", "sockets", "socket_watches", "workloads"),
    "+ sockets": ("flows", "workloads"),
    "all": (),
}
"""Each set of witnesses, and the tables that are emptied for it. Sidecars' spans are among the spans; `all` adds the list of pods."""

VERDICTS: Final = ("bypassed", "meshed", "unknown", "unseen")
CAPTURES: Final = ("bypassed", "captured", "not_mesh", "undecided", "unseen")

_SOCKETS: Final = """\
SELECT local_address || ':' || local_port AS near, remote_address || ':' || remote_port AS far, capture, direction,
  service_name, first_seen_unix_nano, last_seen_unix_nano
FROM sockets WHERE remote_port IS NOT NULL"""

Truth = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """The lab's result.

    Attributes:
        calls: Columns witnesses, way, calls, one a verdict, and named: those whose verdict names the way.
        connections: Columns way, side (caller, callee), connections, and one a capture.
        findings: What a scan finds: witnesses, severity, way, caller, callee, destination, count, reasons.
        failed: Calls of the script that got no answer, by reason.
    """

    calls: pl.DataFrame
    connections: pl.DataFrame
    findings: pl.DataFrame
    failed: Mapping[str, int]

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "calls": self.calls.to_dicts(),
            "connections": self.connections.to_dicts(),
            "findings": self.findings.to_dicts(),
            "failed": dict(self.failed),
            "accused": self.accused,
            "missed": self.missed,
        }

    @property
    def accused(self) -> int:
        """Clean calls that were called bypassed, with any set of witnesses: there must be none."""
        clean = self.calls.filter(pl.col("way") == "clean")
        return int(clean["bypassed"].sum())

    @property
    def missed(self) -> int:
        """Bypassing calls that were called meshed although all witnesses were there."""
        every = self.calls.filter((pl.col("witnesses") == "all") & pl.col("way").is_in(BYPASSES))
        return int(every["meshed"].sum())


NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "excluded_port": ("excluded_port",),
    "excluded_ip_range": ("excluded_ip_range",),
    "proxy_uid": ("proxy_uid",),
    "no_sidecar": ("no_sidecar",),
    "plaintext": ("plaintext_accepted", "no_sidecar"),
    "direct_pod_ip": ("direct_pod_ip", "passthrough_cluster"),
    "forged_xfcc": ("excluded_port", "no_sidecar"),
}
"""What a verdict may call each way: cron and mallory have no sidecar, and mallory's port is one that orders excludes."""

BYPASSES: Final = tuple(way for way in WAYS if way not in {"clean", "udp"})
"""The ways of calls past the mesh; UDP carries no call, and is graded by its connections."""


def grade(database: Path, truth: Truth, work: Path, sets: Sequence[str] = tuple(WITNESSES)) -> Result:
    """Grade each of these sets of witnesses on a copy of its own in `work`."""
    answered = [t for t in truth if t["error"] is None]
    failed = Counter(str(t["error"]) for t in truth if t["error"] is not None)
    judged = {name: _judged(database, WITNESSES[name], work) for name in sets}
    calls = pl.concat([_calls(name, j.verdicts, answered) for name, j in judged.items()])
    findings = pl.concat([_findings(name, j.findings) for name, j in judged.items()])
    with closing(open_source(str(database))) as source:
        connections = _connections(source.query(_SOCKETS), answered)
    return Result(calls, connections, findings, failed)


@contextmanager
def copy_without(database: Path, emptied: Sequence[str], work: Path) -> Iterator[Query]:
    """Asks a copy of the evidence in which these tables are empty; it is gone at the end."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        copy = Path(folder) / "copy.duckdb"
        shutil.copyfile(database, copy)
        with Store.open(copy) as store, closing(store.cursor()) as cursor:
            for table in emptied:
                cursor.execute(f"DELETE FROM {table}")
        with closing(open_source(str(copy))) as source:
            yield source.query


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the detectors made of one set of witnesses: (verdict, way) by trace id, and the findings of shadow traffic."""

    verdicts: Mapping[str, tuple[str, str]]
    findings: pl.DataFrame


def _judged(database: Path, emptied: Sequence[str], work: Path) -> _Judged:
    with copy_without(database, emptied, work) as query:
        frame = call_verdicts(query, Window())
        rows = frame.select("trace_id", "verdict", "way").iter_rows()
        return _Judged({trace: (verdict, way or "") for trace, verdict, way in rows}, scan(query, kinds=["shadow"]))


def _findings(name: str, findings: pl.DataFrame) -> pl.DataFrame:
    """The findings of one set: how severe, by which way, from whom to whom, how often."""
    return findings.select(
        pl.lit(name).alias("witnesses"), "severity", "way", "caller", "callee", "destination", "count", "reasons"
    )


def _calls(name: str, verdicts: Mapping[str, tuple[str, str]], truth: Truth) -> pl.DataFrame:
    counts: Counter[tuple[str, str]] = Counter()
    named: Counter[str] = Counter()
    for call in truth:
        verdict, way = verdicts.get(call["trace_id"] or "", ("unseen", ""))
        counts[call["way"], verdict] += 1
        named[call["way"]] += way in NAMES.get(call["way"], ())
    rows = []
    for way in WAYS:
        own = {verdict: counts[way, verdict] for verdict in VERDICTS}
        if total := sum(own.values()):
            rows.append({"witnesses": name, "way": way, "calls": total, **own, "named": named[way]})
    return pl.DataFrame(rows)


def _connections(sockets: pl.DataFrame, truth: Truth) -> pl.DataFrame:
    """Of each way's connections, what the caller's and the callee's witness said; one row a way and a side."""
    dialled: dict[tuple[str, str], str] = {(t["local"], t["remote"]): t["way"] for t in truth if t["local"]}
    # Redirected at the callee, its own end has the proxy's port: there the caller's end alone says which connection it is.
    arrived = {(near, far.partition(":")[0]): (near, far) for near, far in dialled}
    said: dict[tuple[str, str, str], str] = {}
    for near, far, capture, direction, *_ in sockets.iter_rows():
        side = "callee" if direction == "inbound" else "caller"
        ends = arrived.get((far, near.partition(":")[0])) if side == "callee" else (near, far)
        if ends in dialled:
            said[(side, *ends)] = _stronger(said.get((side, *ends)), capture)
    rows = []
    for side in ("caller", "callee"):
        counts = Counter((way, said.get((side, *ends), "unseen")) for ends, way in dialled.items())
        for way in WAYS:
            own = {capture: counts[way, capture] for capture in CAPTURES}
            if total := sum(own.values()):
                rows.append({"side": side, "way": way, "connections": total, **own})
    return pl.DataFrame(rows)


def _stronger(old: str | None, new: str | None) -> str:
    """What two rows of one pair of ends say together: a port may be used again."""
    order = ("unseen", "undecided", "not_mesh", "captured", "bypassed")
    return max(old or "unseen", new or "undecided", key=order.index)
