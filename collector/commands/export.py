"""`provenance export`: the evidence of a file or a collector, as OTLP for every other tool, or as Parquet."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from collector.client import Access, Source, add_access_arguments, open_source
from collector.commands.terminal import complain
from collector.commands.times import parse_moment
from collector.errors import CollectorError, ConfigError, exit_code

if TYPE_CHECKING:
    from collector.exchange.exporting import Exported
    from collector.exchange.pages import Scope

FORMATS: Final = ("otlp-json", "otlp-proto", "parquet")
_STDOUT: Final = "-"
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")

_EPILOG: Final = """\
formats:
  otlp-json   a request a line, as the OpenTelemetry Collector's file exporter writes it
  otlp-proto  as its `format: proto` does: each request after its length, 4 bytes, big-endian
  parquet     a directory with TABLE.parquet, zstd: every table, proxy records and refusals too; ids are hex text
OTLP has all of a span: events, links, resource, scope, typed attributes, dropped counts, flags, status. It has no place for
proxy records, nor for when a span was received. `provenance import` reads all three back.

A TIME is RFC 3339 (2026-03-01T03:12:00Z; without an offset: UTC) or how long ago: 90s, 15m, 2h, 1d. It is compared with the
start of spans and of proxy records.
A file takes its name when it is complete; one that is there is not replaced without --force. .gz and .zst are compressed.

examples:
  provenance export evidence.duckdb --format otlp-json --out incident.jsonl.gz --since 2026-03-01T03:00:00Z
  provenance export http://127.0.0.1:4318 --format otlp-json --trace 4bf92f3577b34da6a3ce929d0e0e4736 | jq .
  provenance export evidence.duckdb --format parquet --out monday/

exit codes: 0 exported, perhaps nothing; 2 usage, or it cannot be written; 3 nothing there to ask
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Export and tell; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        out = _out(options)
        scope = _scope(options, now())
        source = open_source(options.source, Access.of(options))
        try:
            if source.lacks:
                complain("export", source.lacks)
            exported = _export(source, scope, options, out)
        finally:
            source.close()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CollectorError as e:
        complain("export", str(e))
        return exit_code(e)
    counts = ", ".join(f"{count:,} {table}" for table, count in exported.rows.items() if count)
    complain("export", f"{counts or 'nothing'}{'' if out == _STDOUT else f' -> {out}'}")
    return 0


def _export(source: Source, scope: "Scope", options: argparse.Namespace, out: str) -> "Exported":
    from collector.exchange.exporting import export_otlp, export_parquet, framed, json_line, left_out
    from collector.exchange.outputs import open_directory, open_file

    if options.format == "parquet":
        with open_directory(out, force=options.force) as directory:
            return export_parquet(source.query, scope, directory)
    with open_file(out, force=options.force) as file:
        exported = export_otlp(source.query, scope, json_line if options.format == "otlp-json" else framed, file)
    if others := left_out(source.query, scope):
        counts = ", ".join(f"{count:,} rows of {table}" for table, count in others.items())
        complain("export", f"not in OTLP: {counts}; --format parquet has them")
    return exported


def _out(options: argparse.Namespace) -> str:
    """Where it goes; raises ConfigError where that cannot be."""
    if options.format == "parquet":
        if options.out in {None, _STDOUT}:
            raise ConfigError("Parquet is a directory with a file a table: name it with --out DIR")
        return str(options.out)
    out = options.out or _STDOUT
    if out == _STDOUT and options.format == "otlp-proto" and sys.stdout.isatty():
        raise ConfigError("protobuf is nothing for a terminal: redirect it, or name a file with --out FILE")
    return str(out)


def _scope(options: argparse.Namespace, now_unix_nano: int) -> "Scope":
    from collector.exchange.pages import Scope

    since, until = (None if t is None else parse_moment(t).at(now_unix_nano) for t in (options.since, options.until))
    if since is not None and until is not None and since >= until:
        raise ConfigError("--since is not before --until")
    trace_id = None
    if options.trace is not None:
        trace_id = options.trace.replace("-", "").lower()
        if not _TRACE_ID.fullmatch(trace_id):
            raise ConfigError(f"--trace {options.trace!r}: a trace id has 32 hex digits")
    return Scope(since, until, trace_id)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance export",
        description="Write the evidence as OTLP, which every tracing tool reads, or as Parquet, which every engine reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("--out", metavar="FILE|DIR|-", help="where to; - is stdout (default: -; Parquet needs a directory)")
    add("--since", metavar="TIME", help="what began at this time or later (default: all)")
    add("--until", metavar="TIME", help="what began before this time (default: all)")
    add("--trace", metavar="ID", help="one trace, by its 32 hex digits")
    add("--force", action="store_true", help="replace what is there")
    add_access_arguments(parser)
    return parser
