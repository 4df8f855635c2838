"""One look at a source: is there anything new, what do the detectors say, who reported when."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from collector.client import Source
from collector.errors import SourceUnreachableError
from collector.forensics.egress import EgressParams
from collector.forensics.findings import Kind
from collector.forensics.latency import LatencyParams
from collector.forensics.scan import examine
from collector.forensics.shadow import ShadowParams
from collector.forensics.tables import Window
from collector.watch.coverage import coverage_of, freshness
from collector.watch.model import Coverage, Row


@dataclass(frozen=True, slots=True)
class Look:
    """What one detector saw: findings, and sentences on what could not be seen."""

    rows: Sequence[Row] = ()
    notes: tuple[str, ...] = ()


class Looker(Protocol):
    """What a watch looks with; each method raises what `Source.query` raises."""

    def mark(self) -> object:
        """A value that differs from the last one if anything has come or gone."""

    def coverage(self, window: Window) -> Coverage:
        """Who reported when in the window."""

    def look(self, kind: Kind, window: Window) -> Look:
        """What the detector of this kind finds in the window."""

    def interrupt(self) -> None:
        """From another thread: a look that runs ends with QueryError."""

    def close(self) -> None:
        """Let go of the source."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How the detectors decide."""

    shadow: ShadowParams
    egress: EgressParams
    latency: LatencyParams


@dataclass(slots=True)
class SourceLooker:
    """Looks at a collector, whose connection it keeps, or at a file, which it holds only while it looks: others write it.

    Attributes:
        name: What the user typed.
        rules: For the detectors.
        open_source: Raises SourceUnreachableError.
    """

    name: str
    rules: Rules
    open_source: Callable[[], Source]
    _source: Source | None = None

    @property
    def is_file(self) -> bool:
        """Whether the source is a file and no collector."""
        return "://" not in self.name

    def mark(self) -> object:
        """Of a file when and how large it was written; of a collector how many rows there are."""
        if self.is_file:
            try:
                status = Path(self.name).expanduser().stat()
            except OSError as e:
                raise SourceUnreachableError(f"{self.name}: {e.strerror}") from e
            return status.st_mtime_ns, status.st_size, status.st_ino
        with self._opened() as source:
            return freshness(source.query)

    def coverage(self, window: Window) -> Coverage:
        """Who reported when in the window."""
        with self._opened() as source:
            return coverage_of(source.query, window)

    def look(self, kind: Kind, window: Window) -> Look:
        """What the detector of this kind finds in the window."""
        with self._opened() as source:
            scan = examine(
                source.query,
                kinds=[kind],
                window=window,
                shadow=self.rules.shadow,
                egress=self.rules.egress,
                latency=self.rules.latency,
            )
            return Look(scan.findings.to_dicts(), (*((source.lacks,) if source.lacks else ()), *scan.notes))

    def interrupt(self) -> None:
        """A look that runs ends with QueryError."""
        if (source := self._source) is not None:
            source.interrupt()

    def close(self) -> None:
        """Let go of the source."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    @contextmanager
    def _opened(self) -> Iterator[Source]:
        if self._source is None:
            self._source = self.open_source()
        try:
            yield self._source
        except SourceUnreachableError:
            with suppress(SourceUnreachableError):
                self.close()
            raise
        finally:
            if self.is_file:
                self.close()
