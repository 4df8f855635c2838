"""`provenance scan`: the findings of a file or a collector, printed."""

import argparse
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import polars as pl

from collector.client import Access, add_access_arguments, is_collector, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.scope import add_arguments, scope_of, thresholds_of
from collector.commands.terminal import complain, escape
from collector.errors import CollectorError, exit_code
from collector.forensics.findings import KINDS
from collector.forensics.scan import Scan, examine, is_nothing_there
from collector.forensics.tables import NS_PER_S

EXIT_CLEAN: Final = 0
EXIT_FINDINGS: Final = 1

NOTHING_THERE: Final = (
    "no span, access-log line, flow or socket is from then: nothing was looked at (`provenance sql SOURCE "
    '"SELECT make_timestamp_ns(min(start_time_unix_nano)), make_timestamp_ns(max(start_time_unix_nano)) FROM spans"` shows what there is)'
)
_WIDTHS: Final = (60, 120)
"""Narrower tears words apart, wider tires the eye."""

_EPILOG: Final = """\
what is looked for:
  shadow   calls that bypassed a sidecar, carried no stamp, came from nobody, or were altered on the way
  latency  edges slower than their own baseline, with the span that explains it
  egress   calls out of the mesh: not listed, or clock-like

A TIME is RFC 3339 (2026-03-01T03:12:00Z; without an offset: UTC) or how long ago: 90s, 15m, 2h, 1d.
What could not be judged, and why, is said on stderr: a clean scan of calls that nobody watched proves nothing.

examples:
  provenance scan evidence.duckdb
  provenance scan http://127.0.0.1:4318 --since 15m --kind shadow --entry gateway
  provenance scan evidence.duckdb --policy provenance.toml --format ndjson | jq .explanation
  provenance scan --explain shadow --thresholds thresholds.toml

exit codes: 0 clean, 1 findings, 2 usage, 3 nothing there to ask, 70 a defect of ours
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Scan and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parsed(argv)
    try:
        if options.explain is not None:
            return _explain(options)
        scan = _scan(options, now())
    except CollectorError as e:
        complain("scan", str(e))
        return exit_code(e)
    for note in scan.notes:
        complain("scan", note)
    try:
        if options.format == "table":
            _write_table(scan.findings, sys.stdout)
        else:
            write_frame(scan.findings, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLEAN if scan.findings.is_empty() else EXIT_FINDINGS


def render_findings(findings: pl.DataFrame, width: int) -> Iterator[str]:
    """The lines of the table: a heading for each finding, below it, indented, what happened and what could not be seen."""
    if findings.is_empty():
        yield "no findings"
        return
    yield f"{'SEVERITY':<10}{'KIND':<9}{'CALLS':>7}  {'LAST SEEN':<21}SUBJECT"
    for row in findings.iter_rows(named=True):
        head = f"{row['severity']:<10}{row['kind']:<9}{row['count']:>7,}  {_clock(row['last_seen_unix_nano']):<21}"
        subject = escape(_subject(row))
        yield head + subject
        yield from _paragraph(f"{', '.join(row['reasons'])}: {row['explanation']}.", width)
        if row["remedy"]:
            yield from _paragraph(f"to close it: {row['remedy']}.", width)
        if row["completeness"]:
            yield from _paragraph(f"not seen: {row['completeness']}.", width)
        yield ""
    count = findings.height
    yield f"{count} finding{'' if count == 1 else 's'}"


def _scan(options: argparse.Namespace, now_unix_nano: int) -> Scan:
    scope = scope_of(options, now_unix_nano, is_complete=not is_collector(options.source))
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("scan", source.lacks)
        window = scope.window(now_unix_nano)
        scan = examine(
            source.query,
            kinds=options.kind or KINDS,
            window=window,
            shadow=scope.shadow(),
            egress=scope.egress(),
            latency=scope.latency(),
        )
        if scan.findings.is_empty() and is_nothing_there(source.query, window):
            complain("scan", NOTHING_THERE)
        return scan
    finally:
        source.close()


def _explain(options: argparse.Namespace) -> int:
    from collector.forensics.explain import explain

    sys.stdout.write(explain(options.explain, thresholds_of(options)))
    return EXIT_CLEAN


def _write_table(findings: pl.DataFrame, stream: TextIO) -> None:
    columns = shutil.get_terminal_size().columns if stream.isatty() else 80
    stream.writelines(line + "\n" for line in render_findings(findings, min(max(columns, _WIDTHS[0]), _WIDTHS[1])))


def _subject(row: Mapping[str, Any]) -> str:
    target = row["callee"] or row["destination"] or row["operation"]
    caller = row["caller"] or ("unknown" if row["kind"] == "shadow" else None)
    named = " -> ".join(name for name in (caller, target) if name)
    return f"{named} {row['operation']}" if row["operation"] and row["operation"] != target else named


def _paragraph(text: str, width: int) -> list[str]:
    return textwrap.wrap(escape(text), width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _clock(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _kinds(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(KINDS)}, separated by commas")
    return kinds


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.source is None and options.explain is None:
        parser.error("the following arguments are required: SOURCE")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance scan",
        description="Print what is wrong: shadow traffic, latency spikes and egress, most severe first.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)"
    )
    parser.add_argument("--kind", type=_kinds, metavar="KIND[,KIND]", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    parser.add_argument(
        "--explain",
        choices=KINDS,
        metavar="KIND",
        help="print how this detector decides: rules, thresholds as they stand, what it needs to see and cannot see",
    )
    add_arguments(parser)
    add_access_arguments(parser)
    return parser
