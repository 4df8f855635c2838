"""`provenance tui SOURCE`: open the workbench. The source is opened before the screen switches, textual after it."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from collector.access import add_memory_argument
from collector.commands.scope import add_arguments, scope_of
from collector.commands.terminal import complain
from collector.errors import CollectorError, ConfigError, SourceUnreachableError

EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3

_LEAST_REFRESH_SECONDS: Final = 0.5

_EPILOG: Final = """\
A SOURCE is a DuckDB file that no collector holds, or a collector's URL. A collector's is followed live.

examples:
  provenance tui http://127.0.0.1:4318
  provenance tui http://127.0.0.1:4318 --since 30m --refresh 5
  provenance tui evidence.duckdb --since 2026-11-23T03:00:00Z --policy provenance.toml

--since, --until, --entry and --policy mean what they mean to `provenance scan`, and give the same findings. A TIME is RFC 3339
(without an offset: UTC) or how long ago: 90s, 15m, 2h, 1d; the window then moves with the clock.

Inside, ? lists every key. Exit codes: 0 left by q, 2 usage, 3 the source cannot be opened.
"""


def main(argv: Sequence[str]) -> int:
    """Open the workbench; returns when it is left."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed why
        return int(stop.code or 0)
    from collector.client import Access, is_collector, open_source

    try:
        access = Access.of(arguments)
        scope = scope_of(arguments, time.time_ns(), is_complete=not is_collector(arguments.source))
    except ConfigError as error:
        return _refuse(str(error), EXIT_USAGE)
    if not has_terminal():
        return _refuse(
            "the workbench needs a terminal; `provenance scan SOURCE` prints the findings instead", EXIT_USAGE
        )
    from tui.source import SourceEvidence

    try:
        source = open_source(arguments.source, access)
    except SourceUnreachableError as error:
        return _refuse(str(error), EXIT_UNREACHABLE)
    except CollectorError as error:
        return _refuse(str(error), EXIT_USAGE)
    evidence = SourceEvidence(
        source,
        lambda: open_source(arguments.source, access),
        is_live=is_collector(arguments.source),
        scope=scope,
    )
    try:
        from tui.app import Workbench

        app = Workbench(evidence, refresh_seconds=arguments.refresh)
        app.run()
        return app.return_code or 0
    finally:
        evidence.close()


def has_terminal() -> bool:
    """Whether a person is at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _refuse(message: str, code: int) -> int:
    complain("tui", message)
    return code


def _refresh(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not _LEAST_REFRESH_SECONDS <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is out of range; expected {_LEAST_REFRESH_SECONDS} to 86400 seconds")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance tui",
        description="The terminal workbench: findings first, then calls, traces, and the witnesses of every hop.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="evidence.duckdb or http://127.0.0.1:4318")
    parser.add_argument(
        "--refresh", metavar="SECONDS", type=_refresh, default=3.0, help="how often a collector is asked (3)"
    )
    add_arguments(parser)
    add_memory_argument(parser)
    return parser
