r"""Records on stderr, one line each, as text or as JSON, and never a million of the same.

    2026-03-01T03:12:00.123Z WARNING collector.receiver.doors: HTTP: a request was refused: ...
    {"time": "2026-03-01T03:12:00.123Z", "level": "warning", "logger": "...", "message": "...", "exception": "..."}

A full disk fails every commit, and an attacker may send a bad request a thousand times a second. So each message is written
BURST times a window, and all together OVERALL times; the first record after that says how many were left out. Control
characters are made visible: what a sender sent must not write a second line, or drive the terminal that shows it.
"""

import json
import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from collector.commands.terminal import escape

Format = Literal["text", "json"]

BURST: Final = 5
OVERALL: Final = 200
WINDOW_SECONDS: Final = 60.0
_REMEMBERED: Final = 512
"""Messages that are told apart; more than there are places that log."""

_NUMBERS: Final = re.compile(r"[0-9]+")
_QUIET: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "grpc", "httpx", "httpcore")


@dataclass(slots=True)
class _Bucket:
    began: float
    written: int = 0
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many records were left out before one that is written: those like it, and those of every kind."""

    alike: int = 0
    in_all: int = 0

    def __str__(self) -> str:
        """What is appended to the record's message; nothing when nothing was left out."""
        if not self.in_all:
            return f" ({self.alike} more like this were left out)" if self.alike else ""
        return f" ({self.alike} more like this and {self.in_all} records in all were left out)"


class Repetition:
    """Decides which records are written; `clock` is in seconds and never steps back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[tuple[str, int, str], _Bucket] = OrderedDict()
        self._all = _Bucket(clock())

    def admit(self, key: tuple[str, int, str]) -> LeftOut | None:
        """None: leave it out. Otherwise write it."""
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(key, _Bucket(now))
            self._buckets.move_to_end(key)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
            for one in (bucket, self._all):
                if now - one.began >= WINDOW_SECONDS:
                    one.began, one.written = now, 0
            if bucket.written >= BURST or self._all.written >= OVERALL:
                bucket.left_out += 1
                self._all.left_out += 1
                return None
            bucket.written += 1
            self._all.written += 1
            left_out = LeftOut(bucket.left_out, self._all.left_out if self._all.written == 1 else 0)
            bucket.left_out = 0
            if self._all.written == 1:
                self._all.left_out = 0
            return left_out


class OneLine(logging.Formatter):
    """A record as one line."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = record.getMessage() + str(getattr(record, "left_out", ""))
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        if self._form == "json":
            document = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            if exception:
                document["exception"] = exception
            return json.dumps(document)  # ASCII: even a lone surrogate stays valid JSON
        line = f"{moment} {record.levelname} {record.name}: {escape(message)}"
        return f"{line} | {escape(exception)}" if exception else line


class _Handler(logging.StreamHandler[TextIO]):
    """Writes what `Repetition` admits."""

    def __init__(self, form: Format, stream: TextIO, repetition: Repetition) -> None:
        super().__init__(stream)
        self.setFormatter(OneLine(form))
        self._repetition = repetition

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._repetition.admit(_key(record))
        if left_out is None:
            return
        record.left_out = str(left_out)
        super().emit(record)


def _key(record: logging.LogRecord) -> tuple[str, int, str]:
    """Records from one place are alike, and so are those that differ in numbers alone."""
    return record.name, record.levelno, _NUMBERS.sub("0", str(record.msg)[:500])


def configure(
    form: Format, level: str, *, stream: TextIO | None = None, repetition: Repetition | None = None
) -> logging.Handler:
    """Send every logger's records to stderr in this form; other handlers of the root logger end.

    Uvicorn's and gRPC's Python loggers come the same way, from warnings on unless `level` is debug. gRPC's C core writes to
    stderr by itself, lines that no logger sees: it is silenced unless GRPC_VERBOSITY is set, or `level` is debug.
    """
    handler = _Handler(form, sys.stderr if stream is None else stream, repetition or Repetition())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else max(logging.WARNING, _number(level)))
    if level != "debug":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return handler


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
