"""`provenance verify`: the verdict of every call's stamp."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from collector.client import Access, add_access_arguments, open_source
from collector.commands.output import FORMATS, write_frame
from collector.commands.terminal import complain
from collector.commands.times import parse_moment
from collector.errors import CollectorError, ConfigError, exit_code
from collector.forensics.authenticity import FAILED, TOLERANCE_MS, VERDICTS, verify
from collector.forensics.principals import Principals, parse_principals
from collector.forensics.tables import NS_PER_S, Window
from provenance.keys import KeysError, parse_key_set
from provenance.signing import is_vault

if TYPE_CHECKING:
    from provenance.keys import Key, KeySet

EXIT_CLEAN: Final = 0
EXIT_FAILED: Final = 4

_EPILOG: Final = """\
verdicts:
  valid         the MAC is the named service's, over what arrived
  unsigned      nothing contradicts the stamp, and nothing proves it: the caller has no key
  absent        the call came without a stamp            malformed   with one that cannot be read
  unknown key   signed with a key that is not in --keys
  tampered      the body, method, target, digest or trace context is not what the caller sent
  forged        the MAC is not the named key's over anything that either side saw
  impersonated  made by another service than the key's, by its span or by the principal that the mesh authenticated
  expired       made too long before it came, or after   replayed    its nonce came before, and was answered

Evidence fails where a verdict is unknown key (with --keys), tampered, forged, impersonated, expired or replayed. Only calls
to services with the middleware are judged: whether others went around it is what `provenance scan` finds.

--principals FILE, of which both parts may be missing:
  intermediaries = ["spiffe://cluster.local/ns/mesh/sa/gateway"]        hand on the calls of others, and accuse nobody
  [services]
  checkout = ["spiffe://cluster.local/ns/shop/sa/checkout"]             all that this service may be

examples:
  provenance verify evidence.duckdb --keys keys.json
  provenance verify http://127.0.0.1:4318 --keys keys.json --since 15m --failed
  provenance verify evidence.duckdb --keys keys.json --trace 4bf92f3577b34da6a3ce929d0e0e4736

exit codes: 0 no evidence failed, 2 usage, 3 nothing there to ask, 4 evidence failed
"""


def main(argv: Sequence[str], *, now: Callable[[], int] = time.time_ns) -> int:
    """Judge and print; returns the exit code. `now` is ns since the Unix epoch."""
    options = _parser().parse_args(argv)
    try:
        shown, counts = _judge(options, now())
    except CollectorError as e:
        complain("verify", str(e))
        return exit_code(e)
    failing = set(FAILED) if options.keys else set(FAILED) - {"unknown key"}
    complain("verify", _summary(counts, has_keys=bool(options.keys)))
    try:
        write_frame(_readable(shown) if options.format == "table" else shown, options.format, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED if failing & counts.keys() else EXIT_CLEAN


def _judge(options: argparse.Namespace, now: int) -> tuple[pl.DataFrame, Counter[str]]:
    """The calls to show, and how many there are of each verdict."""
    keys, principals, counts = _keys(options.keys), _principals(options.principals), Counter[str]()
    since, until = (None if text is None else parse_moment(text).at(now) for text in (options.since, options.until))
    if since is not None and until is not None and since >= until:
        raise ConfigError("--since is not before --until")
    source = open_source(options.source, Access.of(options))
    try:
        if source.lacks:
            complain("verify", source.lacks)
        tolerance_ms = int(options.tolerance * 1000)
        shown = verify(
            source.query,
            Window(since, until),
            keys,
            trace_id=options.trace,
            tolerance_ms=tolerance_ms,
            principals=principals,
            only=FAILED if options.failed else None,
            tally=counts,
        )
        return shown, counts
    finally:
        source.close()


def _keys(places: Sequence[str]) -> Mapping[str, "Key"]:
    keys: dict[str, Key] = {}
    for place in places:
        try:
            keys |= _key_set(place).by_kid
        except (OSError, UnicodeDecodeError, KeysError) as e:
            raise ConfigError(f"--keys {place}: {e}; `provenance keys --help` tells how such a file is made") from e
    return keys


def _key_set(place: str) -> "KeySet":
    if not is_vault(place):
        return parse_key_set(Path(place).read_text())
    from provenance.vault import parse_address, read_now

    return read_now(parse_address(place))


def _principals(path: Path | None) -> Principals | None:
    if path is None:
        return None
    try:
        return parse_principals(path.read_text())
    except (OSError, UnicodeDecodeError, ConfigError) as e:
        raise ConfigError(f"--principals {path}: {e}") from e


def _summary(counts: Mapping[str, int], *, has_keys: bool) -> str:
    if not counts:
        return "no call here came to a service with the middleware"
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
    without = "" if has_keys else "; without --keys no MAC can be verified"
    return f"{sum(counts.values())} calls: {said}{without}"


def _readable(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that people read, with times as times."""
    return frame.select(
        pl.from_epoch(pl.col("start_time_unix_nano") // (NS_PER_S // 1000), time_unit="ms")
        .dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .alias("time"),
        "verdict",
        "caller",
        "callee",
        "operation",
        "reason",
        "trace_id",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance verify",
        description="Judge every call's stamp: who really made the call, and whether it arrived as it was sent.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a DuckDB file, or a collector's URL (http://127.0.0.1:4318)")
    add(
        "--keys",
        metavar="FILE",
        action="append",
        default=[],
        help="a JWKS to verify with, or a Vault (vault://HOST/MOUNT/KEY); may be repeated",
    )
    add(
        "--principals",
        metavar="FILE",
        type=Path,
        help="a TOML file that says whose each mTLS principal is (default: by their names, and what the evidence teaches)",
    )
    add("--trace", metavar="ID", help="only the calls of this trace, in order")
    add("--since", metavar="TIME", help="calls that arrived at this time or later (default: all)")
    add("--until", metavar="TIME", help="calls that arrived before this time (default: all)")
    add("--failed", action="store_true", help="print only the calls whose evidence fails")
    add(
        "--tolerance",
        metavar="SECONDS",
        type=_seconds,
        default=TOLERANCE_MS / 1000,
        help="how far a stamp's time may be from the call's arrival: clock skew and queues (default: %(default)g)",
    )
    add("--format", choices=FORMATS, default="table", help="how to print them (default: table)")
    add_access_arguments(parser)
    return parser
