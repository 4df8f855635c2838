"""What every detector starts from: the unbound tables, the time window, and the way to a Polars frame.

Detectors build Ibis expressions over these tables and hand the compiled SQL to a `Query`; they never see a connection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import ibis
import ibis.expr.types as ir
import polars as pl

from collector.forensics.stages import compile_stages
from collector.schema import ibis_schema

Query = Callable[[str], pl.DataFrame]
"""SQL in, frame out: a Source's `.query`. Raises QueryError, SourceUnreachableError."""

NS_PER_S: Final = 1_000_000_000


def spans() -> ir.Table:
    """The unbound `spans` table."""
    return _unbound("spans")


def proxy_records() -> ir.Table:
    """The unbound `proxy_records` table."""
    return _unbound("proxy_records")


def flows() -> ir.Table:
    """The unbound `flows` table."""
    return _unbound("flows")


def span_links() -> ir.Table:
    """The unbound `span_links` table."""
    return _unbound("span_links")


def sockets() -> ir.Table:
    """The unbound `sockets` table."""
    return _unbound("sockets")


def socket_watches() -> ir.Table:
    """The unbound `socket_watches` table."""
    return _unbound("socket_watches")


def workloads() -> ir.Table:
    """The unbound `workloads` table."""
    return _unbound("workloads")


def egress_allow() -> ir.Table:
    """The unbound `egress_allow` table."""
    return _unbound("egress_allow")


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time range, ns since the Unix epoch: `since <= start < until`. None leaves that end open."""

    since_unix_nano: int | None = None
    until_unix_nano: int | None = None

    def of(self, table: ir.Table, *, margin_ns: int = 0) -> ir.Table:
        """The rows that start in the window, widened by `margin_ns` at both ends."""
        start = table.start_time_unix_nano
        if self.since_unix_nano is not None:
            table = table.filter(start >= self.since_unix_nano - margin_ns)
        if self.until_unix_nano is not None:
            table = table.filter(start < self.until_unix_nano + margin_ns)
        return table

    def widened(self, margin_ns: int) -> "Window":
        """The window with `margin_ns` more at both ends."""
        since, until = self.since_unix_nano, self.until_unix_nano
        return Window(None if since is None else since - margin_ns, None if until is None else until + margin_ns)

    def moved(self, by_ns: int) -> "Window":
        """The window as long, so much later."""
        since, until = self.since_unix_nano, self.until_unix_nano
        return Window(None if since is None else since + by_ns, None if until is None else until + by_ns)


def compile_sql(expression: ir.Table, dialect: str = "duckdb") -> str:
    """The expression as one SELECT statement of the dialect, on one line."""
    return compile_stages(expression, dialect)


def _unbound(name: str) -> ir.Table:
    return ibis.table(ibis_schema(name), name=name)
