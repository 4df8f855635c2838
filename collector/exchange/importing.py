"""Records of files → a sink, in groups: the shell around the readers, without a word about terminals.

plan(names, wanted)                        which files there are, and what each is; raises ConfigError
import_source(source, sink, on_progress)   one of them, counted
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from collector.errors import ConfigError, DecodeError
from collector.exchange import jaeger, otlp_files, parquet, witness_files, zipkin
from collector.exchange.records import Bad, Payload, Record, Rows
from collector.exchange.sniff import HEAD_BYTES, MAX_MESSAGE_BYTES, Format, Shape, is_witness, sniff
from collector.exchange.streams import STDIN, Stream, open_stream
from collector.exchange.witness_files import LineOptions

GROUP_BYTES: Final = 4 * 1024 * 1024
"""Of requests that go into the sink together: some 8,000 spans, whose commit is then shared."""


NO_OPTIONS: Final = LineOptions()


@dataclass(frozen=True, slots=True)
class Source:
    """What is imported as one: a file, stdin, or the tables of a Parquet export.

    Attributes:
        name: As the user typed it.
        size_bytes: On the disk; None where nobody knows.
        tables: Of a Parquet export, the files by table.
        wanted: The format that the user named.
        options: What the user says of access logs.
    """

    name: str
    size_bytes: int | None
    tables: dict[str, Path] = field(default_factory=dict)
    wanted: Format | None = None
    options: LineOptions = NO_OPTIONS


@dataclass(slots=True)
class Outcome:
    """What became of a source.

    Attributes:
        name: The source's.
        format: What it was read as; None when it was empty.
        spans: Rows of `spans` that the sink took.
        rows: Rows of other tables: of a Parquet export, of access logs and flows.
        already_there: Rows that were there before.
        bad: What could not be read: (reason, unit) → how many.
        first: Where each of them was seen first, from 1.
        amended: What was changed in what was kept.
        cut: Why the source ended early.
    """

    name: str
    format: Format | None = None
    spans: int = 0
    rows: int = 0
    already_there: int = 0
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], int] = field(default_factory=dict)
    amended: Counter[str] = field(default_factory=Counter)
    cut: str | None = None

    def count_bad(self, bad: Bad) -> None:
        """Take note of what could not be read."""
        key = (bad.reason, bad.unit)
        self.bad[key] += bad.count
        self.first.setdefault(key, bad.place)

    def reasons(self) -> dict[str, int]:
        """For `ingest_errors`: what was wrong and where first, with the count."""
        counts = {}
        for (reason, unit), count in self.bad.items():
            place = self.first[reason, unit]
            where = f" (first at {_UNIT_OF_PLACE.get(unit, unit)} {place})" if place else ""
            counts[f"{unit}: {reason}{where}"] = count
        if self.cut:
            counts[f"file: {self.cut}"] = 1
        return counts


_UNIT_OF_PLACE: Final = {"span": "line", "trace": "line", "document": "line"}
"""What `place` counts, where it is not the unit itself."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sink took of one group: spans, rows of tables of their own, and what it had before."""

    spans: int
    rows: int = 0
    already_there: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    amended: dict[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Where evidence goes."""

    def requests(self, payload: bytes) -> Iterable[Taken]:
        """Take a serialised ExportTraceServiceRequest, soon. Raises DecodeError, StoreError, SourceUnreachableError."""
        ...

    def rows(self, rows: Rows) -> Iterable[Taken]:
        """Take rows as they are. Raises ConfigError where the sink cannot, StoreError."""
        ...

    def finish(self, outcome: Outcome) -> Iterable[Taken]:
        """Make sure of everything so far, and record what could not be read."""
        ...


OnProgress = Callable[[int, int], None]
"""Bytes read and spans taken of the current source."""


# --- which files --------------------------------------------------------------------------------------------------------


def plan(names: Sequence[str], wanted: Format | None, options: LineOptions = NO_OPTIONS) -> list[Source]:
    """The sources, each looked at: a wrong file is found before anything is written. Raises ConfigError."""
    sources: list[Source] = []
    exports: dict[Path, dict[str, Path]] = {}
    for name in names:
        path = Path(name)
        if name == STDIN:
            sources.append(Source(name, None, wanted=wanted, options=options))
        elif path.is_dir() or _is_parquet(name, wanted):
            known = exports.get(path if path.is_dir() else path.parent)
            tables = parquet.find_tables(path)
            if known is None:
                exports[path if path.is_dir() else path.parent] = tables
                sources.append(Source(name, None, tables))
            else:
                known.update(tables)
        else:
            sources.append(Source(name, path.stat().st_size, wanted=wanted, options=options))
    if names.count(STDIN) > 1:
        raise ConfigError("stdin is named twice")
    return [
        Source(s.name, sum(p.stat().st_size for p in s.tables.values()), s.tables) if s.tables else s for s in sources
    ]


def _is_parquet(name: str, wanted: Format | None) -> bool:
    with open_stream(name) as stream:
        try:
            shape = _sniff(stream, wanted)
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror or error}") from error
    return shape is not None and shape.format == "parquet"


def _sniff(stream: Stream, wanted: Format | None) -> Shape | None:
    head = stream.peek(HEAD_BYTES)
    if head.lstrip()[:1] in {b"{", b"["}:
        head = stream.peek_line(HEAD_BYTES, MAX_MESSAGE_BYTES)
    if not head and stream.cut:
        raise ConfigError(f"{stream.name} cannot be read: {stream.cut}")
    return sniff(stream.name, head, wanted)


# --- one of them --------------------------------------------------------------------------------------------------------


def import_source(
    source: Source, sink: Sink, on_progress: OnProgress, clock: Callable[[], int] = time.time_ns
) -> Outcome:
    """Read a source into the sink; raises what the sink raises, and ConfigError where the source is no such thing."""
    outcome = Outcome(source.name)
    try:
        if source.tables:
            outcome.format = "parquet"
            _take_tables(source.tables, sink, outcome, on_progress)
        else:
            with open_stream(source.name) as stream:
                _take_stream(stream, source, sink, outcome, on_progress, clock=clock)
    except OSError as error:
        raise ConfigError(f"{source.name} cannot be read: {error.strerror or error}") from error
    for taken in sink.finish(outcome):
        _count(outcome, taken)
    return outcome


def _take_tables(tables: dict[str, Path], sink: Sink, outcome: Outcome, on_progress: OnProgress) -> None:
    for rows, bytes_read in parquet.read_tables(tables):
        for taken in sink.rows(rows):
            _count(outcome, taken)
        on_progress(bytes_read, outcome.spans)


def _take_stream(
    stream: Stream,
    source: Source,
    sink: Sink,
    outcome: Outcome,
    on_progress: OnProgress,
    *,
    clock: Callable[[], int],
) -> None:
    shape = _sniff(stream, source.wanted)
    if shape is None:
        return
    if shape.format == "parquet":
        raise ConfigError(f"{stream.name}: Parquet is read from both of its ends: name a file or a directory")
    outcome.format = shape.format
    source.options.check(stream.name, shape.format)
    if shape.format == "pods":
        _take_rows(witness_files.read_pods(stream, source.name, clock), sink, outcome, stream, on_progress)
    elif is_witness(shape.format):
        records = witness_files.read_lines(stream, source.name, shape.format, source.options, clock)
        _take_rows(records, sink, outcome, stream, on_progress)
    else:
        for group in _groups(_records(stream, shape), outcome):
            _take_group(group, sink, outcome)
            on_progress(stream.bytes_read, outcome.spans)
    outcome.cut = stream.cut


def _take_rows(
    records: Iterable[Record], sink: Sink, outcome: Outcome, stream: Stream, on_progress: OnProgress
) -> None:
    """Rows of tables, and what could not be read of them."""
    for record in records:
        match record:
            case Bad():
                outcome.count_bad(record)
            case Rows():
                for taken in sink.rows(record):
                    _count(outcome, taken)
                on_progress(stream.bytes_read, outcome.rows)
            case Payload():
                raise AssertionError("a file of rows has no requests")


def _records(stream: Stream, shape: Shape) -> Iterator[Record]:
    match shape.format, shape.framing:
        case "jaeger", _:
            return jaeger.read_jaeger(stream)
        case "zipkin", _:
            return zipkin.read_zipkin(stream)
        case _, "lines":
            return otlp_files.read_lines(stream)
        case _, "framed":
            return otlp_files.read_framed(stream)
        case _, "document":
            return otlp_files.read_documents(stream)
        case _:
            return otlp_files.read_whole(stream)


def _groups(records: Iterable[Record], outcome: Outcome) -> Iterator[list[Payload]]:
    """The payloads in groups; what is bad is counted."""
    group: list[Payload] = []
    size = 0
    for record in records:
        match record:
            case Bad():
                outcome.count_bad(record)
            case Payload(request, _):
                group.append(record)
                size += len(request)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _take_group(group: list[Payload], sink: Sink, outcome: Outcome) -> None:
    """Requests one after another are a request; where that is refused, each for itself, so that one spoils no other."""
    try:
        for taken in sink.requests(b"".join(payload.request for payload in group)):
            _count(outcome, taken)
    except DecodeError as error:
        if len(group) == 1:
            outcome.count_bad(Bad(str(error), group[0].place, "message"))
            return
        for payload in group:
            _take_group([payload], sink, outcome)


def _count(outcome: Outcome, taken: Taken) -> None:
    outcome.spans += taken.spans
    outcome.rows += taken.rows
    outcome.already_there += taken.already_there
    outcome.amended.update(taken.amended)
    for reason, count in taken.rejected.items():
        outcome.count_bad(Bad(reason, 0, "span", count))
