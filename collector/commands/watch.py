"""`provenance watch`: findings as they happen, told to people and to machines; and what people say about them."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from collector.client import Access, add_access_arguments, open_source
from collector.commands.scope import add_rules_arguments, scope_of
from collector.commands.terminal import complain, escape
from collector.errors import CollectorError, ConfigError, exit_code
from collector.units import NS_PER_S, parse_age

if TYPE_CHECKING:
    from collector.watch.delivery import Sender
    from collector.watch.model import Event
    from collector.watch.runner import Watch

KINDS: Final = ("shadow", "latency", "egress")
"""Those of `collector.forensics.findings`, which loads polars: `--help` and `--ack` need not."""

STATE_ENV: Final = "PROVENANCE_WATCH_STATE"

EXIT_CLEAN: Final = 0
EXIT_FINDINGS: Final = 1

_EPILOG: Final = """\
what is told: a finding opens when a proof is seen once (shadow, unlisted egress) or statistics hold for 10 s (latency, rhythm);
it is updated when it gets worse; it is resolved after --resolve-after of observation in which it would have been seen again. No data
is no resolution. Without --state a restart tells everything again.

sinks: stdout has every event. --webhook posts Alertmanager's alerts (POST /api/v2/alerts; a URL without a path is an Alertmanager's),
--slack a Slack-compatible message, --exec runs a program with the finding as JSON on stdin and in PROVENANCE_FINDING_ variables. Delivery
is tried for an hour and stops nothing. A URL may be @FILE that holds it: command lines are seen by everybody on a machine.

examples:
  provenance watch http://127.0.0.1:4318 --state watch.json --webhook http://alertmanager:9093
  provenance watch http://127.0.0.1:4318 --state watch.json --slack @/run/secrets/slack --kind shadow,egress --format ndjson
  provenance watch http://127.0.0.1:4318 --exec './page-me.sh' --until-idle 30s
  provenance watch --list --state watch.json
  provenance watch --ack 4f1d2c3b4a59 --state watch.json
  provenance watch --silence 4f1d2c3b4a59 --for 2h --state watch.json

exit codes: 0 nothing is open at the end, or stopped by a signal, 1 findings are open (--for, --until-idle, --list), 2 usage, or another
watch has the state, 3 nothing there to ask, 70 a defect of ours
"""


def main(argv: Sequence[str]) -> int:
    """Watch, or say something about a finding; returns the exit code."""
    options = _parsed(argv)
    try:
        if options.list or options.ack or options.silence or options.clear:
            from collector.commands.watch_marks import say

            return say(options, _state_file(options), time.time_ns())
        return _watch(options)
    except BrokenPipeError:
        # Whoever read has seen enough. What is still buffered must not be tried again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLEAN
    except CollectorError as e:
        complain("watch", str(e))
        return exit_code(e)


def _watch(options: argparse.Namespace) -> int:
    from collector.watch.statefile import only_watch

    path = _state_file(options)
    with ExitStack() as stack:
        if path is None:
            complain(
                "watch", f"no --state: a restart tells everything again, and nothing can be acknowledged ({STATE_ENV})"
            )
        else:
            stack.enter_context(only_watch(path))
        watch = _assembled(options, path)
        stopped = stack.enter_context(_stopped_by_signals(watch.stop))
        state = watch.run()
        if stopped.is_set():
            return EXIT_CLEAN
        return EXIT_FINDINGS if state.open else EXIT_CLEAN


def _assembled(options: argparse.Namespace, path: Path | None) -> "Watch":
    from collector.watch.delivery import Courier
    from collector.watch.looking import Rules, SourceLooker
    from collector.watch.model import Patience, State
    from collector.watch.runner import Plan, Watch
    from collector.watch.statefile import Memory, read_memory

    scope = scope_of(options, time.time_ns())
    rules = Rules(scope.shadow(), scope.egress(), scope.latency())
    access = Access.of(options)
    say = partial(complain, "watch")
    watch = Watch(
        plan=Plan(
            source=options.source,
            kinds=options.kind or KINDS,
            interval_s=options.interval / NS_PER_S,
            window_ns=options.window,
            patience=Patience(resolve_after_ns=options.resolve_after),
            state_file=path,
            run_s=None if options.lasts is None else options.lasts / NS_PER_S,
            idle_s=None if options.until_idle is None else options.until_idle / NS_PER_S,
        ),
        looker=SourceLooker(options.source, rules, lambda: open_source(options.source, access)),
        memory=Memory(options.source, State(), {}) if path is None else read_memory(path, options.source),
        record=_printer(options.format),
        complain=say,
    )
    couriers: dict[str, Courier] = {}
    for sink, sender in _senders(options):
        if sink in couriers:
            raise ConfigError(f"{sender.name}: is given twice")
        couriers[sink] = Courier(sender, partial(watch.finished, sink), say)
    watch.couriers = couriers
    watch.forgetful = frozenset(sink for sink in couriers if sink.startswith("webhook"))
    return watch


def _senders(options: argparse.Namespace) -> Iterator[tuple[str, "Sender"]]:
    """(the sink's name in the state, how to tell it); the names hold no secret."""
    if not (options.webhook or options.slack or options.exec):
        return
    from collector.watch.senders import Program, Webhook, read_headers, read_url

    if options.webhook_header_file is not None:
        read_headers(options.webhook_header_file)  # tell now what is wrong with it
    for text in options.webhook:
        url = read_url(text, "--webhook")
        yield (
            f"webhook {url.shown} {url.key}",
            Webhook(url, "webhook", header_file=options.webhook_header_file, generator_url=_generator(options.source)),
        )
    for text in options.slack:
        url = read_url(text, "--slack")
        yield f"slack {url.shown} {url.key}", Webhook(url, "slack")
    for command in options.exec:
        program = Program(command)
        program.check_is_there()
        yield f"{program.name} {program.key}", program


def _generator(source: str) -> str | None:
    """The collector's URL for alerts to name, without a user's name and password; None for a file."""
    if "://" not in source:
        return None
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _printer(form: str) -> Callable[["Event"], None]:
    import json

    from collector.watch.messages import document, line

    def record(event: "Event") -> None:
        # ASCII: whatever a service calls itself, a terminal and a log shipper get one line of plain text.
        print(json.dumps(document(event)) if form == "ndjson" else escape(line(event)), flush=True)

    return record


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `stop` at SIGTERM or SIGINT, from a thread: a handler may not take locks. A second signal ends the process at once."""
    stopped = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while data := os.read(reading, 1):
            if data[0] not in {signal.SIGTERM, signal.SIGINT}:
                continue
            if stopped.is_set():
                os._exit(130)  # the state is whole at every moment
            stopped.set()
            stop()

    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    former_descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=wait, name="watch-signals", daemon=True)
    thread.start()
    try:
        yield stopped
    finally:
        signal.set_wakeup_fd(former_descriptor)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(writing)
        thread.join()
        os.close(reading)


def _state_file(options: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Path | None:
    named = (os.environ if environ is None else environ).get(STATE_ENV)
    if options.state is not None:
        return Path(options.state).expanduser()
    return Path(named).expanduser() if named else None


# --- the command line -----------------------------------------------------------------------------------------------------


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    spoken = [name for name in ("list", "ack", "silence", "clear") if getattr(options, name)]
    if len(spoken) > 1:
        parser.error(f"--{spoken[0]} and --{spoken[1]}: one at a time")
    if spoken and _state_file(options) is None:
        parser.error(f"--{spoken[0]}: which watch? give its --state FILE (or {STATE_ENV})")
    if options.silence and options.lasts is None:
        parser.error("--silence: for how long? give --for 2h")
    if not spoken and options.source is None:
        parser.error("the following arguments are required: SOURCE")
    if options.interval > options.window:
        parser.error("--interval: longer than --window: what happens in between would never be looked at")
    if options.resolve_after % (60 * NS_PER_S):
        parser.error("--resolve-after: expected whole minutes, like 5m: observation is counted in them")
    return options


def _duration(text: str) -> int:
    try:
        return parse_age(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a duration like 5s, 10m, 2h") from e


def _kinds(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(KINDS)}, separated by commas")
    return kinds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance watch",
        description="Run the detectors as data arrives, and tell what opens, gets worse and is over.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    second = NS_PER_S
    add("source", metavar="SOURCE", nargs="?", help="a collector's URL (http://127.0.0.1:4318), or a DuckDB file")
    add("--kind", type=_kinds, metavar="KIND[,KIND]", help=f"of {', '.join(KINDS)} (default: all)")
    add("--interval", type=_duration, default=5 * second, metavar="TIME", help="between two rounds (default: 5s)")
    add("--window", type=_duration, default=600 * second, metavar="TIME", help="how far back each looks (default: 10m)")
    add(
        "--resolve-after",
        type=_duration,
        default=300 * second,
        metavar="TIME",
        help="whole minutes of observation without it (default: 5m)",
    )
    add(
        "--state",
        metavar="FILE",
        help=f"what a restart must not forget, with FILE.marks beside it (environment: {STATE_ENV})",
    )
    add(
        "--format",
        choices=("table", "ndjson"),
        default="table",
        help="of events on stdout (default: table, a line each)",
    )
    add(
        "--for",
        dest="lasts",
        type=_duration,
        metavar="TIME",
        help="end after so long; with --silence: silent for so long",
    )
    add("--until-idle", type=_duration, metavar="TIME", help="end when nothing new came for so long and all is told")
    _add_sinks(parser)
    _add_marks(parser)
    add_rules_arguments(parser)
    add_access_arguments(parser)
    return parser


def _add_sinks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sinks, each may be repeated").add_argument
    add("--webhook", action="append", default=[], metavar="URL|@FILE", help="an Alertmanager, or what takes its alerts")
    add(
        "--webhook-header-file",
        type=Path,
        metavar="FILE",
        help="`Name: value` lines, or a bearer token, for every --webhook; read each time",
    )
    add("--slack", action="append", default=[], metavar="URL|@FILE", help="a Slack-compatible incoming webhook")
    add(
        "--exec",
        action="append",
        default=[],
        metavar="CMD",
        help="a program and its arguments, no shell; 30 s; five attempts until it exits with 0",
    )


def _add_marks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("about findings of a watch that runs, or ran, with this --state").add_argument
    add("--list", action="store_true", help="print what is open, and what was")
    add("--ack", metavar="ID", help="somebody has it: no more updates of this episode unless it gets more severe")
    add("--silence", metavar="ID", help="tell nothing of it, with --for TIME; what is open then is told afterwards")
    add("--clear", metavar="ID", help="take back both")
