"""`provenance calls`: the verdict of every call, printed."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import polars as pl

from collector.client import Access, add_access_arguments, is_collector, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.scope import add_arguments, scope_of
from collector.commands.terminal import complain
from collector.errors import CollectorError, exit_code
from collector.forensics.call_list import VERDICTS, CallFilter, call_verdicts
from collector.forensics.tables import NS_PER_S
from collector.forensics.verdicts import BYPASSED, REASONS

EXIT_CLEAN: Final = 0
EXIT_BYPASSED: Final = 1

_EPILOG: Final = """\
verdicts:
  meshed    a proxy of either side saw it, or the connection that carried it had the proxy at its other end
  bypassed  a proxy that must have seen it did not; SIDE says whose (client, server, both), WAY how, where that can be told:
            excluded_port, excluded_ip_range, skip_port, proxy_uid, no_sidecar, host_network, plaintext_accepted,
            direct_pod_ip, passthrough_cluster
  unknown   nothing proves either; the reasons say what is missing

Absence of a log line is held against a call only where its proxy logged others shortly before and after. With --format json,
record_ids are the rows of proxy_records, sockets or flows that decided. How each bypass is closed: `provenance scan`.

A TIME is RFC 3339 (2026-03-01T03:12:00Z; without an offset: UTC) or how long ago: 90s, 15m, 2h, 1d.

examples:
  provenance calls evidence.duckdb --verdict bypassed
  provenance calls http://127.0.0.1:4318 --since 15m --service checkout --format ndjson
  provenance calls evidence.duckdb --trace 4bf92f3577b34da6a3ce929d0e0e4736

exit codes: 0 no call bypassed the mesh, 1 some did, 2 usage, 3 nothing there to ask, 70 a defect of ours
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Judge and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        judged = _judge(options, now())
    except CollectorError as e:
        complain("calls", str(e))
        return exit_code(e)
    complain("calls", _summary(judged))
    try:
        write_frame(_readable(judged) if options.format == "table" else judged, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BYPASSED if BYPASSED in judged["verdict"] else EXIT_CLEAN


def _judge(options: argparse.Namespace, now: int) -> pl.DataFrame:
    scope = scope_of(options, now, is_complete=not is_collector(options.source))
    wanted = CallFilter(trace_id=options.trace, service=options.service, verdict=options.verdict)
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("calls", source.lacks)
        return call_verdicts(source.query, scope.window(now), wanted, scope.shadow())
    finally:
        source.close()


def _summary(judged: pl.DataFrame) -> str:
    """How many calls of each verdict, and the most frequent reasons of those that are unknown."""
    if judged.is_empty():
        return "no answered call here"
    counts = Counter(judged["verdict"].to_list())
    said = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if counts[verdict])
    unknown = judged.filter(pl.col("verdict") == "unknown")
    why: Counter[str] = Counter(unknown["inbound_reason"].drop_nulls().to_list())
    causes = "; ".join(f"{REASONS[reason]} ({calls:,})" for reason, calls in why.most_common(3))
    return f"{judged.height:,} calls: {said}{f'. Unknown at the callee: {causes}' if causes else ''}"


def _readable(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that people read, with times as times and a reason beside each side."""

    def side(name: str) -> pl.Expr:
        reason = pl.col(f"{name}_reason")
        return (
            pl.when(reason.is_null())
            .then(pl.col(f"{name}_verdict"))
            .otherwise(pl.concat_str(pl.col(f"{name}_verdict"), pl.lit(": "), reason))
            .alias(name)
        )

    return frame.select(
        pl.from_epoch(pl.col("start_time_unix_nano") // (NS_PER_S // 1000), time_unit="ms")
        .dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .alias("time"),
        "verdict",
        "side",
        "way",
        "caller",
        "callee",
        "operation",
        side("outbound"),
        side("inbound"),
        "trace_id",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance calls",
        description="Print every answered call with its verdict: meshed, bypassed (where and how), or unknown (why).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    add("--service", metavar="NAME", help="only calls of or to this service")
    add("--verdict", choices=VERDICTS, help="only calls of this verdict")
    add("--trace", metavar="ID", help="only the calls of this trace")
    add("--format", choices=FORMATS, default="table", help="how to print them (default: table)")
    add_arguments(parser)
    add_access_arguments(parser)
    return parser
