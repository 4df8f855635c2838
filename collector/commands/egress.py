"""`provenance egress`: every destination outside, by workload or address: how much went there, what allows it, how clock-like it is."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from collector.client import Access, add_access_arguments, is_collector, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.scan import NOTHING_THERE
from collector.commands.terminal import complain, escape
from collector.commands.times import parse_moment, rfc3339
from collector.errors import CollectorError, ConfigError, exit_code
from collector.forensics.destinations import Destinations, View, destination_of, examine_destinations, size
from collector.forensics.scan import is_nothing_there
from collector.forensics.tables import NS_PER_S, Window

if TYPE_CHECKING:
    from collector.policy.policies import Policies

EXIT_CLEAN: Final = 0
EXIT_FINDINGS: Final = 1
SUGGESTIONS: Final = ("istio", "linkerd", "networkpolicy")

_EPILOG: Final = """\
POLICY is a file or a directory of YAML, JSON or TOML, as in Git or as `kubectl get -o yaml` prints it:
  Istio        ServiceEntry, Sidecar (egress.hosts, outboundTrafficPolicy), MeshConfig
  Linkerd      EgressNetwork with HTTPRoute, GRPCRoute, TLSRoute and TCPRoute
  Kubernetes   NetworkPolicy; a Deployment, StatefulSet, ... beside it tells its pods' labels
  ours         provenance.toml: [egress] allow = ["api.stripe.com:443", ...], internal = ["*.corp.example", ...]

reasons:
  unlisted         a policy would have had to allow it            beacon       the beat of a clock: RITA's score, and rhythm
  volume           an hour with far more bytes than usual         first_seen   not reached in the time before --since
  dns_tunnel       very many names under one domain               metadata_api where a cloud hands out credentials
  long_connection  4 h and more                                   strobe       a connection a second
  raw_address, odd_port   weak: one of them alone is no finding

beacon: score = (ts + ds + hist + dur) / 4 as RITA v5 has it, over the last 24 h of what left; empty with fewer than 4 distinct seconds.

examples:
  provenance egress evidence.duckdb --policy k8s/
  provenance egress http://127.0.0.1:4318 --since 1h --format json | jq '.[] | select(.flagged)'
  provenance import conn.log --into zeek.duckdb && provenance egress zeek.duckdb --by address
  provenance egress evidence.duckdb --suggest istio > egress.yaml

exit codes: 0 nothing flagged, 1 something is, 2 usage, 3 nothing there to ask, 70 a defect of ours; --suggest: 0 or 2, 3, 70
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Ask and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        policies = _policies(options.policy)
        found = _examine(options, policies, now())
        for note in found.notes:
            complain("egress", note)
        if options.suggest is not None:
            return _suggest(options.suggest, found, policies)
    except CollectorError as e:
        complain("egress", str(e))
        return exit_code(e)
    try:
        shown = found.rows.filter(pl.col("flagged")) if options.flagged else found.rows
        write_frame(_readable(shown) if options.format == "table" else _exact(shown), options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FINDINGS if found.rows["flagged"].any() else EXIT_CLEAN


def _policies(paths: Sequence[Path]) -> "Policies | None":
    if not paths:
        return None
    from collector.policy.policies import read_policies

    return read_policies(paths)


def _examine(options: argparse.Namespace, policies: "Policies | None", now_unix_nano: int) -> Destinations:
    since, until = (None if t is None else parse_moment(t).at(now_unix_nano) for t in (options.since, options.until))
    if since is not None and until is not None and since >= until:
        raise ConfigError("--since is not before --until")
    baseline = None
    if options.baseline is not None:
        if since is None:
            raise ConfigError("--baseline needs --since: it is the time before it")
        baseline = Window(parse_moment(options.baseline).at(since), since)
    elif since is not None:
        baseline = Window(max(0, since - 24 * 3600 * NS_PER_S), since)
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("egress", source.lacks)
        view = View(
            policies=policies,
            by=options.by,
            internal=tuple(_places(options.internal, "--internal")),
            external=tuple(_places(options.external, "--external")),
            baseline=baseline,
            settle_ns=View().settle_ns if is_collector(options.source) else 0,
        )
        window = Window(since, until)
        found = examine_destinations(source.query, window, view)
        if found.rows.is_empty() and is_nothing_there(source.query, window):
            complain("egress", NOTHING_THERE)
        return found
    finally:
        source.close()


def _places(texts: Sequence[str], flag: str) -> list[str]:
    from collector.policy.listed import parse_internal

    return [parse_internal(text, flag) for text in texts]


def _suggest(kind: str, found: Destinations, policies: "Policies | None") -> int:
    from collector.policy.suggest import suggest

    suggestion = suggest(kind, found.rows.to_dicts(), policies)
    for note in suggestion.notes:
        complain("egress", note)
    sys.stdout.write(suggestion.text)
    return EXIT_CLEAN


def _exact(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns that programs read, with times in RFC 3339."""
    return rows.select(
        "source",
        "destination",
        "port",
        "ports",
        "protocols",
        "witness",
        "connections",
        "bytes_out",
        "bytes_in",
        *(_rfc3339(rows, end) for end in ("first_seen", "last_seen")),
        "allowed_by",
        "refused_by",
        "beacon",
        "reasons",
        "flagged",
        "notes",
        "addresses",
    )


def _rfc3339(rows: pl.DataFrame, end: str) -> pl.Series:
    return pl.Series(end, [rfc3339(t) for t in rows[f"{end}_unix_nano"].to_list()], dtype=pl.String)


def _readable(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns that people read: one line a destination."""
    lines = [_line(row) for row in rows.iter_rows(named=True)]
    names = (
        "source",
        "destination",
        "calls",
        "out",
        "in",
        "last_seen",
        "score",
        "ts",
        "ds",
        "hist",
        "dur",
        "allowed_by",
        "reasons",
    )
    return pl.DataFrame(lines, schema=list(names), orient="row", infer_schema_length=None)


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    beacon = row["beacon"] or {}
    ports = "" if len(row["ports"]) < 2 else f" (+{len(row['ports']) - 1} ports)"
    bytes_ = ("" if row[f"bytes_{way}"] is None else size(row[f"bytes_{way}"]) for way in ("out", "in"))
    parts = ("" if beacon.get(p) is None else f"{beacon[p]:.3f}" for p in ("score", "ts", "ds", "hist", "dur"))
    allowed = row["allowed_by"] or ("" if row["refused_by"] is None else f"not: {row['refused_by']}")
    return (
        escape(row["source"]),
        escape((destination_of(row) if len(row["ports"]) < 2 else row["destination"]) + ports),
        row["connections"],
        *bytes_,
        f"{datetime.fromtimestamp(row['last_seen_unix_nano'] // NS_PER_S, UTC):%Y-%m-%dT%H:%M:%SZ}",
        *parts,
        escape(allowed),
        ", ".join(row["reasons"]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance egress",
        description="List what left the mesh, by workload or address: how much, by whose leave, and how much like a clock.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    add(
        "--policy",
        metavar="POLICY",
        type=Path,
        action="append",
        default=[],
        help="what may be reached; may be repeated (default: the collector's own list)",
    )
    add(
        "--by",
        choices=("workload", "address"),
        help="how sources are named; address asks network flows alone (default: workload where anything names one)",
    )
    add("--since", metavar="TIME", help="calls that began at this time or later (default: all)")
    add("--until", metavar="TIME", help="calls that began before this time (default: all)")
    add("--baseline", metavar="HOW LONG", help="how long before --since habits are learnt (default: 1d)")
    add(
        "--internal",
        metavar="PLACE",
        action="append",
        default=[],
        help="a CIDR block, address, name or *.suffix that is no egress, beside private addresses; may be repeated",
    )
    add(
        "--external",
        metavar="PLACE",
        action="append",
        default=[],
        help="one that is, although its address is private; may be repeated",
    )
    add("--flagged", action="store_true", help="print only what is flagged")
    add(
        "--suggest",
        choices=SUGGESTIONS,
        help="write, as YAML, the least policy that allows what was seen and is not flagged",
    )
    add("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    add_access_arguments(parser)
    return parser
