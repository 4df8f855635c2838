"""`provenance sql`: one SELECT on a file or a collector, printed."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from collector.client import Access, add_access_arguments, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.terminal import complain
from collector.errors import CollectorError, exit_code

_EPILOG: Final = """\
tables: spans, span_events, span_links, resources, scopes, proxy_records, flows, sockets, socket_watches, workloads,
  ingest_errors, egress_allow, access_logs.
DESCRIBE spans shows a table's columns. Only SELECT, DESCRIBE, SUMMARIZE, SHOW and EXPLAIN are answered.

examples:
  provenance sql evidence.duckdb "SELECT service_name, count(*) FROM spans GROUP BY ALL"
  provenance sql http://127.0.0.1:4318 "DESCRIBE proxy_records"
  provenance sql evidence.duckdb - --format csv < slow-calls.sql > slow-calls.csv

exit codes: 0 answered, 2 the SQL was refused or failed, 3 nothing there to ask
"""


def main(argv: Sequence[str]) -> int:
    """Run one query and print its answer; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        sql = sys.stdin.read() if options.sql == "-" else options.sql
        source = open_source(options.source, Access.of(options))
        try:
            if source.lacks:
                complain("sql", source.lacks)
            frame = source.query(sql)
        finally:
            source.close()
    except CollectorError as e:
        complain("sql", str(e))
        return exit_code(e)
    try:
        write_frame(frame, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance sql",
        description="Run one SELECT on the evidence and print the answer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    parser.add_argument("sql", metavar="SQL", help="the query, in DuckDB's SQL; - reads it from stdin")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    add_access_arguments(parser)
    return parser
