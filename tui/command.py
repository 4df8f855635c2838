"""`provenance tui SOURCE`: open the workbench. The source is opened before the screen switches, textual after it."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from collector.errors import CollectorError, SourceUnreachableError

if TYPE_CHECKING:
    from collector.forensics.tables import Window

EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3

_RELATIVE: Final = re.compile(r"(\d+)\s*(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LEAST_REFRESH_SECONDS: Final = 0.5

_EPILOG: Final = """\
A SOURCE is a DuckDB file that no collector holds, or a collector's URL. A collector's is followed live.

examples:
  provenance tui http://127.0.0.1:4318
  provenance tui http://127.0.0.1:4318 --since 30m --refresh 5
  provenance tui evidence.duckdb --since 2026-11-23T03:00:00Z

Inside, ? lists every key. Exit codes: 0 left by q, 2 usage, 3 the source cannot be opened.
"""


def main(argv: Sequence[str]) -> int:
    """Open the workbench; returns when it is left."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed why
        return int(stop.code or 0)
    if not has_terminal():
        return _refuse(
            "the workbench needs a terminal; `provenance scan SOURCE` prints the findings instead", EXIT_USAGE
        )
    from collector.client import open_source
    from tui.source import SourceEvidence

    try:
        source = open_source(arguments.source)
    except SourceUnreachableError as error:
        return _refuse(str(error), EXIT_UNREACHABLE)
    except CollectorError as error:
        return _refuse(str(error), EXIT_USAGE)
    since: Since | None = arguments.since
    evidence = SourceEvidence(
        source,
        lambda: open_source(arguments.source),
        is_live=arguments.source.startswith(("http://", "https://")),
        window=None if since is None else lambda: _window(since),
        has_moving_window=since is not None and since.is_relative,
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
    print(f"provenance tui: {message}", file=sys.stderr)
    return code


class Since:
    """Where the window starts: a moment, or so long before now."""

    __slots__ = ("is_relative", "nanoseconds")

    def __init__(self, text: str) -> None:
        match = _RELATIVE.fullmatch(text.strip())
        self.is_relative = match is not None
        self.nanoseconds = (
            int(match[1]) * _SECONDS[match[2]] * 1_000_000_000 if match is not None else _moment_unix_nano(text)
        )

    def unix_nano(self, now_unix_nano: int) -> int:
        """The window's start, seen from now."""
        return now_unix_nano - self.nanoseconds if self.is_relative else self.nanoseconds


def _moment_unix_nano(text: str) -> int:
    """RFC 3339; a time without a zone is UTC."""
    moment = datetime.fromisoformat(text.strip())
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(moment.timestamp()) * 1_000_000_000


def _window(since: Since) -> "Window":
    from collector.forensics.tables import Window

    return Window(since_unix_nano=since.unix_nano(time.time_ns()))


def _since(text: str) -> Since:
    try:
        return Since(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 15m, 2h, 3d nor like 2026-11-23T03:00:00Z") from None


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
    parser.add_argument(
        "--since", metavar="TIME", type=_since, help="only what started since: 15m, 2h, 3d, or RFC 3339"
    )
    return parser
