"""`provenance cost`: what the mesh itself costs, hop by hop."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import polars as pl

from collector.client import Access, add_access_arguments, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.terminal import complain
from collector.commands.times import parse_time
from collector.errors import CollectorError, ConfigError, exit_code
from collector.forensics.causes import milliseconds
from collector.forensics.cost import BY, cost
from collector.forensics.tables import Window

_EPILOG: Final = """\
The hop of a call is its client span's duration less its server span's: proxies, network, and the stacks of both ends. Every figure is
a quantile of differences of single calls, not a difference of quantiles; clocks do not matter.

  calls          with both spans                proxied    of them, with a span of a proxy between
  split          of them, told apart in         caller_proxy, network, callee_proxy
  hop_ratio_p50  the part of the client's time that is hop

Without spans of proxies a hop is not split: what the mesh adds is then the hop less what the same hop takes without a mesh. With one
span a proxy (Envoy's default) `network` holds what the caller's proxy does inside its span.

examples:
  provenance cost evidence.duckdb
  provenance cost http://127.0.0.1:4318 --by edge --since 1h
  provenance cost evidence.duckdb --by hop --format json | jq 'max_by(.hop_ns_p99)'

exit codes: 0 told (also that there is nothing to tell), 2 usage, 3 nothing there to ask, 70 a defect of ours
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Ask and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        frame = _told(options, now())
    except CollectorError as e:
        complain("cost", str(e))
        return exit_code(e)
    if frame.is_empty():
        complain("cost", "no call of this time has both a client and a server span: nothing tells what a hop costs")
    elif not frame["split"].sum():
        complain("cost", "no hop has spans of proxies that tell its parts; switch on the mesh's tracing to split it")
    try:
        write_frame(readable(frame) if options.format == "table" else frame, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def readable(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame for people: durations with their unit, the ratio in percent."""
    texts = []
    for column in frame:
        if "_ns_" in column.name:
            told = [None if v is None else ("-" if v < 0 else "") + milliseconds(abs(v)) for v in column]
            texts.append(pl.Series(column.name.replace("_ns", ""), told, pl.String))
        elif column.name == "hop_ratio_p50":
            texts.append(pl.Series(column.name, [None if v is None else f"{v:.1%}" for v in column], pl.String))
        else:
            texts.append(column)
    return pl.DataFrame(texts)


def _told(options: argparse.Namespace, now_unix_nano: int) -> pl.DataFrame:
    since = None if options.since is None else parse_time(options.since, now_unix_nano)
    until = None if options.until is None else parse_time(options.until, now_unix_nano)
    if since is not None and until is not None and since >= until:
        raise ConfigError(
            f"--since {options.since} is not before --until {options.until}: no call can lie between them"
        )
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("cost", source.lacks)
        return cost(source.query, Window(since, until), options.by)
    finally:
        source.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance cost",
        description="Tell what the mesh itself costs: client time less server time, by mesh, edge or hop.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    parser.add_argument(
        "--by",
        choices=BY,
        default="mesh",
        help="one row for all, a row an edge, or a row an edge and operation (default: mesh)",
    )
    parser.add_argument("--since", metavar="TIME", help="calls that began at this time or later (default: all)")
    parser.add_argument("--until", metavar="TIME", help="calls that began before this time (default: all)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    add_access_arguments(parser)
    return parser
