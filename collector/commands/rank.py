"""`provenance rank`: what made an incident's requests slow or broken, against a time when they were not."""

import argparse
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TextIO

import polars as pl

from collector.client import Access, add_access_arguments, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.terminal import complain, escape
from collector.commands.times import LIMIT_NS, parse_range, rfc3339
from collector.errors import CollectorError, ConfigError, exit_code
from collector.forensics.anatomy import take_apart_windows
from collector.forensics.comparison import SPANS, Drawn, draw
from collector.forensics.deltas import separating, slow_and_normal, values_in
from collector.forensics.ranking import UNITS, Candidate, rank_causes
from collector.forensics.reasons import reason
from collector.forensics.tables import Query, Window

_TABLE_ROWS: Final = 10
_TABLE_LEAST: Final = 0.001
"""Who scores less has nothing proven against it."""

_EPILOG: Final = """\
A window is START..END, each RFC 3339 (2026-03-01T03:12:00Z; without an offset: UTC), Unix nanoseconds, or how long ago: 90s,
15m, 2h, 1d. Traces that begin in a window are compared. The baseline should hold the same kinds of requests; it may be shorter or
longer, and have another rate. Without --baseline it is as long as the incident, and ends where that begins.

what speaks against a service (the columns of each row):
  score   0 to 1, for the order
  share   its part of all that the incident added: time on critical paths, failed and missing work
  reason  own time; hops (client less server time: network, proxies, queues before the handler); queues of messages; more
          calls (fan-out, retries); errors where they begin; calls that nobody answers; work that stops early

Traces alone do not tell the two ends of one slow hop apart (the callee is named), nor an early return from a request that needs
less, where the baseline has both. `provenance rank --help` is short; docs/latency.md has what is measured and what is not seen.

examples:
  provenance rank evidence.duckdb --incident 2026-03-01T03:10:00Z..2026-03-01T03:20:00Z
  provenance rank evidence.duckdb --incident 15m..0s --baseline 2h..1h --by operation
  provenance rank http://127.0.0.1:4318 --incident A..B --baseline C..D --format json | jq '.[0]'
  provenance rank evidence.duckdb --incident 15m..0s --attributes      which versions, pods, customers the slow calls share

exit codes: 0 ranked, 2 usage or no spans in a window, 3 nothing there to ask, 70 a defect of ours
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Rank and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        frame = _ranked(options, now())
    except CollectorError as e:
        complain("rank", str(e))
        return exit_code(e)
    try:
        if options.format == "table" and not options.attributes:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100
            _write_table(frame, sys.stdout, width)
        else:
            write_frame(frame, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _ranked(options: argparse.Namespace, now_unix_nano: int) -> pl.DataFrame:
    incident = _window("--incident", options.incident, now_unix_nano)
    baseline = _before(incident) if options.baseline is None else _window("--baseline", options.baseline, now_unix_nano)
    if _overlap(incident, baseline):
        complain("rank", "the baseline overlaps the incident: what rose in both is not seen to rise")
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("rank", source.lacks)
        was = _drawn(source.query, "baseline", baseline, options.spans)
        now = _drawn(source.query, "incident", incident, options.spans)
        if options.attributes:
            values = [
                values_in(source.query, window, drawn.last) for window, drawn in ((baseline, was), (incident, now))
            ]
            return separating(pl.concat(values), *slow_and_normal(was, now))
    finally:
        source.close()
    before, during = take_apart_windows([was.frame, now.frame])
    return ranking_frame(rank_causes(before, during, options.by), options.by)


def _drawn(query: Query, name: str, window: Window, limit: int) -> Drawn:
    drawn = draw(query, window, limit)
    if drawn.frame.is_empty():
        raise ConfigError(
            f"no trace begins in the {name}, {rfc3339(window.since_unix_nano or 0)}..{rfc3339(window.until_unix_nano or 0)}; "
            'expected a window with spans: `provenance sql SOURCE "SELECT make_timestamp_ns(min(start_time_unix_nano)), '
            'make_timestamp_ns(max(start_time_unix_nano)) FROM spans"` shows what there is'
        )
    if drawn.share < 1:
        complain("rank", f"{drawn.share:.1%} of the {name}'s traces are compared; --spans takes more")
    return drawn


def ranking_frame(candidates: Sequence[Candidate], by: str) -> pl.DataFrame:
    """One row a candidate: service, the pod or operation, score, share, reason."""
    names = ["service"] if by == "service" else ["service", by]
    rows = [(*c.unit, c.score, c.share, reason(c)) for c in candidates]
    schema = {**dict.fromkeys(names, pl.String), "score": pl.Float64, "share": pl.Float64, "reason": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def render_ranking(frame: pl.DataFrame, width: int) -> Iterator[str]:
    """The lines of the table: the first `_TABLE_ROWS` candidates with anything against them, their reasons below."""
    named = frame.filter(pl.col("score") >= _TABLE_LEAST).head(_TABLE_ROWS)
    yield f"{'SCORE':>6} {'SHARE':>6}  CANDIDATE"
    for row in named.iter_rows(named=True):
        name = " ".join(str(row[c]) for c in frame.columns[:-3] if row[c])
        yield f"{row['score']:>6.3f} {row['share']:>6.1%}  {escape(name)}"
        yield from textwrap.wrap(
            escape(row["reason"]), width, initial_indent=" " * 15, subsequent_indent=" " * 15, break_on_hyphens=False
        )
    if named.is_empty():
        yield "nothing rose, failed or stopped early beyond chance"
    elif frame.height > named.height:
        yield f"{frame.height - named.height} more with less or nothing against them (--format json lists them)"


def _write_table(frame: pl.DataFrame, stream: TextIO, width: int) -> None:
    stream.writelines(line + "\n" for line in render_ranking(frame, min(max(width, 60), 120)))


def _window(flag: str, text: str, now_unix_nano: int) -> Window:
    try:
        return Window(*parse_range(text, now_unix_nano))
    except ConfigError as e:
        raise ConfigError(f"{flag}: {e}") from e


def _overlap(one: Window, other: Window) -> bool:
    return max(one.since_unix_nano or 0, other.since_unix_nano or 0) < min(
        one.until_unix_nano or LIMIT_NS, other.until_unix_nano or LIMIT_NS
    )


def _before(incident: Window) -> Window:
    """As long as the incident, and right before it."""
    since, until = incident.since_unix_nano or 0, incident.until_unix_nano or 0
    return Window(max(0, since - (until - since)), since)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance rank",
        description="Rank the services (or pods, or operations) that made requests slow or broken, with the share that each explains.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    parser.add_argument("--incident", required=True, metavar="START..END", help="when requests were slow or failed")
    parser.add_argument(
        "--baseline", metavar="START..END", help="when they were not (default: just before the incident)"
    )
    parser.add_argument("--by", choices=tuple(UNITS), default="service", help="what to rank (default: service)")
    parser.add_argument(
        "--attributes",
        action="store_true",
        help="instead of causes: the attribute values that set slow or failed traces apart from the others",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    parser.add_argument(
        "--spans", type=_positive, default=SPANS, metavar="N",
        help=f"how many spans of each window to compare at most, in whole traces (default: {SPANS})",
    )  # fmt: skip
    add_access_arguments(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)
