"""Files of other witnesses, a block of whole lines at a time: access logs of proxies, flow logs, lists of pods.

read_lines(stream, options, ...)   rows and refused lines, in the order of the file
read_pods(stream, ...)             rows of `workloads`
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.errors import ConfigError, DecodeError
from collector.exchange.records import Bad, Record, Rows
from collector.exchange.streams import STDIN, Stream
from collector.witnesses.envoy import MAX_LINE_BYTES, Direction, Origin
from collector.witnesses.pods import pod_rows, pods_of
from collector.witnesses.reading import PROXY_FORMATS, UNKNOWN_SERVICE, Format, make_reader
from collector.witnesses.values import Row, to_batch

BLOCK_BYTES: Final = 6 * 1024 * 1024
"""Taken apart together: some ten thousand lines. More leave the processor's caches, fewer pay the calls that each column of a block takes."""

MAX_DOCUMENT_BYTES: Final = 1024**3
"""Of a list of pods, which is held whole: a hundred thousand of them."""

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineOptions:
    """What the user says of access logs, where their lines do not.

    Attributes:
        service: The workload whose proxy wrote them.
        instance: Which replica of it.
        direction: As that workload sees it.
        log_format: Envoy's format string that they were written with.
    """

    service: str | None = None
    instance: str | None = None
    direction: Direction | None = None
    log_format: str | None = None

    def check(self, name: str, format_: str) -> None:
        """Raise ConfigError where something is said that files of this format have no use for."""
        said = {
            "--service": self.service,
            "--instance": self.instance,
            "--direction": self.direction,
            "--log-format": self.log_format,
        }
        given = [flag for flag, value in said.items() if value is not None]
        if given and format_ not in PROXY_FORMATS:
            raise ConfigError(f"{name} is {format_}: {', '.join(given)} is about access logs; import it without")


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole lines of a file, and where they begin in it. No data: a line that is too long."""

    data: bytes
    offset: int


def source_of(name: str) -> str:
    """What a file is called in `source`, however it was named: its absolute path."""
    return "stdin" if name == STDIN else os.path.abspath(name)  # noqa: PTH100 Path.absolute keeps `..`


def seen_unix_nano(name: str) -> int | None:
    """When a file was written to last; None for stdin. Raises OSError."""
    return None if name == STDIN else Path(name).stat().st_mtime_ns


def read_lines(
    stream: Stream, name: str, format_: Format, options: LineOptions, clock: Callable[[], int]
) -> Iterator[Record]:
    """The rows of a file of lines, and the lines that are none; raises ConfigError, OSError."""
    origin = Origin(source_of(name), options.service or UNKNOWN_SERVICE, options.direction, options.instance)
    reader = make_reader(format_, origin, log_format=options.log_format, seen_unix_nano=seen_unix_nano(name))
    header, line = None, 1
    for block in _blocks(stream):
        if not block.data:
            yield Bad("line too long", line, "line")
            line += 1
            continue
        decoded = reader.read(block.data, offset=block.offset, header=header, received_unix_nano=clock())
        header = decoded.header
        for refused in decoded.refused:
            yield Bad(refused.reason, line + refused.line, "line")
        line += decoded.lines
        if decoded.batch.num_rows:
            yield Rows({decoded.table: decoded.batch}, are_new=True)


def _blocks(stream: Stream) -> Iterator[_Block]:
    """The file in blocks that end with a line; a line that is too long has none."""
    offset = len(stream.read(len(_BOM))) if stream.peek(len(_BOM)) == _BOM else 0
    while True:
        data = stream.read_lines(BLOCK_BYTES) or stream.read_lines(MAX_LINE_BYTES + 1)
        if not data and not stream.peek(1):
            return
        yield _Block(data, offset)
        while not data.endswith(b"\n"):  # the rest of a line that is too long, or nothing behind the last
            offset += len(data)
            data = stream.read_line(BLOCK_BYTES)
            if not data:
                return
        offset += len(data)


def read_pods(stream: Stream, name: str, clock: Callable[[], int]) -> Iterator[Record]:
    """The rows of a list of pods, and the items that are none; raises OSError."""
    document = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(document) > MAX_DOCUMENT_BYTES:
        yield Bad(f"larger than {MAX_DOCUMENT_BYTES} bytes", 0, "document")
        return
    now = clock()
    seen, source = seen_unix_nano(name) or now, source_of(name)
    try:
        items = pods_of(document.removeprefix(_BOM))
    except DecodeError as error:
        yield Bad(str(error), 0, "document")
        return
    rows: list[Row] = []
    for number, item in enumerate(items, 1):
        try:
            rows += pod_rows(item, seen_unix_nano=seen, received_unix_nano=now, source=source)
        except DecodeError as error:
            yield Bad(str(error), number, "pod")
    if rows:
        yield Rows({"workloads": to_batch("workloads", rows)})
