"""What of a source is exported, and in which pages: no answer may be larger than a collector gives, or than memory.

Pages follow the time of arrival, in whose order rows lie on the disk. Rows that arrived in the same nanosecond, and pages
whose answer turns out to be too large, are divided by a hash.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from collector.errors import QueryError

PAGE_ROWS: Final = 50_000
_BUCKETS: Final = 50_000
_PARTS: Final = 8
_SMALLEST_ROWS: Final = 64
"""A page that is not answered although it is this small fails for another reason than its size."""

Query = Callable[[str], pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which evidence.

    Attributes:
        since: Spans and proxy records that began at this time or later, ns since the Unix epoch; None: from the beginning.
        until: ... before this time; None: to the end.
        trace_id: 32 hex digits; None: every trace.
    """

    since: int | None = None
    until: int | None = None
    trace_id: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.since is None and self.until is None and self.trace_id is None

    def condition(self, time_column: str) -> str:
        """SQL that is true of what is in scope."""
        terms = [
            *([f"{time_column} >= {self.since}"] if self.since is not None else []),
            *([f"{time_column} < {self.until}"] if self.until is not None else []),
            *([f"trace_id = '{self.trace_id}'::UUID"] if self.trace_id is not None else []),
        ]
        return " AND ".join(terms) or "true"


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a table.

    Attributes:
        scope: SQL of what is in scope at all.
        first: Received at this time or later, ns.
        last: ... up to and including this time.
        rows: How many there were when the page was planned.
        part: Of how many parts by the hash, which: (0, 1) is all.
        hashed: What is hashed.
    """

    scope: str
    first: int
    last: int
    rows: int
    hashed: str
    part: tuple[int, int] = (0, 1)

    @property
    def condition(self) -> str:
        """SQL that is true of the page's rows."""
        number, parts = self.part
        divided = f" AND hash({self.hashed}) % {parts} = {number}" if parts > 1 else ""
        return f"{self.scope} AND received_unix_nano BETWEEN {self.first} AND {self.last}{divided}"

    def divided(self, parts: int = _PARTS) -> "list[Page]":
        """The same rows in parts."""
        number, of = self.part
        return [replace(self, rows=-(-self.rows // parts), part=(number + of * i, of * parts)) for i in range(parts)]


def plan_pages(query: Query, table: str, scope: str, hashed: str, *, page_rows: int = PAGE_ROWS) -> Iterator[Page]:
    """The pages of a table that has `received_unix_nano`, as it is now, in the order of arrival."""
    first, last, rows = query(
        f"SELECT min(received_unix_nano) AS first, max(received_unix_nano) AS last, count(*) AS rows "
        f"FROM {table} WHERE {scope}"
    ).row(0)
    if rows:
        yield from _within(query, table, Page(scope, first, last, rows, hashed), page_rows)


def _within(query: Query, table: str, page: Page, page_rows: int) -> Iterator[Page]:
    if page.rows <= page_rows:
        yield page
        return
    if page.first == page.last:
        yield from page.divided(-(-page.rows // page_rows))
        return
    width = max(1, -(-(page.last - page.first + 1) // _BUCKETS))
    buckets = query(
        f"SELECT (received_unix_nano - {page.first}) // {width} AS bucket, count(*) AS rows FROM {table} "
        f"WHERE {page.condition} GROUP BY bucket ORDER BY bucket"
    ).rows()
    for first, last, rows in _merged(buckets, page_rows):
        start = page.first + first * width
        end = min(page.first + (last + 1) * width - 1, page.last)
        yield from _within(query, table, replace(page, first=start, last=end, rows=rows), page_rows)


def _merged(buckets: list[tuple[int, int]], page_rows: int) -> Iterator[tuple[int, int, int]]:
    """Neighbouring buckets together, up to a page: first bucket, last bucket, rows."""
    first = last = rows = 0
    for bucket, count in buckets:
        if rows and rows + count > page_rows:
            yield first, last, rows
            rows = 0
        if not rows:
            first = bucket
        last = bucket
        rows += count
    if rows:
        yield first, last, rows


def fetch(page: Page, ask: Callable[[Page], "Fetched"]) -> "Iterator[Fetched]":
    """What `ask` answers, of parts of the page where the whole is refused; raises QueryError."""
    try:
        answer = ask(page)
    except QueryError:
        if page.rows <= _SMALLEST_ROWS:
            raise
        for part in page.divided():
            yield from fetch(part, ask)
    else:
        yield answer


Fetched = dict[str, pl.DataFrame]
"""Answers by table name."""
