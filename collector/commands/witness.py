"""`provenance witness`: watch a pod's socket table and report who is connected past the proxy."""

import argparse
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.commands.lean import leave_out_pandas
from collector.commands.terminal import complain, escape
from collector.errors import CollectorError, ConfigError, exit_code
from collector.witnesses.sockets import DumpError, Socket
from collector.witnesses.sockets_dump import Table, open_table, own_addresses, port_range, stalls
from collector.witnesses.sockets_judge import PROXIES, Proxy, Snapshot
from collector.witnesses.sockets_send import Outbox, Sender
from collector.witnesses.sockets_watch import Identity, Look, Report, Watch

if TYPE_CHECKING:
    from collector.witnesses.sockets_report import Decoded

EXIT_FINDINGS: Final = 1
NS_PER_S: Final = 1_000_000_000
TIME_WAIT_EVERY_S: Final = 15.0
"""A quarter of its length: each socket in TIME_WAIT is there at four looks."""

NEWS_EVERY_S: Final = 2.0
WATCH_EVERY_S: Final = 10.0
_ADDRESSES_EVERY_S: Final = 30.0
_CONFIRM_S: Final = 0.02
"""Between the two dumps that agree on a bypass: what was half open or half closed at the first is over by then."""

_DESCRIPTION: Final = (
    "Watch this network namespace's sockets, without privileges, and report who is connected past the proxy."
)

_EPILOG: Final = """\
Run it as one more container of the pod (it shares the pod's network namespace), or once by hand. It reads socket tables (netlink
sock_diag, else /proc/net), needs no capability, and looks at no payload.

  captured   the proxy has the other end of the connection
  bypassed   it provably has not: see docs/socket-witness.md for what counts as proof
  not_mesh   the proxy's own connections, and its administrative ports
  (empty)    not decided, and said so

examples:
  provenance witness --collector http://collector:4318 --service checkout --instance "$HOSTNAME"
  provenance witness --service checkout --proxy linkerd --once
  provenance witness --service checkout --proxy 15001/15006 --once --format json
  provenance witness --service checkout --into evidence.duckdb          without a collector

--proxy PORTS_OUT/PORTS_IN names a proxy that is configured otherwise: 15001/15006 or 4140,4141/4143.
A setting is also a variable: PROVENANCE_WITNESS_COLLECTOR, _SERVICE, _INSTANCE, _PROXY, _INTERVAL, _TOKEN_FILE, _CA_FILE.

exit codes: 0 stopped by SIGTERM or SIGINT (with --once: no bypass seen), 1 with --once: a connection bypasses the proxy,
            2 usage, or the socket tables cannot be read, 3 reports were left over when it stopped: no collector took them
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; `interval_s` between two looks."""

    identity: Identity
    proxy: Proxy
    interval_s: float
    collector: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    into: Path | None = None
    once: bool = False
    format: str = "table"


def main(argv: Sequence[str]) -> int:
    """Watch until SIGTERM or SIGINT, or look once; returns the exit code."""
    try:
        options = parse(argv, os.environ)
        with closing(Eyes(open_table())) as eyes:
            if options.once:
                return _once(options, eyes)
            stop = _stop_at_signal()
            if options.into is not None:
                leave_out_pandas()
                return _watch_into(options, eyes, stop)
            return _watch_to_collector(options, eyes, stop)
    except DumpError as e:
        complain("witness", str(e))
        return 2
    except CollectorError as e:
        complain("witness", str(e))
        return exit_code(e)


def parse(argv: Sequence[str], environ: "os._Environ[str] | dict[str, str]") -> Options:
    """The options; raises ConfigError, and ends the program with status 2 where argparse refuses."""
    given = _parser(environ).parse_args(argv)
    if not given.service:
        raise ConfigError("--service is missing: the workload whose pod this is, as its service.name says it")
    if given.once and (given.into or given.collector):
        raise ConfigError("--once prints what it sees: leave out --collector and --into")
    if not given.once and bool(given.into) == bool(given.collector):
        raise ConfigError("give --collector URL, or --into FILE, or --once")
    instance = given.instance or None
    name = instance or socket.gethostname()
    return Options(
        identity=Identity(name[:256], given.service, instance),
        proxy=parse_proxy(given.proxy),
        interval_s=parse_interval(given.interval),
        collector=given.collector,
        token_file=_path(given.token_file),
        ca_file=_path(given.ca_file),
        into=_path(given.into),
        once=given.once,
        format=given.format,
    )


def _parser(environ: "os._Environ[str] | dict[str, str]") -> argparse.ArgumentParser:
    def default(name: str, otherwise: str | None = None) -> str | None:
        return environ.get(f"PROVENANCE_WITNESS_{name}") or otherwise

    parser = argparse.ArgumentParser(
        prog="provenance witness",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--collector", metavar="URL", default=default("COLLECTOR"), help="where to report: http://HOST:4318")
    add("--service", metavar="NAME", default=default("SERVICE"), help="the pod's workload, as its service.name says it")
    add("--instance", metavar="POD", default=default("INSTANCE"), help="the replica (default: not said)")
    add(
        "--proxy",
        metavar="MESH",
        default=default("PROXY", "istio"),
        help="istio, linkerd or PORTS_OUT/PORTS_IN (istio)",
    )
    add("--interval", metavar="TIME", default=default("INTERVAL", "1s"), help="between two looks: 200ms, 1s (1s)")
    add("--token-file", metavar="FILE", default=default("TOKEN_FILE"), help="the collector's write token")
    add("--ca-file", metavar="FILE", default=default("CA_FILE"), help="PEM: the authority of an https:// collector")
    add("--into", metavar="FILE", help="write into this DuckDB file instead of reporting to a collector")
    add("--once", action="store_true", help="look once, print, and end")
    add("--format", choices=("table", "json", "ndjson", "csv"), default="table", help="with --once (default: table)")
    return parser


def parse_interval(text: str) -> float:
    """`200ms`, `1s`, `2.5s` or `1m` in seconds; raises ConfigError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)", text.strip(), re.ASCII)
    seconds = float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2]] if match else 0.0
    if not 0.01 <= seconds <= 60.0:
        raise ConfigError(f"--interval {text}: expected 10ms to 1m, as 200ms, 1s or 1m")
    return seconds


def parse_proxy(text: str) -> Proxy:
    """A known mesh, or the proxy's ports: `15001/15006`, several of them with commas. Raises ConfigError."""
    if text in PROXIES:
        return PROXIES[text]
    outbound, _, inbound = text.partition("/")  # without a slash there is no port after it, which is refused
    try:
        proxy = Proxy(_ports(outbound), _ports(inbound))
    except ValueError as e:
        known = ", ".join(PROXIES)
        raise ConfigError(f"--proxy {text}: expected {known}, or ports as in 15001/15006 or 4140,4141/4143") from e
    return proxy


def _ports(text: str) -> frozenset[int]:
    ports = frozenset(int(p) for p in text.split(","))
    if not all(0 < port < 65536 for port in ports):
        raise ValueError(text)
    return ports


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


class Eyes:
    """Looks at a socket table; times come from the clocks, and the second dump when the first has suspects."""

    def __init__(
        self,
        table: Table,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._table = table
        self._clock = clock
        self._monotonic = monotonic
        self._wait = wait
        self._ports = port_range()
        self._addresses: frozenset[str] = frozenset()
        self._addresses_due = 0.0
        self._time_wait_due = 0.0

    def look(self, watch: Watch) -> Look:
        """One look; raises DumpError."""
        now = self._monotonic()
        if now >= self._addresses_due:
            self._addresses, self._addresses_due = own_addresses(), now + _ADDRESSES_EVERY_S
        first = self._dump()
        second = None
        if watch.suspects(first):
            self._wait(_CONFIRM_S)
            second = self._dump()
        time_wait: tuple[Socket, ...] | None = None
        if now >= self._time_wait_due:
            time_wait, self._time_wait_due = tuple(self._table.time_wait()), now + TIME_WAIT_EVERY_S
        return Look(self._clock(), first, second, time_wait)

    def now(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self._clock()

    def close(self) -> None:
        """Give the table back."""
        self._table.close()

    def _dump(self) -> Snapshot:
        return Snapshot(tuple(self._table.live()), self._addresses, self._ports, stalls())


def _stop_at_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


# --- once -------------------------------------------------------------------------------------------------------------------


def _once(options: Options, eyes: Eyes) -> int:
    watch = Watch(options.identity, options.proxy, interval_ns=int(options.interval_s * NS_PER_S))
    watch.observe(eyes.look(watch))
    report = watch.report(eyes.now())
    _print(report, options.format)
    if not report.watch["proxy_found"]:
        complain("witness", "no proxy listens here: nothing can be said about connections past it")
    return EXIT_FINDINGS if any(row["capture"] == "bypassed" for row in report.sockets) else 0


def _print(report: Report, form: str) -> None:
    """The report's rows; JSON has the whole report."""
    if form == "json":
        print(json.dumps(report.document(), indent=2))
        return
    import polars as pl

    from collector.commands.output import write_frame

    columns = ("protocol", "direction", "local", "remote", "state", "capture", "proxy_port", "uid")
    rows = [
        {
            **row,
            "local": _end(row["local_address"], row["local_port"]),
            "remote": "" if row["remote_port"] is None else _end(row["remote_address"], row["remote_port"]),
        }
        for row in report.sockets
    ]
    numbers = {"proxy_port", "uid"}
    schema = {name: pl.Int64() if name in numbers else pl.String() for name in columns}
    frame = pl.DataFrame([{c: row[c] for c in columns} for row in rows], schema=schema)
    write_frame(frame, form, sys.stdout)


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# --- for as long as it runs ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rhythm:
    """When the next report is due, seconds of the monotonic clock."""

    last: float

    def is_due(self, now: float, *, has_news: bool) -> bool:
        """News after two seconds, that nothing happened after ten."""
        return now - self.last >= (NEWS_EVERY_S if has_news else WATCH_EVERY_S)


def _run(options: Options, eyes: Eyes, stop: threading.Event, deliver: Callable[[Report | None], None]) -> Report:
    """Look, report, wait; `deliver` gets each report, None where none is due; returns what there is to say at the end."""
    watch = Watch(options.identity, options.proxy, interval_ns=int(options.interval_s * NS_PER_S))
    rhythm = _Rhythm(time.monotonic())
    due = time.monotonic()
    while not stop.is_set():
        watch.observe(eyes.look(watch))
        now = time.monotonic()
        report = None
        if rhythm.is_due(now, has_news=watch.has_news):
            report, rhythm.last = _report(watch, eyes), now
        deliver(report)
        due = max(due + options.interval_s, time.monotonic())
        stop.wait(due - time.monotonic())
    return _report(watch, eyes)


def _report(watch: Watch, eyes: Eyes) -> Report:
    report = watch.report(eyes.now())
    if report.left_out:
        complain("witness", f"{report.left_out} sockets were left out: more are open at once than are remembered")
    return report


def _watch_to_collector(options: Options, eyes: Eyes, stop: threading.Event) -> int:
    sender = Sender(options.collector or "", token_file=options.token_file, ca_file=options.ca_file)
    outbox = Outbox(sender.post)
    told = ""

    def deliver(report: Report | None) -> None:
        nonlocal told
        if report is not None:
            outbox.put(report)
        outbox.deliver(time.monotonic())
        if outbox.complaint != told:
            told = outbox.complaint
            complain("witness", escape(told) if told else f"reports are delivered again; {outbox.lost} were lost")

    try:
        outbox.put(_run(options, eyes, stop, deliver))
        outbox.deliver(time.monotonic(), is_last=True)
    finally:
        sender.close()
    if outbox.lost:
        complain("witness", f"{outbox.lost} reports were lost")
    return 3 if outbox else 0


def _watch_into(options: Options, eyes: Eyes, stop: threading.Event) -> int:
    from collector.store.database import Store
    from collector.store.writer import Writer
    from collector.witnesses.sockets_report import decode_report

    def decoded(report: Report) -> "Decoded":
        return decode_report(json.dumps(report.document()).encode(), received_unix_nano=eyes.now())

    assert options.into is not None  # noqa: S101 - the caller asked
    with Store.open(options.into) as store, Writer(store) as writer:

        def deliver(report: Report | None) -> None:
            if report is not None:
                writer.append(decoded(report).batches).result()

        deliver(_run(options, eyes, stop, deliver))
    return 0
