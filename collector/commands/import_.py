"""`provenance import`: files of other tools, of other witnesses and of ours into an evidence file, or into a running collector."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO, cast

from collector.commands.terminal import complain, escape
from collector.errors import CollectorError, ConfigError, exit_code
from collector.exchange.sniff import FORMATS

if TYPE_CHECKING:
    from collector.exchange.importing import Outcome, Sink, Source
    from collector.exchange.sniff import Format as SniffedFormat
    from collector.store.journal import Journal
    from collector.store.writer import Writer
    from collector.witnesses.reading import Format as LineFormat

EXIT_NOTHING: Final = 2
"""There was something to import, and none of it could be."""

_SHOWN_REASONS: Final = 10
_COMMIT_SECONDS: Final = 600.0
_REPAINT_SECONDS: Final = 0.2

_EPILOG: Final = """\
formats, found by content (--format says it where that fails):
  otlp-json   the OpenTelemetry Collector's file exporter, one request a line; or requests of any layout
  otlp-proto  its `format: proto`: each request after its length; or one request alone
  jaeger      {"data": [{"traceID": ..., "spans": [...], "processes": {...}}]}, from its UI or its API
  zipkin      Zipkin v2: [{"traceId": ..., "id": ...}], or [[...]]
  parquet     the directory that `provenance export --format parquet` wrote, or its files
and of witnesses beside the spans, line by line; what each can prove is in docs/witnesses.md:
  envoy, istio, envoy-gateway   access logs: default text and JSON; any other with --log-format or usual JSON keys
  linkerd     its proxies' access logs, apache or JSON
  ztunnel     its log, text or JSON: the lines of scope access
  hubble      its exporter's lines, and `hubble observe -o jsonpb`
  zeek        conn.log, TSV or JSON
  vpcflow     AWS VPC flow logs as text; a header line names the fields, without one they are version 2's
  conntrack   conntrack -L or -E, with or without -o timestamp,extended; /proc/net/nf_conntrack
  pods        kubectl get pods -A -o json: which workload an address is
Files may be compressed with gzip or zstd, stdin (-) too. Jaeger's logs become events, its references parents and links.

Importing a file twice doubles nothing: a span that is there (ids, kind, times, resource) stays as it is, and so does a
line that was read at the same place of a file with the same path.
Before that, what a collector acknowledged and had not stored when it crashed is brought in, also without any FILE.
Lines, spans and messages that cannot be read are skipped, counted, told here, and kept in the table ingest_errors.

examples:
  provenance import traces.jsonl traces-*.jsonl.gz --into evidence.duckdb
  provenance import jaeger-download.json --into evidence.duckdb
  kubectl exec otel-0 -- cat /data/traces.json.gz | provenance import - --into evidence.duckdb
  provenance import monday/ --into evidence.duckdb            a Parquet export
  provenance import access.log.gz --into evidence.duckdb --service checkout --direction inbound
  provenance import custom.log --into evidence.duckdb --format envoy --service checkout \\
    --log-format '[%START_TIME%] "%REQ(:METHOD)% %REQ(:PATH)%" %RESPONSE_CODE% %REQ(X-REQUEST-ID)%'
  kubectl get pods -A -o json | provenance import - --into evidence.duckdb
  provenance import traces.jsonl --into http://127.0.0.1:4318 into a running collector, over OTLP
  provenance import --into evidence.duckdb                    what is in evidence.duckdb.journal/ after a crash

exit codes: 0 imported, perhaps with warnings; 2 usage, a file that is none of these, or nothing in it could be imported;
            3 no collector answers
"""


def main(argv: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> int:
    """Import and tell; returns the exit code."""
    options = _parser().parse_args(argv)
    from collector.exchange.importing import plan
    from collector.exchange.witness_files import LineOptions

    started = clock()
    outcomes: list[Outcome] = []
    try:
        if not options.files:
            _check_without_files(options.into)
        said = LineOptions(options.service, options.instance, options.direction, options.log_format)
        sources = plan(options.files, _wanted(options.format, options.log_format), said)
        with _sink(options.into) as sink:
            _import(sources, sink, outcomes, _Progress(sys.stderr, clock, is_shown=not options.no_progress))
    except CollectorError as e:
        for outcome in outcomes:
            _tell(outcome)
        complain("import", str(e))
        return exit_code(e)
    for outcome in outcomes:
        _tell(outcome)
    spans, rows = sum(o.spans for o in outcomes), sum(o.rows for o in outcomes)
    if not outcomes:
        complain("import", f"{options.into}: all that a collector acknowledged is in it")
        return 0
    complain("import", _summary(spans, rows, outcomes, options.into, clock() - started))
    is_bad = any(o.bad or o.cut for o in outcomes)
    return EXIT_NOTHING if is_bad and not spans + rows + sum(o.already_there for o in outcomes) else 0


def _wanted(format_: str, log_format: str | None) -> "SniffedFormat | None":
    """The format that the user named; raises ConfigError where --log-format cannot be read back."""
    if log_format is not None:
        from collector.witnesses.envoy import Origin
        from collector.witnesses.reading import make_reader

        wanted = "envoy" if format_ == "auto" else format_
        # Here rather than at the first line: it refuses what is no proxy's format, and what cannot be read back.
        make_reader(cast("LineFormat", wanted), Origin("", ""), log_format=log_format)
        return cast("SniffedFormat", wanted)
    return None if format_ == "auto" else cast("SniffedFormat", format_)


def _import(sources: Sequence["Source"], sink: "Sink", outcomes: list["Outcome"], progress: "_Progress") -> None:
    from collector.exchange.importing import import_source

    for source in sources:
        with progress.of(source):
            outcomes.append(import_source(source, sink, progress))


def _check_without_files(into: str) -> None:
    if "://" in into:
        raise ConfigError("nothing to import: name the files; a running collector has brought in what it acknowledged")
    if not Path(into).expanduser().exists():
        raise ConfigError(f"--into {into}: no such file; name what to import, or the file whose journal to bring in")


@contextmanager
def _sink(into: str) -> Iterator["Sink"]:
    """Where `--into` points; raises ConfigError, StoreError, StoreBusyError."""
    if into.startswith(("http://", "https://")):
        from collector.exchange.sending import CollectorSink

        with CollectorSink(into) as sink:
            yield sink
        return
    if "://" in into:
        raise ConfigError(f"--into {into}: expected a DuckDB file, or the http(s) URL of a collector")
    from collector.exchange.storing import StoreSink
    from collector.store.database import Store
    from collector.store.journal import open_journal
    from collector.store.reader import Reader
    from collector.store.writer import Writer

    with ExitStack() as stack:
        store = stack.enter_context(Store.open(Path(into).expanduser()))
        journal = open_journal(store)
        stack.callback(journal.close)
        writer = stack.enter_context(Writer(store, ask_always=True, on_commit=journal.release))
        _replay(journal, writer, into)
        yield StoreSink(writer, Reader(store))


def _replay(journal: "Journal", writer: "Writer", into: str) -> None:
    """First of all what a collector acknowledged and did not store; raises StoreError."""
    from collector.receiver.ingest import replay

    if count := replay(journal.replay(), writer):
        writer.append({}).result(_COMMIT_SECONDS)  # who waits for nothing waits for what came before it
        requests = "1 request" if count == 1 else f"{count:,} requests"
        complain("import", f"{requests} that a collector acknowledged and had not stored when it ended: now in {into}")


# --- what is told -------------------------------------------------------------------------------------------------------


def _tell(outcome: "Outcome") -> None:
    """What could not be read of one source, and what was amended."""
    reasons = outcome.reasons()
    for reason, count in list(reasons.items())[:_SHOWN_REASONS]:
        complain(
            "import",
            f"{outcome.name}: {count:,} skipped: {reason}"
            if reason != f"file: {outcome.cut}"
            else f"{outcome.name}: {outcome.cut}; what came before is imported",
        )
    if len(reasons) > _SHOWN_REASONS:
        complain("import", f"{outcome.name}: and for {len(reasons) - _SHOWN_REASONS} other reasons: see ingest_errors")
    for reason, count in outcome.amended.items():
        complain("import", f"{outcome.name}: {count:,} amended: {reason}")
    if outcome.format is None:
        complain("import", f"{outcome.name}: empty")


def _summary(spans: int, rows: int, outcomes: Sequence["Outcome"], into: str, seconds: float) -> str:
    files = f"{len(outcomes)} source{'' if len(outcomes) == 1 else 's'}"
    known = sum(o.already_there for o in outcomes)
    skipped = f", {known:,} were there already" if known else ""
    formats = ", ".join(sorted({o.format for o in outcomes if o.format}))
    if rows and not spans:
        what, counted, noun = f"{rows:,} rows", rows, "rows"
    else:
        what, counted, noun = f"{spans:,} spans{f' and {rows:,} other rows' if rows else ''}", spans, "spans"
    return (
        f"{what} from {files}{f' ({formats})' if formats else ''} into {into}{skipped}; "
        f"{seconds:.1f} s, {counted / max(seconds, 1e-9):,.0f} {noun}/s"
    )


class _Progress:
    """One line that is painted over, where somebody may look at it."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], *, is_shown: bool) -> None:
        self._stream = stream
        self._clock = clock
        self._is_shown = is_shown and stream.isatty()
        self._source: Source | None = None
        self._started = self._painted = clock()

    @contextmanager
    def of(self, source: "Source") -> Iterator[None]:
        """While one source is read."""
        self._source = source
        self._started = self._clock()
        try:
            yield
        finally:
            if self._is_shown:
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def __call__(self, bytes_read: int, spans: int) -> None:
        """Paint, if that is not too soon."""
        now = self._clock()
        if not self._is_shown or self._source is None or now - self._painted < _REPAINT_SECONDS:
            return
        self._painted = now
        self._stream.write(
            "\r"
            + progress_line(self._source.name, bytes_read, self._source.size_bytes, spans, now - self._started)
            + "\x1b[K"
        )
        self._stream.flush()


def progress_line(name: str, bytes_read: int, size_bytes: int | None, spans: int, seconds: float) -> str:
    """`traces.jsonl  45 %  1,203 of 2,673 MB  1,204,331 spans  30,112 spans/s`."""
    megabytes = f"{bytes_read / 1e6:,.0f}"
    how_far = (
        f"{100 * bytes_read / size_bytes:.0f} %  {megabytes} of {size_bytes / 1e6:,.0f} MB"
        if size_bytes
        else f"{megabytes} MB"
    )
    return f"{escape(Path(name).name)[-30:]}  {how_far}  {spans:,} spans  {spans / max(seconds, 1e-9):,.0f} spans/s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance import",
        description="Read traces of other tools, logs of other witnesses and exports of our own into an evidence file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="what to read; - reads stdin; none: only what a crashed collector left"
    )
    parser.add_argument(
        "--into",
        required=True,
        metavar="DB|URL",
        help="the evidence file, created if it does not exist, or a collector's URL",
    )
    parser.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="what the files are (default: auto)"
    )
    logs = parser.add_argument_group("of access logs, where their lines do not say it")
    logs.add_argument(
        "--service", metavar="NAME", help="the workload whose proxy wrote them (default: unknown_service)"
    )
    logs.add_argument("--instance", metavar="NAME", help="which replica of it, such as a pod's name")
    logs.add_argument("--direction", choices=("inbound", "outbound"), help="as that workload sees it")
    logs.add_argument("--log-format", metavar="FORMAT", help="Envoy's format string that they were written with")
    parser.add_argument("--no-progress", action="store_true", help="no progress on the terminal")
    return parser
